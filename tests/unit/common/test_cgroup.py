"""Limits of containers: quotas and memory of control groups, affinity and variables."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ae_pipeline.common import cgroup
from ae_pipeline.common.cores import cores as usable_cores

GB = 1 << 30


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of the system's; 16 cores, and no variable."""
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usable_cores.cache_clear()
    yield tmp_path
    usable_cores.cache_clear()


def write(system: Path, groups: str, files: dict[str, str]) -> None:
    """Write the groups of this process, and files of the control groups."""
    (system / "groups").write_text(groups)
    for name, text in files.items():
        path = system / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


V1 = "9:name=systemd:/\n4:memory:/docker/ab12\n1:cpu,cpuacct:/docker/ab12\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores", "memory"),
    [
        ("", {}, 16, None),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 16, None),
        ("0::/\n", {"cpu.max": "400000 100000", "memory.max": str(2 * GB)}, 4, 2 * GB),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2, None),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1, None),
        # The strictest group counts, of a service as well.
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3, None),
        ("0::/a/b\n", {"a/memory.max": str(4 * GB), "a/b/memory.max": str(GB)}, 16, GB),
        # Version 1, whose file names a path of the host.
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16, None),
        (V1, {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3, None),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2, None),
        (V1, {"memory/memory.limit_in_bytes": str(3 * GB)}, 16, 3 * GB),
        (V1, {"memory/docker/ab12/memory.limit_in_bytes": str(GB), "memory/memory.limit_in_bytes": "9" * 19}, 16, GB),
    ],
)
def test_limits_are_read(system: Path, groups: str, files: dict[str, str], cores: int, memory: int | None) -> None:
    write(system, groups, files)
    assert usable_cores() == cores
    assert cgroup.memory_limit() == memory


@pytest.mark.parametrize(("value", "cores"), [("3", 3), ("2,4", 2), ("64", 5), ("0", 5), ("many", 5), ("", 5)])
def test_the_lowest_limit_of_cores_counts(
    system: Path, monkeypatch: pytest.MonkeyPatch, value: str, cores: int
) -> None:
    write(system, "0::/\n", {"cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert usable_cores() == cores
