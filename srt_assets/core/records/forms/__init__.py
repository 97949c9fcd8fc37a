"""From a row to its records: known forms, known fields, roles and labels. How files become rows is in `files`."""
