"""Rules about a project's chain of migrations."""
