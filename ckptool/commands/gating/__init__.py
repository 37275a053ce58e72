"""Parts of the gate: one checkpoint of it, what it is held to, and the checks a policy requires."""
