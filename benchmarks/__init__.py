"""Comparisons with peers; each module is one benchmark and runs by itself."""

import os

# Threads that spin while they wait slow a busy machine down; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
