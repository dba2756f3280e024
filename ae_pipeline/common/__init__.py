"""Code without knowledge of the pipeline: errors, threads, text, progress."""
