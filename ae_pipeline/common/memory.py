"""The memory of this machine."""

import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files in which Linux states the memory limit of a container (cgroup v2 and v1)."""


def machine_memory() -> int:
    """Return the memory of the machine in bytes, or the limit of the container if that is lower."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _LIMITS:
        try:
            sizes.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # the file does not exist, or contains "max"
            continue
    return min(sizes)
