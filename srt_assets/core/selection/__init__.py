"""Selection: policies as data, the rule run for one student, settling close verdicts, and explaining a verdict."""
