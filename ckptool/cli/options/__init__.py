"""Click options that several commands share: where things are, and how reports are written."""
