"""The Dagster shell around the core."""
