"""The registry of students: checkpoint files and their checks, sources, the watched folder, who is retired.

Scores and prompts do not belong here; they are in `scoring`.
"""
