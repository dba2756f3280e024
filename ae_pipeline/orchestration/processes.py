"""The processes of runs: who they are, and whether they are alive."""

import multiprocessing
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessId:
    """Identity of a process that another process never has, also after a reboot.

    Attributes:
        host: Name of the machine.
        boot: Start of the machine; empty where the system does not tell.
        pid: Process id.
        ticks: Start of the process since the start of the machine; 0 where the system does not tell.
    """

    host: str
    boot: str
    pid: int
    ticks: int

    def __str__(self) -> str:
        """Return the identity as the value of a tag."""
        return f"{self.host} {self.boot or '-'} {self.pid} {self.ticks}"

    @property
    def is_alive(self) -> bool | None:
        """Whether the process is alive; None for a process of another machine."""
        if self.host != socket.gethostname():
            return None
        if self.boot != boot_id():
            return False
        ticks = start_ticks(self.pid)
        return ticks is not None and (ticks == self.ticks or 0 in {ticks, self.ticks})


def parse_process(text: str) -> ProcessId | None:
    """Return the identity in a tag, or None if the text is none.

    >>> parse_process("host - 12 345")
    ProcessId(host='host', boot='', pid=12, ticks=345)
    """
    match = re.fullmatch(r"(\S+) (\S+) (\d+) (\d+)", text)
    if match is None:
        return None
    host, boot, pid, ticks = match.groups()
    return ProcessId(host, boot.replace("-", "", 1) if boot == "-" else boot, int(pid), int(ticks))


def identify(pid: int) -> ProcessId:
    """Return the identity of a process of this machine."""
    return ProcessId(socket.gethostname(), boot_id(), pid, start_ticks(pid) or 0)


def run_process() -> int:
    """Return the id of the process that executes the run: this one, or its parent if this one executes one step."""
    parent = multiprocessing.parent_process()
    return parent.pid if parent is not None and parent.pid is not None else os.getpid()


def boot_id() -> str:
    """Return an identifier that changes with each start of this machine; empty where there is none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return ""


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the start of the machine; None if it is not alive.

    The result is 0 for a living process where the system does not tell.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return 0 if _accepts_signals(pid) else None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


def _accepts_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_of(pid: int) -> str:
    """Return the command line of a process, as far as the system tells it."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return text
