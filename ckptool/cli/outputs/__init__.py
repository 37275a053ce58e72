"""Where a command writes: the files of its reports, and what they must not replace."""
