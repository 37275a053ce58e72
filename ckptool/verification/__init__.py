"""Checkpoint x module -> Verification: it loads, sits where forward needs it, computes the same."""
