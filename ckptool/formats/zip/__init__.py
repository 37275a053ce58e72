"""Zip archives: directory, records, range layout."""
