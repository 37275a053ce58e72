"""The commands of a chain of migrations, in the words of Alembic."""
