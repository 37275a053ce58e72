"""Comparisons of checkpoints, modules and contracts, without severity and without wording."""
