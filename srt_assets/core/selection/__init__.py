"""Selection: policies as data, the rule run for one student, the explanation of a verdict, and the export."""
