# SPDX-License-Identifier: Apache-2.0
"""The training loop: it learns, it resumes bit by bit, and it stops on a loss that is not finite."""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from torch import Tensor, nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402

from nightlab_core.config import Settings, replace  # noqa: E402
from training.checkpoint import is_finished, load_weights, write  # noqa: E402
from training.loop import LoopSettings, Losses, Mean, fit, learning_rate_at, running_mean  # noqa: E402

SETTINGS = LoopSettings(
    steps=12, batch_size=4, learning_rate=0.05, warmup_steps=2, checkpoint_every=4, workers=0, seed=3, tensorboard=False
)


class _Recipe(Settings):
    """The smallest recipe of a stage."""

    loop: LoopSettings
    stage: str = "test"


class _Lines(Dataset[tuple[Tensor, Tensor]]):
    """y = 2x, one random point an index; point `poison` is not a number."""

    def __init__(self, poison: int = -1) -> None:
        self.poison = poison

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(1, generator=torch.Generator().manual_seed(index))
        return x, 2 * x * (float("nan") if index == self.poison else 1.0)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
    return {"square": (model(batch[0]) - batch[1]).square().mean()}


def _train(folder: Path, poison: int = -1, stage: str = "test", loss: Any = _loss, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    # Dropout makes the random state matter.
    model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    settings = replace(SETTINGS, **changes)
    recipe = _Recipe(loop=settings, stage=stage)
    fit(model, loss, _Lines(poison), settings, folder / "checkpoint.pt", recipe)
    return model


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_running_mean_weights_the_first_step_like_the_others() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=running_mean(0.9))
    values = [5.0, 1.0, 2.0, 4.0]
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    shares = [0.9**3, 0.9**2, 0.9, 1.0]
    expected = sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares)
    assert average.module.weight.item() == pytest.approx(expected)


def test_the_loss_falls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _train(tmp_path, steps=60)
    batch = torch.linspace(0, 1, 9)[:, None], 2 * torch.linspace(0, 1, 9)[:, None]
    assert _loss(model.eval(), batch)["square"] < 0.1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, precision: str) -> None:
    whole = _train(tmp_path / "whole", precision=precision, ema_decay=0.9)
    # Point 33 is in step 8's batch (indices 32 to 35): the run dies there, after the checkpoint of step 8.
    with pytest.raises(FloatingPointError, match=r"step 8: the loss is not finite \(square nan\)"):
        _train(tmp_path / "parts", poison=33, precision=precision, ema_decay=0.9)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 8
    assert _equal(whole, _train(tmp_path / "parts", precision=precision, ema_decay=0.9))
    means = [load_weights(tmp_path / part / "checkpoint.pt") for part in ("whole", "parts")]
    assert all(torch.equal(value, means[1][key]) for key, value in means[0].items())
    assert not torch.equal(means[0]["0.weight"], whole[0].weight)  # type: ignore[index]


