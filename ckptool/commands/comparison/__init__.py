"""Parts of `diff` that other commands use too."""
