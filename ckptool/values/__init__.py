"""Elements of described tensors: bytes, fingerprints, equality, statistics, previews."""
