"""Live modules and other objects: what they save, and what they are at one point in time."""
