"""Finetuning: which rows train, in which batches, on which loss, in a process of its own, and what is kept of it."""
