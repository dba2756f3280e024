"""Read landed files of all formats into rows."""
