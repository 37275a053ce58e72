"""Reports -> blocks, a file for each kind of command."""
