# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch use one thread: sums then have one order, and tiny networks are fastest."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: three rendered night frames in `mine`, and two with the ids of CamVid in `camvid/train`."""
    from tiny_training import write_frames

    root = tmp_path_factory.mktemp("frames")
    write_frames(root / "mine", 3)
    write_frames(root / "camvid" / "train", 2, first_seed=10, camvid=True)
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a whole NightLab of `tiny_settings()`, without hardness detection, with random weights."""
    from tiny_training import tiny_settings, write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "nightlab.pt", tiny_settings())
