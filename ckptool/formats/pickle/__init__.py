"""An inert pickle interpreter: descriptions of objects, never the objects."""
