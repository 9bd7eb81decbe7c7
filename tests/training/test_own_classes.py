# SPDX-License-Identifier: Apache-2.0
"""A user's own 7 classes by one YAML file: the files and commands of docs/own-classes.md, on tiny networks and data."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from class_sets import CITYSCAPES19  # noqa: E402
from command import nightlab  # noqa: E402
from pipelines import open_pipeline  # noqa: E402
from tiny_training import INPUT_HW, tiny_settings, write_frames  # noqa: E402

from nightlab_core.classes import load_class_set  # noqa: E402
from nightlab_core.labels import to_class_set  # noqa: E402
from nightlab_core.runtime.bundle import load_bundle  # noqa: E402
from nightlab_replay.store import load_run  # noqa: E402

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "own-classes.md"
NAMES = ("drivable", "walkway", "structure", "plant", "sky", "human", "vehicle")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def _make_tiny(tree: dict[str, Any]) -> None:
    """Give a recipe tiny networks and two steps, in place."""
    if "model" in tree:
        tiny = tiny_settings().model_dump(mode="json", exclude={"classes"})
        tree["model"] = {**tiny, "classes": tree["model"]["classes"]}
    if "loop" in tree:
        tree["loop"] |= {"steps": 2, "batch_size": 2, "warmup_steps": 0, "workers": 0, "tensorboard": False}
        tree |= {"input_hw": list(INPUT_HW), "crop_hw": [64, 64]}
    if "card" in tree:
        tree["card"]["input_hw"] = list(INPUT_HW)


def _write_files() -> None:
    """Write the guide's files, the recipes made tiny, and the data that they name."""
    for text in _blocks("yaml"):
        path = Path(text.splitlines()[0].removeprefix("# "))
        path.parent.mkdir(exist_ok=True)
        tree = yaml.safe_load(text)
        _make_tiny(tree)
        path.write_text(text if "classes" in tree else yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    own = load_class_set("mine/yard7.yaml")
    for split, count in (("train", 2), ("val", 2)):
        write_frames(Path("data/cityscapes_small", split), count)
        write_frames(Path("data/yard", split), count, first_seed=10)
        for path in Path("data/yard", split, "labels").iterdir():
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), to_class_set(labels, CITYSCAPES19, own))
    Path("checkpoints").symlink_to(ROOT / "checkpoints")


def _run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the guide in this process."""
    words = shlex.split(line.replace("python -m nightlab_cli", "nightlab", 1))
    if words[0] == "nightlab":
        done = nightlab(*words[1:])
        assert done.status == 0, done.err
        return
    assert words[:2] == ["python", "-m"]
    monkeypatch.setattr(sys, "argv", words[2:])
    module = importlib.import_module(words[2])
    module.STAGE.main(module.__doc__) if hasattr(module, "STAGE") else module.main()


def test_the_guide_from_one_yaml_file_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_files()
    for line in "".join(_blocks("sh")).replace("\\\n", "").splitlines():
        _run(line, monkeypatch)

    bundle = load_bundle("bundles/yard")
    own = load_class_set("mine/yard7.yaml")
    assert bundle.class_set.names == own.names == NAMES and bundle.class_set.colors_rgb == own.colors_rgb
    assert bundle.class_set.key == "yard7" and bundle.class_set.mappings_to == own.mappings_to
    assert bundle.hard_class_ids == (5, 6)
    with open_pipeline("bundles/yard", precision="float32") as pipeline:
        result = pipeline(cv2.imread(str(next(Path("data/yard/val/images").iterdir()))))  # type: ignore[arg-type]
    assert set(np.unique(result.labels)) <= set(range(7))
    run = load_run(Path("replays/yard"))
    assert run.run.settings.classes == "yard7" and run.run.settings.class_set.names == NAMES
    assert len(run.labelled) == 2 and run.counts.confusion.shape[-2:] == (7, 8)
    assert json.loads(Path("replays/yard/report.json").read_text(encoding="utf-8"))
    settings = torch.load("runs/yard_image/checkpoint.pt", weights_only=True)["recipe"]["model"]["classes"]
    assert settings["names"] == list(NAMES), "a checkpoint holds its class set"
