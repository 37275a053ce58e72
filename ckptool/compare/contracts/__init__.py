"""Contract of a release: its entries, its file, and what a newer one changes."""
