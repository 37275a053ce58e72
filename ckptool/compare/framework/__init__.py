"""What a framework's own loader does with a state, and the ModuleDiff of it."""
