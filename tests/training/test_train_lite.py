# SPDX-License-Identifier: Apache-2.0
"""`make train-lite`: every command in its order, on the shipped recipes with tiny data and two steps a stage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("lightning")

import cv2

from nightlab_core.data.rendered import night
from nightlab_core.labels import CITYSCAPES_TO_CAMVID, map_ids
from nightlab_core.runtime.bundle import load_bundle
from training.combine_checkpoints import CombineRecipe
from training.recipes import load_recipe, read_recipe
from training.stages.hdm import HdmRecipe
from training.stages.segmenter import SegmenterRecipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "config" / "train"
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def _make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # make's own variables would make this one a part of the run that the tests are in.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "DATA"}
    # -o: the environment is as it should be, whatever has changed beside it since.
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv-test/.ready", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800, check=False)


def test_without_data_it_says_what_is_missing() -> None:
    done = _make("train-lite", "DATA=/no/such/folder")
    assert done.returncode != 0 and "expected the folder of the data sets" in done.stderr
    assert "training." not in done.stdout


def test_each_stage_finds_what_those_before_it_made() -> None:
    """The paths in the recipes and in the Makefile are written twice: here they are held against each other."""
    image = load_recipe(RECIPES / "lite_image.yaml", SegmenterRecipe)
    region = load_recipe(RECIPES / "lite_region.yaml", SegmenterRecipe)
    hdm = load_recipe(RECIPES / "lite_hdm_helps.yaml", HdmRecipe)
    plain = load_recipe(RECIPES / "lite_bundle.yaml", CombineRecipe)
    final = load_recipe(RECIPES / "lite_hdm_bundle.yaml", CombineRecipe)
    assert image.start_from == "checkpoints/nightlab-lite.pt"
    assert region.start_from == image.start_from
    assert plain.image == final.image == (image.start_from, "runs/lite_image/checkpoint.pt")
    assert plain.region == final.region == "runs/lite_region/checkpoint.pt"
    assert plain.detector == hdm.detector == "runs/lite_detector/checkpoint.pt"
    assert hdm.levels == "runs/lite_rdn_bundle" and final.detector == "runs/lite_hdm_helps/checkpoint.pt"
    assert hdm.model == final.model
    assert plain.model == region.model == image.model


def _tiny(name: str, sources: list[dict[str, Any]]) -> dict[str, Any]:
    """A shipped recipe with two steps and tiny data."""
    recipe = read_recipe(RECIPES / name)
    if "loop" in recipe:
        quick = {"steps": 2, "batch_size": 2, "warmup_steps": 0, "checkpoint_every": 1, "workers": 0}
        recipe["loop"] |= {**quick, "tensorboard": False, "learning_rate": 1e-5}
        recipe |= {"input_hw": [96, 128]} | ({"frames": 2, "per_frame": 4} if "hdm" in name else {})
        if "hdm" not in name and name != "relam_region.yaml":
            recipe["crop_hw"] = [64, 96]
        small = {"channels": 4, "layers": 1}  # discriminators: a window is one of their places else
        if "relam" in name:
            return recipe | {"check_night": [], "check_day": [], "discriminator": small}
        recipe["sources"] = sources
        if "joint" in name:
            recipe["per_frame"] = 2
            for light in ("image_light", "region_light"):
                recipe[light] |= {"discriminator": small, "night": sources, "day": sources}
        if "image" in name:
            recipe["sources"] = [*sources, {"kind": "pseudo", "folder": "runs/pseudo_night", "weight": 0.3}]
    return recipe


@pytest.mark.slow
def test_the_whole_chain_on_tiny_data(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folders = {"camvid/train": 2, "camvid/val": 2, "nightcoarse/val": 1, "daynight/night": 2, "daynight/day": 2}
    folders |= {"nightcoarse/train": 2, "bdd/clean": 2, "bdd/noisy": 2}
    for seed, (folder, count) in enumerate(folders.items()):
        for i in range(count):
            frame = night.render_scene(10 * seed + i, size_hw=(120, 160))
            labels = map_ids(frame.labels, CITYSCAPES_TO_CAMVID) if "camvid" in folder else frame.labels
            labels[labels == 255] = 11 if "camvid" in folder else 255
            # Unlabelled frames lie in their folder itself.
            root, name = tmp_path / "data" / folder, f"{folder.replace('/', '_')}_{i}.png"
            images = root if "daynight" in folder else root / "images"
            for place, picture in ((images, frame.image_bgr), (root / "labels", labels)):
                place.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place / name), picture)
    work = tmp_path / "work"
    (work / "config" / "train").mkdir(parents=True)
    sources = [{"kind": "camvid", "folder": "camvid", "split": "train", "weight": 1.0}]
    for recipe in (*RECIPES.glob("lite_*.yaml"), *RECIPES.glob("relam_*.yaml")):
        text = yaml.safe_dump(_tiny(recipe.name, sources), sort_keys=False)
        (work / "config" / "train" / recipe.name).write_text(text)
    for name in ("training", "nightlab_core", "checkpoints", "requirements"):
        (work / name).symlink_to(ROOT / name)
    # The environment that runs this test in place of the one that make would install.
    (work / ".venv-test").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (work / ".venv-test" / part.name).symlink_to(part)
    (work / ".venv-test" / ".ready").touch()

    first = _make("train-lite", f"DATA={tmp_path / 'data'}", cwd=work)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    measured = load_bundle(work / "runs" / "nightlab-lite").manifest.accuracy
    assert {"camvid_val_both_levels_miou", "nightcoarse_val_difference"} <= set(measured)
    assert len(list((work / "runs" / "pseudo_night" / "labels").iterdir())) == 2
    for made in (
        "relam_image/checkpoint.pt",
        "relam_region/checkpoint.pt",
        "lite_joint/nightlab.pt",
        "hard_classes.yaml",
    ):
        assert (work / "runs" / made).is_file(), made
    assert "camvid_val_both_levels_miou" in load_bundle(work / "runs" / "nightlab-lite-joint").manifest.accuracy

    measured_on = (work / "runs" / "lite_proposals.npz").read_bytes()
    (work / "runs" / "lite_hdm_helps" / "checkpoint.pt").unlink()
    again = _make("train-lite", f"DATA={tmp_path / 'data'}", cwd=work)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    done = [line for line in again.stdout.splitlines() if "is finished" in line]
    passed = [
        "lite_image",
        "lite_region",
        "lite_detector",
        "relam_image",
        "relam_region",
    ]  # the joint stage starts from the new HDM
    assert [line.split("/")[1] for line in done] == passed
    assert "step 2/2" in again.stdout  # HDM's
    assert (work / "runs" / "lite_proposals.npz").read_bytes() == measured_on

    shutil.rmtree(work / "runs" / "lite_region")
    third = _make("train-lite", f"DATA={tmp_path / 'data'}", cwd=work)
    assert third.returncode == 0, third.stdout[-3000:] + third.stderr[-3000:]
    done = [line for line in third.stdout.splitlines() if "is finished" in line]
    passed.remove("lite_region")
    assert [line.split("/")[1] for line in done] == passed  # HDM learns of the new level
