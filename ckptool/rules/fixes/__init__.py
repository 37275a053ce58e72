"""What fixes are made of: commands, lines of source, and code that drops keys."""
