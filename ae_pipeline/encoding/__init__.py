"""Features to the tensors that a network reads, and back."""
