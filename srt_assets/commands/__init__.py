"""The commands of `srt`: runs with a progress bar, tables on the terminal, exported pages and files.

Everything that is computed is in `core/`.
"""
