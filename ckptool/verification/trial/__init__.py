"""Instances of a module that loading code is tried on, and what their loads show."""
