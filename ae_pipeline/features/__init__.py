"""Features: cleaned and derived columns, and their split into the parts of a training."""
