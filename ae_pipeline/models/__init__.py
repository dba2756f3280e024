"""Autoencoders and their reconstruction losses."""
