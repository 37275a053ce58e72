"""Rules on the load of a state_dict into a module: keys, renames, shapes, the load as a whole."""
