"""Helpers that every other package can import."""
