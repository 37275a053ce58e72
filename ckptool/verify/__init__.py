"""Checkpoint x module -> Verification: does it load, sit where forward needs it, compute the same."""
