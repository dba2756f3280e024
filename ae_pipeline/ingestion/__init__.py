"""Landed files to typed, deduplicated raw rows."""
