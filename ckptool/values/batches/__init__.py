"""Batches of work on tensors, and what runs them: threads, processes, or a cluster."""
