# SPDX-License-Identifier: Apache-2.0
"""Pictures of good and bad frames: chosen by IoU, of scenes that no recipe trains on."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import pytest

pytest.importorskip("onnx")

from tiny_bundle import write_tiny_bundle

pytest.importorskip("torch")

from pipelines import open_pipeline

from training.evaluation import pictures
from training.recipes import load_recipe
from training.stages.segmenter import SegmenterRecipe

RECIPES = Path(__file__).parents[2] / "config" / "train"


def test_no_recipe_trains_on_the_scenes_of_the_pictures() -> None:
    for name in ("lite_image", "lite_region"):
        recipe = load_recipe(RECIPES / f"{name}.yaml", SegmenterRecipe)
        assert all(source.count < pictures.FIRST_SEED for source in recipe.sources)


def test_the_command_writes_three_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    monkeypatch.setattr(sys, "argv", ["x", str(bundle), "--out", str(tmp_path / "out"), "--scenes", "2", "--rows", "1"])
    pictures.main()
    sheets = {p.stem: cv2.imread(str(p)) for p in (tmp_path / "out").iterdir()}
    assert set(sheets) == {"results_good", "results_bad", "results_gain"}
    height, width = pictures.PANEL_HW
    assert all(sheet.shape == (height, 4 * width, 3) for sheet in sheets.values())
    with open_pipeline(bundle, precision="float32") as pipeline:
        evaluated = [pictures.evaluate_scene(pipeline, pictures.FIRST_SEED + i) for i in range(2)]
    assert evaluated[0].both_levels != evaluated[1].both_levels
    assert (sheets["results_good"] != sheets["results_bad"]).any()


def test_more_rows_than_scenes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--out", str(tmp_path), "--scenes", "2"])
    with pytest.raises(SystemExit) as stopped:
        pictures.main()
    assert stopped.value.code == 1
