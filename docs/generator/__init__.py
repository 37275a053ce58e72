"""What makes the pages: one file for each kind."""
