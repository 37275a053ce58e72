"""What `migrate` refuses and runs: the findings of a plan, and forward of its result."""
