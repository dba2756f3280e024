"""What a dataset needs next, and the steps that do it."""
