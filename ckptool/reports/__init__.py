"""One module per command: the struct of its report, as in JSON, and its builder."""
