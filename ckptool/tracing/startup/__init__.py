"""A folder for PYTHONPATH: what Python itself runs at the start of a traced process."""
