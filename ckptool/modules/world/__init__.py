"""State of the whole process that user code may change, and that is put back."""
