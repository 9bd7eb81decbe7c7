# SPDX-License-Identifier: Apache-2.0
"""The training loop: it learns, it resumes bit by bit, and it stops on a loss that is not finite."""

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from torch import Tensor, nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from training.loop import LoopSettings, fit, learning_rate_at  # noqa: E402

SETTINGS = LoopSettings(
    steps=12, batch_size=4, learning_rate=0.05, warmup_steps=2, checkpoint_every=4, workers=0, seed=3
)


class _Lines(Dataset[tuple[Tensor, Tensor]]):
    """y = 2x, one random point an index; point `poison` is not a number."""

    def __init__(self, poison: int = -1) -> None:
        self.poison = poison

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(1, generator=torch.Generator().manual_seed(index))
        return x, 2 * x * (float("nan") if index == self.poison else 1.0)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"square": (model(batch[0]) - batch[1]).square().mean()}


def _train(folder: Path, steps: int = 12, poison: int = -1, recipe: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    # Dropout makes the random state matter.
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    settings = SETTINGS.model_copy(update={"steps": steps})
    fit(model, _loss, _Lines(poison), settings, folder / "checkpoint.pt", recipe or {"stage": "test"})
    return model


def test_the_loss_falls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _train(tmp_path, steps=60)
    batch = torch.linspace(0, 1, 9)[:, None], 2 * torch.linspace(0, 1, 9)[:, None]
    assert _loss(model.eval(), batch)["square"] < 0.1


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    # Point 33 is in step 8's batch (indices 32 to 35): the run dies there, after the checkpoint of step 8.
    with pytest.raises(FloatingPointError, match=r"step 8: the loss is not finite \(square nan\)"):
        _train(tmp_path / "parts", poison=33)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 8
    resumed = _train(tmp_path / "parts")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    _train(tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        _train(tmp_path, recipe={"stage": "other"})


def test_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = _train(tmp_path)
    again = _train(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_learning_rate_rises_and_falls() -> None:
    settings = LoopSettings(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_power=1.0)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and rates[-1] > 0
