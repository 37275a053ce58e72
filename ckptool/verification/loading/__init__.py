"""Module x checkpoint or object -> what loading does: torch's copies, and the module's own code."""
