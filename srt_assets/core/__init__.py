"""Plain functions and data. One folder per stage: records, teacher, students, scoring, selection, training; and sql."""
