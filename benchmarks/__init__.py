"""Benchmarks against peers. Each command in docs/benchmarks runs one module."""

import os

# Busy-waiting threads slow down a loaded machine. torch reads this variable at its first import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
