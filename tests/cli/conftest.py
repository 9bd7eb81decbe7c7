# SPDX-License-Identifier: Apache-2.0
"""A pipeline and bags that the tests of the commands share. No test may change them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pipelines import open_pipeline
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    """The tiny bundle on ONNX Runtime."""
    with open_pipeline(tiny_bundle, engine="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two labelled bags: one (mcap, 11 frames) and two (sqlite3, 6 frames)."""
    folder = tmp_path_factory.mktemp("bags")
    one = write_tiny_bag(folder / "one", make_frames(11))
    return [one, write_tiny_bag(folder / "two", make_frames(6, seed=1), storage="sqlite3")]
