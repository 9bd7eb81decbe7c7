# SPDX-License-Identifier: Apache-2.0
"""A replay in spans gives the masks of a replay in a row, also if a frame's result depends on earlier frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from class_sets import CITYSCAPES19
from pipelines import open_pipeline
from replays import timeless
from tiny_bags import IMAGES, LABELS, write_tiny_bag

from nightlab_core.data.bags.reader import Bag
from nightlab_core.runtime.settings import KEY_FRAMES, PipelineSettings
from nightlab_replay.execute import BagSource, Span, SpanResult, replay_spans, warm_up

NUM_FRAMES = 2 * KEY_FRAMES + 4
IN_THE_DARK = 4  # a frame of the night
BRIGHT, DUSK = 200, 85  # light levels of 0.3 and 0.08 in frames of noise below these values
ECONOMY = {"hardness_every": 3, "unchanged_below": 4.0, "regions_in_turn": True, "max_regions": 1, "carry_frames": 9}


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> BagSource:
    """Dark noise that changes every other frame, then two bright frames, then dusk to the end."""
    random = np.random.default_rng(0)
    frames = []
    for number in range(NUM_FRAMES):
        dark = number < 5
        if number % 2 == 0 or number in (5, 7):
            middle = 20 if dark else BRIGHT if number < 9 else DUSK
            image = random.integers(middle - 12, middle + 13, (48, 64, 3)).astype(np.uint8)
        frames.append((image, np.zeros((48, 64), np.uint8)))
    path = write_tiny_bag(tmp_path_factory.mktemp("spans") / "drive", frames)
    return BagSource("drive", str(path), IMAGES, LABELS)


def replayed(
    bag: BagSource, bundle: Path, settings: PipelineSettings, parts: list[tuple[int, int]]
) -> list[SpanResult]:
    """Replay each part with a pipeline of its own, as processes do."""
    results = []
    for first, stop in parts:
        with open_pipeline(bundle, settings, engine="onnxruntime", threads=1) as pipeline:
            spans = [Span(bag, first, stop)]
            results += list(replay_spans(spans, pipeline, CITYSCAPES19, keep_masks=True))
    return results


@pytest.mark.parametrize("settings", [ECONOMY, {"refine": "night"}, {**ECONOMY, "refine": "night"}])
def test_spans_in_any_order_give_the_masks_of_a_run_in_a_row(
    bag: BagSource, tiny_bundle: Path, settings: dict[str, Any]
) -> None:
    chosen = PipelineSettings(**settings)
    row = replayed(bag, tiny_bundle, chosen, [(0, NUM_FRAMES)])
    parts = [(KEY_FRAMES + 6, NUM_FRAMES), (0, IN_THE_DARK), (IN_THE_DARK, 7), (7, KEY_FRAMES + 6)]
    split = replayed(bag, tiny_bundle, chosen, parts)
    records = sorted((record for part in split for record in part.records), key=lambda record: record.index)
    assert list(map(timeless, records)) == list(map(timeless, row[0].records))
    assert {index: mask for part in split for index, mask in part.masks.items()} == row[0].masks
    if "hardness_every" in settings:
        assert len({record.ages for record in records}) > 2
        assert any(records[IN_THE_DARK].ages)  # a span begins with labels of the span before
    if settings.get("refine") == "night":
        assert {record.refine_reason for record in records} == {"night", "day"}
        assert records[-1].refine_reason == "day"  # dusk stays day


def test_a_span_declares_the_frames_that_it_needs(bag: BagSource) -> None:
    last = NUM_FRAMES - 1
    with bag.open() as opened:
        assert isinstance(opened, Bag)
        assert warm_up(opened, last, PipelineSettings()) == (last, True)
        assert warm_up(opened, last, PipelineSettings(carry_frames=1)) == (2 * KEY_FRAMES, True)
        assert warm_up(opened, last, PipelineSettings(refine="night")) == (last, False)
        assert warm_up(opened, 5, PipelineSettings(refine="night")) == (5, True)
        assert warm_up(opened, 0, PipelineSettings(refine="night", carry_frames=1)) == (0, True)
