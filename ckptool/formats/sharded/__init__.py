"""Sharded folders with an index: reader, writer."""
