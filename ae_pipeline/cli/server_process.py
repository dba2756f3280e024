"""A server that ends with the process that started it: `python -m ae_pipeline.cli.server_process PARENT MODULE …`.

After a SIGKILL of `ae-pipeline ui`, servers would otherwise go on, keep their ports, and block the next start.
"""

import os
import runpy
import signal
import sys
from collections.abc import Sequence

from ae_pipeline.common.signals import watch_parent


def main(arguments: Sequence[str]) -> None:
    """Run a module as `python -m` does, until it ends or the process with the id `arguments[0]` ends."""
    parent, module, *_ = arguments
    # The group is that of this server, with the runs that it has started.
    watch_parent(int(parent), lambda: os.killpg(os.getpgrp(), signal.SIGKILL))
    sys.argv = list(arguments[1:])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
