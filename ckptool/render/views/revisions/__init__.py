"""Views of the commands of a chain of migrations."""
