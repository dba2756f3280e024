"""From raw rows to features, and from features to a matrix."""
