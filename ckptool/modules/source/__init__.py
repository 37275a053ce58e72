"""Source of classes -> lines that assign, use and write attributes, and what values depend on."""
