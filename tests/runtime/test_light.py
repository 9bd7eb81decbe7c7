# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from nightlab_core.runtime.light import DAY_ABOVE, NIGHT_BELOW, LightGate, light_level


def plain(blue: int, green: int, red: int, size_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.full((*size_hw, 3), (blue, green, red), np.uint8)


@pytest.mark.parametrize(
    ("bgr", "level"),
    [
        ((0, 0, 0), 0.0),
        ((255, 255, 255), 1.0),
        ((188, 188, 188), 0.5029),  # sRGB's code for half the light
        ((10, 10, 10), 10 / 255 / 12.92),  # the straight part of the curve
        ((255, 0, 0), 0.0722),  # pure blue, green, red: Rec. 709's weights
        ((0, 255, 0), 0.7152),
        ((0, 0, 255), 0.2126),
    ],
)
def test_the_light_level_of_plain_colours_is_known(bgr: tuple[int, int, int], level: float) -> None:
    assert light_level(plain(*bgr)) == pytest.approx(level, abs=1e-4)


def test_linear_light_is_averaged_instead_of_pixel_values() -> None:
    frame = plain(0, 0, 0, (128, 128))
    frame[:64] = 255
    assert light_level(frame) == pytest.approx(0.5)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 1000), (1000, 3), (63, 65), (1080, 1920)])
def test_the_light_level_uses_the_whole_frame_at_every_size(size_hw: tuple[int, int]) -> None:
    frame = plain(255, 255, 255, size_hw)
    assert light_level(frame) == pytest.approx(1.0)
    ramp = np.broadcast_to(np.linspace(0, 255, size_hw[1])[None, :, None], (*size_hw, 3)).astype(np.uint8)
    whole = np.array([light_level(ramp[:, i : i + 1]) for i in range(size_hw[1])]).mean()
    assert light_level(ramp) == pytest.approx(whole, abs=0.02)


def test_the_light_level_takes_little_time() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)

    def fastest_s(measure: Callable[[], object]) -> float:
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            measure()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert fastest_s(lambda: light_level(frame)) < fastest_s(lambda: frame.sum()) / 2, "it reads a part of the frame"


def test_between_the_thresholds_night_and_day_stay_what_they_were() -> None:
    gate = LightGate()
    levels = [0.08, 0.1, 0.11, 0.09, 0.06, 0.059, 0.08, 0.1, 0.101, 0.01]
    nights = [gate.is_night(level, NIGHT_BELOW, DAY_ABOVE) for level in levels]
    assert nights == [True, True, False, False, False, True, True, True, False, True]


def test_the_gate_does_not_switch_back_and_forth_at_dusk() -> None:
    gate = LightGate()
    dusk = np.random.default_rng(0).uniform(0.061, 0.099, 200)
    assert all(gate.is_night(level, NIGHT_BELOW, DAY_ABOVE) for level in dusk)
    assert not gate.is_night(0.2, NIGHT_BELOW, DAY_ABOVE)
    assert not any(gate.is_night(level, NIGHT_BELOW, DAY_ABOVE) for level in dusk)
