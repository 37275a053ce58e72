"""Results of the commands and their Verdict -> reports."""
