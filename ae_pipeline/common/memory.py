"""The memory of this machine and of this process."""

import ctypes
import os
import platform
from functools import cache

from ae_pipeline.common.cgroup import memory_limit

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`; see malloc.h."""

_MAX_MMAP_THRESHOLD = 32 << 20
"""Highest value that older versions of glibc accept on 64-bit machines."""


def machine_memory() -> int:
    """Return the memory of the machine in bytes, or the limit of the container if that is lower."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(whole, memory_limit() or whole)


@cache
def keep_freed_memory() -> None:
    """Let this process reuse freed memory of up to 256 MiB, which the C library would give back to the system at once.

    Each batch of a network, or of rows to encode for a CUDA device, needs the memory of the batch before. The system
    clears it page by page each time, which takes half of the time of small convolutions on the CPU. Blocks above 32 MiB
    are given back as ever. Settings of malloc in the environment are respected, and other C libraries than glibc are
    left alone.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if mallopt(_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD):  # otherwise the second setting would only switch off tuning
        mallopt(_TRIM_THRESHOLD, 256 << 20)
