"""Checkpoint -> lazy torch tensors, and a live module with them loaded into it."""
