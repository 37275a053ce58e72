"""A checkpoint and a plan -> a checkpoint that the new module loads."""
