"""Training of a model on a window of features."""
