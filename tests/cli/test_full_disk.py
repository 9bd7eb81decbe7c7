# SPDX-License-Identifier: Apache-2.0
"""A disk that is full: every command ends in one sentence that names the place."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command import nightlab

from nightlab_core.output import output_folder


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: a write then fails as on a full disk, without a file name."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("line", "place", "num_bytes"),
    [
        ("bag BAG --out new", "new: File too large", 4_000),
        ("bag BAG --out new --storage sqlite3", "new: ", 4_000),
        ("bag BAG --out new --compress png", "new: File too large", 1_000),
        ("replay BAG --bundle BUNDLE --engine onnxruntime --out new", "new/run.json: File too large", 100),
        ("replay BAG --bundle BUNDLE --engine onnxruntime --out new", "new/chunks/one-00000000.npz: File", 6_500),
        ("replay BAG --bundle BUNDLE --engine onnxruntime --out new --write-bag", "new/masks/one/00000000.png", 6_500),
        ("demo --out new --frames 1", "new", 0),
    ],
)
def test_a_full_disk_is_named(
    line: str,
    place: str,
    num_bytes: int,
    bags: list[Path],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [{"BAG": str(bags[0]), "BUNDLE": str(tiny_bundle)}.get(word, word) for word in line.split(" ")]
    with full_disk(num_bytes):
        done = nightlab(*words)
    assert done.status == 1 and done.err.startswith(f"nightlab {words[0]}: {place}"), done
    assert len(done.err.splitlines()) == 1
    if words[0] != "replay":  # which resumes
        assert not (tmp_path / "new").exists(), "nothing is left behind"


def test_a_mask_that_cannot_be_stored_names_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("rclpy")
    from nightlab_ros.playback.mask_recorder import MaskSpool

    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    with MaskSpool(tmp_path) as spool:
        spool.write(noise[:8])
        with full_disk(1_000), pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
            spool.write(noise)


def test_a_marker_that_cannot_be_written_names_the_folder(tmp_path: Path) -> None:
    with full_disk(0), pytest.raises(OSError, match=f"'{tmp_path}/out'"), output_folder(tmp_path / "out", "demo"):
        pass
