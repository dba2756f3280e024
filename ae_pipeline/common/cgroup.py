"""Limits that Linux sets for a container or a service by control groups, version 1 and 2."""

import math
from collections.abc import Iterator
from pathlib import Path

_ROOT, _GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_limit() -> int | None:
    """Return the number of cores that the quota of this process allows, rounded up; None without a quota."""
    quotas = [_quota(*text.split()[:2]) for text in _values("cpu", "cpu.max") if len(text.split()) > 1]
    quotas += [
        _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")) for folder in _folders("cpu")
    ]
    return min((quota for quota in quotas if quota), default=None)


def memory_limit() -> int | None:
    """Return the memory that this process may use in bytes; None without a limit."""
    texts = [*_values("memory", "memory.max"), *_values("memory", "memory.limit_in_bytes")]
    return min((int(text) for text in texts if text.isdigit()), default=None)


def _quota(quota: str, period: str) -> int | None:
    # Without a quota, version 2 says "max" and version 1 says -1.
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def _values(controller: str, name: str) -> Iterator[str]:
    return (text for folder in _folders(controller) if (text := _read(folder / name)))


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in and of those above, in each hierarchy.

    In a container the file of the groups may name paths of the host, which do not exist here. The roots then count.
    """
    for line in _read(_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _ROOT / controllers.removeprefix("name=") if controllers else _ROOT
        if controllers and not root.is_dir():
            root = _ROOT / controller
        group = root / path.lstrip("/")
        yield from (each for each in (group, *group.parents) if each.is_relative_to(root))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
