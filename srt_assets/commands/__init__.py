"""What people ask for and no stage needs: a run with its progress bar, tables to look at, pages and files to take away.

What a stage does, and every number that is computed, is in `core/`.
"""
