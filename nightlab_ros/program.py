# SPDX-License-Identifier: Apache-2.0
"""The program nightlab_node. It imports the node's modules when it runs, which takes seconds on a busy machine."""

from __future__ import annotations

import signal


def main() -> int:
    """Run the node. SIGINT while modules are imported ends the process without a traceback, as SIGTERM does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nightlab_ros.node import main as run

    return run()
