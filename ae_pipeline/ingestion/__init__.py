"""From landed files to typed rows."""
