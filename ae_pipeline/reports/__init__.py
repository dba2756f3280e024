"""The anomaly report."""
