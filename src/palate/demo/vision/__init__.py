"""`palate demo --vision`: a reward model that sees, and tuning, on packaged weights."""
