# SPDX-License-Identifier: Apache-2.0
"""The program nightlab_node. It imports the node's modules when it runs."""

from __future__ import annotations

from nightlab_ros.interrupt import end_at_signals


def main() -> int:
    """Run the node; returns its exit status."""
    end_at_signals()
    from nightlab_ros.node import main as run

    return run()
