# SPDX-License-Identifier: Apache-2.0
"""Run `nightlab` with arguments in the form that the outside checks of this repository use.

These checks are kept elsewhere. They look up the names in `tests/support/trial_names.json`, and run or import them with
the repository and its `tests/support` on PYTHONPATH.
"""

from __future__ import annotations

import sys

from nightlab_cli.main import app


def run(command: str, words: list[str]) -> None:
    """Run a sub-command and exit with its status."""
    sys.argv[0] = "nightlab"
    app([command, *words], prog_name="nightlab")
