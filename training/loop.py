# SPDX-License-Identifier: Apache-2.0
"""The training loop that every stage shares: AdamW, polynomial decay, clipping, checkpoints, exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric, seed_everything
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler

from nightlab_core.config import Settings

Losses = dict[str, Tensor]


class LoopSettings(Settings):
    """How a stage is trained."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    decay_power: float = Field(default=0.9, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  #: of the running mean of the weights that is kept; 0: none
    precision: str = "32-true"
    seed: int = 0
    checkpoint_every: int = Field(default=200, ge=1)
    workers: int = Field(default=1, ge=0)


class _Range(Sampler[int]):
    """Samples start, start + 1, ...: a sample is a function of its index, so that resuming is counting on."""

    def __init__(self, start: int, stop: int) -> None:
        self.indices = range(start, stop)

    def __iter__(self) -> Any:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, then polynomial decay to zero at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (1 - progress) ** settings.decay_power


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Losses],
    data: Dataset[Any],
    settings: LoopSettings,
    checkpoint: Path,
    recipe: dict[str, Any],
    collate: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Train `model` in place, from `checkpoint` on where that file exists, and leave the final state in it.

    data[i] is the i-th training sample, for any i; it alone decides what is seen. loss_of returns named losses, which
    are added up. The checkpoint carries model, optimiser, step, random state and `recipe`, and is replaced whole.
    Raises FloatingPointError, naming step and losses, on a loss that is not finite; ValueError where the checkpoint
    was made by another recipe.
    """
    fabric = Fabric(accelerator="auto", devices=1, precision=settings.precision)  # type: ignore[arg-type]
    fabric.launch()
    seed_everything(settings.seed, verbose=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    wrapped, optimizer = fabric.setup(model, optimizer)
    average: AveragedModel | None = None
    if settings.ema_decay:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=False)

    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != recipe:
            raise ValueError(f"{checkpoint} was trained by another recipe; choose another folder, or remove it")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])
        first = state["step"]

    batches = DataLoader(
        data,
        batch_size=settings.batch_size,
        sampler=_Range(first * settings.batch_size, settings.steps * settings.batch_size),
        num_workers=settings.workers,
        collate_fn=collate,
        # Its own, or it would draw from the state that a resumed run has just taken up.
        generator=torch.Generator(),
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=settings.steps, completed=first)
        for step, batch in enumerate(batches, start=first):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, settings)
            losses = loss_of(wrapped, fabric.to_device(batch))
            total = torch.stack(list(losses.values())).sum()
            shown = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            if not math.isfinite(total.item()):
                raise FloatingPointError(
                    f"step {step}: the loss is not finite ({shown}); the checkpoint of an earlier step is kept. "
                    "Lower the learning rate, or look at the batch"
                )
            optimizer.zero_grad()
            fabric.backward(total)
            fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            progress.update(task, advance=1, description=shown)
            if step % 20 == 0:
                progress.console.print(f"step {step} {shown}")
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                _save(checkpoint, model, average, optimizer, step + 1, recipe)


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a stage's checkpoint: their running mean where it kept one. Also reads a whole NightLab's."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state.get("average"):
        return {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
    return state["weights"] if "weights" in state else state["model"]


def _save(
    path: Path, model: nn.Module, average: AveragedModel | None, optimizer: Any, step: int, recipe: dict[str, Any]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),
        "recipe": recipe,
    }
    torch.save(state, temporary)
    temporary.replace(path)
