# SPDX-License-Identifier: Apache-2.0
"""The unit of systemd in the docs is one that systemd reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/own-camera.md"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    block = re.search(r"(?:^    .*\n)*^    \[Unit\]\n(?:^    .*\n)*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert block is not None
    unit = tmp_path / "nightlab.service"
    unit.write_text(textwrap.dedent(block[0]), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
