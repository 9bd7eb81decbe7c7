# SPDX-License-Identifier: Apache-2.0
"""The converter that the node chooses for images other than bgr8."""

from __future__ import annotations

import importlib.util
import sys
from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nightlab_core.data.images import ImageError, image_to_bgr
from nightlab_ros.messages import choose_converter, to_bgr

BLUE, GREEN, RED = BGR = [10, 120, 250]
HEIGHT, WIDTH = 4, 6


def message(encoding: str, *pixel: int, padding: int = 0) -> Any:
    """A uniform image message whose rows end in padding bytes."""
    rows = np.tile(np.array(pixel, np.uint8), (HEIGHT, WIDTH))
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    fields = {"height": HEIGHT, "width": WIDTH, "encoding": encoding, "is_bigendian": 0, "step": rows.shape[1]}
    return SimpleNamespace(**fields, data=array("B", rows.tobytes()))


@pytest.fixture
def install_cv_bridge(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put a cv_bridge of the given source code on the path, here and for child processes."""

    def install(source: str) -> None:
        (tmp_path / "cv_bridge.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        choose_converter.cache_clear()

    yield install
    sys.modules.pop("cv_bridge", None)
    choose_converter.cache_clear()


def test_a_cv_bridge_that_aborts_is_passed_over(install_cv_bridge: Any) -> None:
    install_cv_bridge("import os\nos.abort()\n")  # as one built for another NumPy does
    assert (image_to_bgr(message("rgb8", RED, GREEN, BLUE), to_bgr) == BGR).all()
    assert choose_converter().name == "rosbags-image (cv_bridge does not work here: exit status -6)"


def test_a_cv_bridge_that_raises_is_passed_over(install_cv_bridge: Any) -> None:
    install_cv_bridge("raise ImportError('built for NumPy 1')\n")
    assert "cv_bridge does not work here: ImportError: built for NumPy 1" in choose_converter().name


def test_a_working_cv_bridge_is_used(install_cv_bridge: Any) -> None:
    install_cv_bridge(
        "import numpy as np\n"
        "class CvBridge:\n"
        "    def imgmsg_to_cv2(self, msg, desired):\n"
        "        assert (msg.encoding, desired) == ('rgb8', 'bgr8')\n"
        "        return np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step // 3, 3)[..., ::-1]\n"
    )
    assert choose_converter().name == "cv_bridge"
    assert (image_to_bgr(message("rgb8", RED, GREEN, BLUE, padding=6), to_bgr) == BGR).all()


def test_without_any_converter_bgr8_is_read_and_others_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rosbags.image", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choose_converter.cache_clear()
    try:
        assert (image_to_bgr(message("bgr8", *BGR), to_bgr) == BGR).all()
        for _ in range(2):  # what is missing is looked for once
            with pytest.raises(ImageError, match=r"cv_bridge is not installed.*rosbags-image.*install either"):
                image_to_bgr(message("rgb8", *BGR), to_bgr)
        assert choose_converter.cache_info().misses == 1
        assert choose_converter().name.startswith("only bgr8 can be read")  # which is no reason not to start
    finally:
        choose_converter.cache_clear()
