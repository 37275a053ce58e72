"""What was found and judged -> the report that a command gives."""
