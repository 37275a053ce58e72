"""Checkpoint x module -> Verification: load, device placement, forward, equality, round trip."""
