"""What a command is given: several sources, and the constructor arguments in one."""
