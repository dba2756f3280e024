"""The cores that this process may use."""

import os
from functools import lru_cache

from ae_pipeline.common.cgroup import cpu_limit


@lru_cache(maxsize=1)
def cores() -> int:
    """Return the number of cores that this process may use.

    Limits are the affinity of the process, the quota of its container, and `OMP_NUM_THREADS`.
    """
    whole = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A list has a number for each level of nested threads.
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limits = [whole, cpu_limit(), int(threads) if threads.isdecimal() else None]
    return max(1, min(limit for limit in limits if limit))
