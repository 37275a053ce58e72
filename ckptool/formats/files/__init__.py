"""Local and remote files: sources, atomic writes, signals."""
