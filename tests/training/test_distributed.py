# SPDX-License-Identifier: Apache-2.0
"""Real processes: two train as one with twice the batch, and a killed one resumes bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from small_stage import Halves, loss_of, network, train  # noqa: E402
from timm.layers import BatchNormAct2d  # noqa: E402
from torch import nn  # noqa: E402

from training.distributed import ReducedBatchNorm2d, start_fabric, synchronise_batch_norm  # noqa: E402

ROOT = Path(__file__).parents[2]
STAGE = str(ROOT / "tests" / "support" / "small_stage.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SECONDS = 300


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _state(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    moments = [s["optimizer"]["state"] for s in (a, b)]
    return (
        all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())
        and all(torch.equal(value, b["average"][key]) for key, value in a["average"].items())
        and all(torch.equal(v, moments[1][i][key]) for i, each in moments[0].items() for key, v in each.items())
    )


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    alone = _run(STAGE, str(tmp_path / "one"), "4", "6")
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    together = _run(*torchrun, STAGE, str(tmp_path / "two"), "2", "6")
    one, two = _state(tmp_path / "one"), _state(tmp_path / "two")
    for part in ("model", "average"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-4, atol=1e-6, msg=f"{part} {key}")
    assert not torch.equal(one["model"]["0.weight"], network().state_dict()["0.weight"])
    # Only the first process speaks and writes, and what it says is of both.
    assert len(list((tmp_path / "two").iterdir())) == len(list((tmp_path / "one").iterdir())) == 2

    def losses(log: str) -> list[float]:
        return [float(line.split()[3]) for line in log.splitlines() if line.startswith("step")]

    assert losses(alone) == pytest.approx(losses(together), rel=1e-3) and len(losses(alone)) == 6
    # One process resumes a run of two, and two a run of one, since only the total batch must be equal.
    assert "all 6 steps done" in _run(STAGE, str(tmp_path / "two"), "4", "6")


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_that_resumes_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 30
    train(tmp_path / "whole", 4, steps)
    process = subprocess.Popen(
        [sys.executable, STAGE, str(tmp_path / "killed"), "4", str(steps)], env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "killed" / "checkpoint.pt").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 1 <= _state(tmp_path / "killed")["step"] < steps
    assert not _same(_state(tmp_path / "killed"), _state(tmp_path / "whole"))
    capsys.readouterr()
    train(tmp_path / "killed", 4, steps)
    assert "continues at step" in capsys.readouterr().out
    assert _same(_state(tmp_path / "killed"), _state(tmp_path / "whole"))


def test_the_test_samples_distinguish_a_mean_of_means_from_a_mean() -> None:
    """Otherwise the test with two processes would pass with a wrong mean."""
    model, samples = network().eval(), [Halves()[i] for i in range(4)]
    images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    whole = loss_of(model, (images, labels))["cross_entropy"].value
    halves = [loss_of(model, (images[r::2], labels[r::2]))["cross_entropy"].value for r in range(2)]
    assert abs(whole - (halves[0] + halves[1]) / 2) > 1e-3


def test_reduced_normalisation_in_one_process_equals_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.nn.functional.all_reduce", lambda tensor: tensor)
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5)
    nn.init.normal_(plain.weight)
    reduced = ReducedBatchNorm2d(5)
    reduced.load_state_dict(plain.state_dict())
    for _ in range(3):
        x = 20 + 3 * torch.randn(4, 5, 6, 7)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outputs = [norm(i) for norm, i in zip((plain, reduced), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
        for output in outputs:
            (output.square() * torch.arange(7)).sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-3)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(reduced.state_dict()[key], value)
    reduced.load_state_dict(plain.state_dict())
    assert torch.equal(reduced.eval()(x), plain.eval()(x))  # frozen statistics are each process's own business


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_boxes_reach_the_model_in_full_precision(precision: str) -> None:
    """In bfloat16 a box at x = 613 begins at 612, and one at 1001 at 1000."""
    seen: list[Any] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, image: Any, boxes: list[Any]) -> Any:
            seen.extend([image, *boxes])
            return self.layer(image)

    boxes, image = torch.tensor([[613.0, 301.0, 1001.0, 349.0]]), torch.rand(2, 4)
    model = start_fabric(precision).setup(Model())
    out = model(image, [boxes])
    assert torch.equal(seen[0], image) and torch.equal(seen[1], boxes) and seen[1].dtype == torch.float32
    assert out.dtype == torch.float32  # the losses
    with torch.no_grad():
        exact = model.module.layer(image)
    assert torch.equal(out, exact) == (precision == "32-true")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_synchronised_normalisation_keeps_its_activation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm builds the activation into the normalisation: without it an EfficientNet still loads, and is wrong."""
    monkeypatch.setattr("torch.distributed.nn.functional.all_reduce", lambda tensor: tensor)
    torch.manual_seed(0)
    norm = BatchNormAct2d(4, act_layer=nn.ReLU6)
    nn.init.normal_(norm.bias)
    network, plain = (nn.Sequential(nn.Conv2d(3, 4, 3), n, nn.BatchNorm2d(4)) for n in (norm, BatchNormAct2d(4)))
    plain[1].act = norm.act
    plain.load_state_dict(network.state_dict())
    fabric: Any = SimpleNamespace(world_size=2, device=torch.device(device))
    synchronise_batch_norm(network, fabric)
    assert type(network[1]) is not BatchNormAct2d and network.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(network.eval()(image), plain.eval()(image))
    if device == "cpu":  # torch's SyncBatchNorm has no form of it in training
        torch.testing.assert_close(network.train()(image), plain.train()(image), rtol=1e-4, atol=1e-5)
