"""Plain functions and data, one room a stage: records, teacher, students, scoring, selection, training; and sql."""
