"""A folder of migrations -> Chain, and where a checkpoint stands in it; nothing is run here."""
