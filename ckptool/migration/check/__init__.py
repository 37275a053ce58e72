"""Checks of a migrated file before it gets its name."""
