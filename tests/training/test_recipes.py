# SPDX-License-Identifier: Apache-2.0
"""Recipes that extend others: the order of overriding, the placeholder `{folder}`, and recipes that are refused."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from class_sets import CITYSCAPES19

from nightlab_core.yaml_files import ConfigError
from training.combine_checkpoints import CombineRecipe
from training.evaluation.ladder import Ablation
from training.recipes import load_recipe, read_recipe
from training.stages import detector, hdm, joint, relam, segmenter

RECIPES = Path(__file__).parents[2] / "config" / "train"


def _write(folder: Path, **texts: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_overrides_the_files_that_it_extends_and_later_ones_override_earlier_ones(tmp_path: Path) -> None:
    _write(tmp_path / "a", base="x: 1\ny: {p: 1, q: {r: 1, s: 1}}\nz: [1, 2]\n", more="x: 2\ny: {q: {s: 2}}\nw: 2\n")
    _write(tmp_path / "b", own="extends: [../a/base.yaml, ../a/more.yaml]\ny: {q: {t: 3}}\nz: [3]\nw: null\n")
    assert read_recipe(tmp_path / "b" / "own.yaml") == {
        "x": 2, "y": {"p": 1, "q": {"r": 1, "s": 2, "t": 3}}, "z": [3], "w": None,
    }  # fmt: skip
    assert read_recipe(tmp_path / "a" / "base.yaml")["z"] == [1, 2]


def test_the_placeholder_folder_is_the_folder_of_the_loaded_recipe(tmp_path: Path) -> None:
    _write(tmp_path / "one", base="p: runs/{folder}/x.pt\nq: {'runs/{folder}': ['{folder}', 3]}\n")
    _write(tmp_path / "two", own="extends: ../one/base.yaml\n")
    assert read_recipe(tmp_path / "one" / "base.yaml")["p"] == "runs/one/x.pt"
    assert read_recipe(tmp_path / "two" / "own.yaml") == {"p": "runs/two/x.pt", "q": {"runs/two": ["two", 3]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: none.yaml\n", r"own\.yaml: key 'extends': there is no file .*none\.yaml"),
        (
            "extends: {a: b}\n",
            r"own\.yaml: key 'extends': received \{'a': 'b'\}, expected the name of a file, or a list",
        ),
        ("extends: other.yaml\n", r"own\.yaml: extends itself, by way of own\.yaml, other\.yaml"),
        ("rows: 3\n", r"own\.yaml: key 'rows': received 3"),
    ],
)
def test_wrong_extends_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    _write(tmp_path, own=text, other="extends: own.yaml\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "own.yaml", Ablation)


def test_shipped_recipes_are_valid() -> None:
    kinds = {"image": segmenter.SegmenterRecipe, "region": segmenter.SegmenterRecipe}
    kinds |= {"detector": detector.DetectorRecipe, "bundle": CombineRecipe}  # type: ignore[dict-item]
    kinds |= {"hdm": hdm.HdmRecipe, "gain": hdm.HdmRecipe, "helps": hdm.HdmRecipe, "joint": joint.JointRecipe}  # type: ignore[dict-item]
    of_path = {
        p: relam.ReLAMRecipe if "relam" in p.stem else kinds[p.stem.split("_")[-1]] for p in RECIPES.glob("*.yaml")
    }
    rungs = (RECIPES / "ablation").glob("*.yaml")
    of_path |= {p: hdm.HdmRecipe if "hdm" in p.stem else segmenter.SegmenterRecipe for p in rungs}
    of_path |= {RECIPES / "next" / f"lite_{level}.yaml": segmenter.SegmenterRecipe for level in ("image", "region")}
    tried = RECIPES / "tried"
    of_path |= dict.fromkeys(tried.glob("*_*.yaml"), segmenter.SegmenterRecipe)
    assert len(of_path) >= 25
    for path, cls in of_path.items():
        recipe = load_recipe(path, cls)
        for name in getattr(recipe, "hard_classes", ()):
            CITYSCAPES19.id_of(name)


def test_hdm_is_trained_on_frames_that_the_next_levels_leave_out() -> None:
    """Each part of a level continues the part before it; all leave out the same frames."""
    levels = ("lite_image", "lite_image_2", "lite_image_3", "lite_region", "lite_region_2", "lite_region_3")
    parts = {n: load_recipe(RECIPES / "next" / f"{n}.yaml", segmenter.SegmenterRecipe) for n in levels}
    assert parts["lite_image"].sources == parts["lite_region"].sources
    hardness = load_recipe(RECIPES / "next" / "lite_hdm.yaml", hdm.HdmRecipe)
    measured_on = {(source.folder, source.pattern) for source in hardness.sources}
    for name, recipe in parts.items():
        assert recipe.level == name.split("_")[1]
        assert sum(source.weight for source in recipe.sources) == pytest.approx(1)
        left_out = {(source.folder, source.leave_out_pattern) for source in recipe.sources if source.leave_out_pattern}
        assert left_out == measured_on, name
    for name in ("image", "region"):
        for before, after in (("", "_2"), ("_2", "_3")):
            first = parts[f"lite_{name}{after}"].start_from
            first = (first,) if isinstance(first, str) else first
            assert first[0] == f"runs/next_{name}{before}/checkpoint.pt"
    boxes = load_recipe(RECIPES / "next" / "lite_detector.yaml", detector.STAGE.recipe_class)
    rdn, bundle = (load_recipe(RECIPES / "next" / f"lite_{n}.yaml", CombineRecipe) for n in ("rdn_bundle", "bundle"))
    assert boxes.input_hw == hardness.input_hw == rdn.card.hardness_hw == bundle.card.hardness_hw
    assert (rdn.detector, rdn.image, rdn.region) == (hardness.detector, bundle.image, bundle.region)
    assert bundle.image == "runs/next_image_3/checkpoint.pt" and bundle.region == "runs/next_region_3/checkpoint.pt"
    assert bundle.model.region_context and hardness.merge == "window"
    assert bundle.model.region_hw == parts["lite_region_3"].model.region_hw
