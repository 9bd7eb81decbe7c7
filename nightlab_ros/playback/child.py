# SPDX-License-Identifier: Apache-2.0
"""Run a module as a child that ends with its parent, however the parent ends.

    python -m nightlab_ros.playback.child DESCRIPTOR MODULE [ARGUMENT ...]

DESCRIPTOR is the reading end of a pipe. Only the parent holds the other end, and it never writes there. The pipe ends
when the parent does, even by SIGKILL. The child then gets SIGTERM, and SIGKILL if it has not ended after
`STOP_TIMEOUT_S`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from nightlab_ros.playback.processes import STOP_TIMEOUT_S


def end_with(descriptor: int) -> None:
    """Wait for the end of the pipe, then end this process."""
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_S)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the module in this process."""
    descriptor, module = int(sys.argv[1]), sys.argv[2]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # when its terminal closes, the parent ends its children in order
    threading.Thread(target=end_with, args=(descriptor,), name="parent", daemon=True).start()
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
