"""Parts of reports that are worked out before they are built."""
