# SPDX-License-Identifier: Apache-2.0
"""The progress line on a terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nightlab_replay import progress
from nightlab_replay.progress import ProgressLine


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_counts_from_an_earlier_session_on(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    out = io.StringIO()
    with ProgressLine(Console(file=out, force_terminal=terminal, width=100), "Replaying", 20, 5) as line:
        line.show_state("starting the node")
        line.update(7, "1 dropped [front]")
    shown = out.getvalue()
    assert "Replaying" in shown and "7/20" in shown and "/s" in shown and "1 dropped [front]" in shown
    assert ("\x1b" in shown) == terminal and ("s left" in shown) != terminal


def test_a_source_of_unknown_length_shows_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    out = io.StringIO()
    with ProgressLine(Console(file=out, width=100), "Playing", None) as line:
        line.update(3)
    assert out.getvalue().startswith("Playing: 3  ") and "left" not in out.getvalue()
