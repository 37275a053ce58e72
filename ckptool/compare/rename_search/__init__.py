"""Searches for renames, one file for each kind of evidence."""
