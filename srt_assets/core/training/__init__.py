"""Finetuning in a process of its own: rows, batches, loss, saved states, finished checkpoints. Scoring is elsewhere."""
