"""What `fix` does between the findings and the report: the project, and the proofs."""
