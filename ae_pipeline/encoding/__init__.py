"""Encode features as the tensors that a network reads, and decode them."""
