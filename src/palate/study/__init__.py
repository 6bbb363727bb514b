"""Studies: what difference a choice made, and how sure that is."""
