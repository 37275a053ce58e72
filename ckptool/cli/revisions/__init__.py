"""Command line of a chain of migrations."""
