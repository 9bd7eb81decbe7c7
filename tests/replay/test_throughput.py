# SPDX-License-Identifier: Apache-2.0
"""The measurement of a replay's throughput, on a tiny bag."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bags import make_frames

from nightlab_core.data.frames import Frame
from nightlab_replay import throughput


def test_a_bag_is_written_and_its_replay_measured(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Frame(image, labels, 0.0, "") for image, labels in make_frames(2)]
    monkeypatch.setattr(throughput, "render_clip", lambda count: frames)
    bag = str(tmp_path / "bag")
    make = ["make", bag, "--gigabytes", "0.0001", "--size", "48", "64", "--labelled"]
    assert throughput.main(make) == 0
    assert "8 frames" in capsys.readouterr().out  # of 12,288 bytes each
    assert throughput.main(["run", bag, "--bundle", str(tiny_bundle), "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "round 1: reading" in printed and "ms per frame" in printed and "MiB" in printed
    assert throughput.main(make) == 1
    assert "exists already" in capsys.readouterr().err
