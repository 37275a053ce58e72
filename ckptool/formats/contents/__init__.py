"""What stands beside the tensors of a file -> content fingerprints by place."""
