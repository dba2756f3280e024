"""Map over files and days by an engine: threads of this process, worker processes, or tasks of a Ray cluster."""
