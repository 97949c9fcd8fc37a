"""The student: its checkpoint, the prompts it sees, and what it thinks of every candidate (losses of four passes)."""
