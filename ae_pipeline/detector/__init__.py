"""A trained network, its anomaly scores, and the bundle that stores both."""
