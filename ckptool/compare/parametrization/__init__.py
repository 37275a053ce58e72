"""Parameters that are computed from other tensors: weight norm, spectral norm, pruning."""
