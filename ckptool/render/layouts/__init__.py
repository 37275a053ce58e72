"""Reports -> blocks, one file for each command."""
