"""The registry of students: checkpoint files and their checks, sources, the watched folder, who is retired.

No score and no prompt belongs here: what a student thinks of a text is in `scoring`.
"""
