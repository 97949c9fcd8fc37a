"""From files to records: reading files of all kinds, choosing the form of a row, ids, rejects with reasons.

Nothing here knows the teacher or the students.
"""
