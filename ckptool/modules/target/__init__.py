"""What names a module in a command or in the configuration -> the object that it names."""
