"""One module per level of verification."""
