"""Checkpoint and plan -> checkpoint that the new module loads."""
