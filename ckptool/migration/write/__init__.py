"""Planned tensors -> files, copied and read back."""
