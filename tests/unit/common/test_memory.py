"""Memory of this process."""

import os
import platform
import resource

import numpy as np
import pytest

from ae_pipeline.common.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
@pytest.mark.skipif(any(name.startswith("MALLOC_") for name in os.environ), reason="the environment has settings")
def test_freed_memory_is_used_again_without_clearing_it_page_by_page() -> None:
    keep_freed_memory()
    size, rounds = 24 << 20, 5

    def faults_of_one() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.full(size, 1, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of_one()
    assert sum(faults_of_one() for _ in range(rounds)) < rounds * size / os.sysconf("SC_PAGE_SIZE") / 4
