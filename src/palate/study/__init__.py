"""Studies: which choice mattered."""
