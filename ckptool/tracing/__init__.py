"""A running command -> TraceRecords: what its loads and saves did; the parent judges them."""
