"""Plain functions and data, one room a stage: records, teacher, student, selection, training, sql. No dagster here."""
