"""The memory of this machine."""

import os

from ae_pipeline.common.cgroup import memory_limit


def machine_memory() -> int:
    """Return the memory of the machine in bytes, or the limit of the container if that is lower."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(whole, memory_limit() or whole)
