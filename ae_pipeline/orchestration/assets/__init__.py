"""The assets of a dataset, one module each, with specification, checks and body together."""
