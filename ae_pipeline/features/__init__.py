"""Features of each day, and their split into training parts."""
