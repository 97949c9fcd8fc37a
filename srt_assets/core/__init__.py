"""Plain functions and data, one room a stage: records, teacher, student, selection, training, lake, sql. No dagster import."""
