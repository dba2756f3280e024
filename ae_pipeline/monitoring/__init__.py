"""Daily drift, day assessments, and alerts."""