def test_equal_seeds_give_equal_runs(tmp_path: Path) -> None:
    first = _train(tmp_path / "a")
    torch.rand(7)  # what happened before does not matter
    assert _equal(first, _train(tmp_path / "b"))
    assert not _equal(first, _train(tmp_path / "c", seed=4))  # other dropout


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        return {"root": (0 * model(batch[0]).sum()).abs().sqrt()}  # 0, with a slope of 0 times infinity

    with pytest.raises(FloatingPointError, match=r"step 0: the gradient is not finite \(root 0.000\)"):
        _train(tmp_path, loss=loss)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_mean_over_pixels_is_weighted_by_their_number(tmp_path: Path) -> None:
    def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        square = (model(batch[0]) - batch[1]).square()
        return {"square": Mean(square.sum(), torch.tensor(square.numel()))}

    assert Mean(torch.tensor(0.0), torch.tensor(0)).value == 0
    a, b = _train(tmp_path / "a", steps=4), _train(tmp_path / "b", steps=4, loss=counted)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_the_mean_over_no_items_is_0(tmp_path: Path) -> None:
    def nothing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        return {"none": Mean((0 * model(batch[0])).sum(), torch.tensor(0))}

    _train(tmp_path, loss=nothing)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    _train(tmp_path)
    with pytest.raises(ValueError, match=r"another recipe \(loop.learning_rate, stage\)"):
        _train(tmp_path, stage="other", learning_rate=0.1)
    with pytest.raises(ValueError, match="with 4 samples a step, this run takes 8"):
        _train(tmp_path, batch_size=8)
    torch.save({"weights": {}, "settings": {}, "card": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a training stage"):
        _train(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match="is not a checkpoint, or was cut short"):
        _train(tmp_path)


def test_a_checkpoint_without_a_loss_scale_can_be_resumed_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a CPU has no loss scale; a GPU that resumes it has one."""
    with pytest.raises(FloatingPointError):
        _train(tmp_path, poison=33)

    def refuse(self: Any, state: dict[str, Any]) -> None:
        torch.amp.GradScaler("cpu", enabled=True).load_state_dict(state)

    monkeypatch.setattr("lightning.fabric.plugins.Precision.load_state_dict", refuse)
    _train(tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 12


def test_a_checkpoint_gets_its_name_after_it_was_written_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append("sync"), sync(file)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append("name"), rename(self, to)))
    write(tmp_path / "a" / "checkpoint.pt", {"model": {}})
    assert seen == ["sync", "name", "sync"] and [p.name for p in (tmp_path / "a").iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_without_a_newer_setting_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "old" / "checkpoint.pt"
    with pytest.raises(FloatingPointError):
        _train(path.parent, poison=33)
    state = torch.load(path, weights_only=True)
    for key in ("betas", "log_every", "tensorboard"):
        del state["recipe"]["loop"][key]
    old = {k: state[k] for k in ("model", "average", "optimizer", "step", "recipe")}
    torch.save({**old, "random": torch.get_rng_state(), "random_cuda": []}, path)
    # How often it saves, what prepares its samples and what it logs decide nothing.
    resumed = _train(path.parent, checkpoint_every=5, log_every=1)
    assert _equal(resumed, _train(tmp_path / "whole"))
    state["recipe"]["gone"] = 1
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"another recipe \(gone"):
        _train(path.parent)


def test_a_finished_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = _train(tmp_path)
    recipe = _Recipe(loop=SETTINGS)
    assert is_finished(tmp_path / "checkpoint.pt", recipe)
    assert not is_finished(tmp_path / "checkpoint.pt", replace(recipe, stage="other"))
    assert not is_finished(tmp_path / "none.pt", recipe)
    assert _equal(first, _train(tmp_path))
    assert "all 12 steps done" in capsys.readouterr().out


def test_the_log_is_readable_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(tmp_path, log_every=5, tensorboard=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["5/12", "10/12", "12/12"]
    assert all(word in lines[0] for word in ("square", "gradient", "rate", "steps/s", "left"))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"square", "gradient", "learning_rate", "steps_per_second"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("square")] == [5, 10, 12]
    assert all(math.isfinite(e.value) for e in events.Scalars("gradient"))


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def measured(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    _train(tmp_path / "free", clip_norm=1000.0)
    assert len(norms) == 12 and max(norms) > 0.1
    norms.clear()
    _train(tmp_path / "clipped", clip_norm=0.05)
    assert len(norms) == 12 and max(norms) == pytest.approx(0.05, rel=1e-3)


def test_learning_rate_rises_and_falls() -> None:
    settings = LoopSettings(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, decay_power=1.0)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and rates[-1] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_half_precision_resumes_with_its_loss_scale(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", precision="16-mixed")
    with pytest.raises(FloatingPointError):
        _train(tmp_path / "parts", poison=33, precision="16-mixed")
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["scaler"]["scale"] > 1
    assert _equal(whole, _train(tmp_path / "parts", precision="16-mixed"))
