"""A running command -> TraceRecords: what its loads and saves really did; the parent judges them."""
