# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import pytest

from nightlab_cli.options import pipeline_settings, settings_of_texts
from nightlab_core.config import Settings
from nightlab_core.runtime.settings import PipelineSettings


class _EveryType(Settings):
    whole: int = 0
    number: float = 0.0
    switch: bool = False
    text: str = ""


def test_the_type_of_a_setting_decides_how_its_value_is_read() -> None:
    settings = settings_of_texts(_EveryType, ["whole=3", "number=1", "switch=true", "text=12"])
    assert settings == _EveryType(whole=3, number=1.0, switch=True, text="12")


def test_pipeline_settings_are_read_from_texts() -> None:
    expected = PipelineSettings(merge="replace", max_regions=4, nms_iou=1.0, score_threshold=0.25)
    given = ["merge=replace", "max_regions=4", "nms_iou=1", "score_threshold=0.25"]
    assert pipeline_settings(given) == expected
    assert pipeline_settings(None) == PipelineSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_regions=11", "--set max_regions=11: .*less than or equal to 10"),
        ("max_regions=2.5", "--set max_regions=2.5: .*valid integer"),
        ("nms_iou=nan", "--set nms_iou=nan: .*finite number"),
        ("merge=best", "--set merge=best: .*'auto', 'replace', 'confident' or 'window'"),
        ("merge", "--set merge: expected NAME=VALUE with a name of refine, night_below"),
        ("colour=blue", "--set colour=blue: expected NAME=VALUE with a name of refine, night_below"),
    ],
)
def test_a_wrong_setting_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_settings([text])
