"""Rules about a release: what its policy requires, and what an older release promised."""
