"""Live tensors and arrays -> descriptions, fingerprints and comparisons of their elements."""
