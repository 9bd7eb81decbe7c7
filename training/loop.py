# SPDX-License-Identifier: Apache-2.0
"""The training loop that every stage shares: AdamW, polynomial decay, mixed precision, clipping, exact resume, and
as many processes as torchrun starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric, seed_everything
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from nightlab_core.config import Settings
from training import checkpoint as checkpoints
from training.checkpoint import load_weights
from training.distributed import start_fabric, synchronise_batch_norm
from training.step_log import StepLog

__all__ = ["LoopSettings", "Losses", "Mean", "fit", "learning_rate_at", "load_weights"]

#: A loss scale below this means that the gradients themselves overflow, not only their scaled form.
LEAST_LOSS_SCALE = 2.0**-10


class Mean(NamedTuple):
    """Loss that is a mean over items whose number differs between processes, such as labelled pixels."""

    total: Tensor  #: scalar, the sum
    number: Tensor  #: scalar, the number of items

    @property
    def value(self) -> Tensor:
        """Return the mean in this process, 0 if there are no items."""
        return self.total / self.number.clamp(min=1)


#: Losses by name, to be added up. A plain scalar is a mean over the process's samples.
Losses = Mapping[str, Tensor | Mean]


class LoopSettings(Settings):
    """Settings of the training loop."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)  #: samples a step of one process
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.999)  #: AdamW's decay rates of the means of gradients and of their squares
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=50, ge=0)
    decay_power: float = Field(default=0.9, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)  #: decay rate of the running mean of the weights; 0: no mean
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)
    workers: int = Field(default=1, ge=0)  #: processes that prepare samples, beside each training process
    log_every: int = Field(default=20, ge=1)  #: steps from one line of the log to the next
    tensorboard: bool = True  #: write losses, learning rate and speed beside the checkpoint


class _Share(Sampler[int]):
    """This process's samples of the steps `first` to `steps`.

    A sample is a function of its index, so a resumed run only counts on. Process r of n takes every n-th index from r
    on, so a step has the same samples for any n.
    """

    def __init__(self, first: int, steps: int, batch_size: int, rank: int, processes: int) -> None:
        batch = batch_size * processes
        self.indices = range(first * batch + rank, steps * batch, processes)

    def __iter__(self) -> Any:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Return the rate of a step: linear warm-up, then polynomial decay to zero at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (1 - progress) ** settings.decay_power


def running_mean(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], int | Tensor], None]:
    """Return an update of the weights' running mean in which every step counts `decay` times the step after it.

    This includes the first step: otherwise the first weights of a short run would be a large part of its mean.
    """

    @torch.no_grad()
    def update(means: Sequence[Tensor], weights: Sequence[Tensor], seen: int | Tensor) -> None:
        share = (1 - decay) / (1 - decay ** (int(seen) + 1))
        for mean, weight in zip(means, weights, strict=True):
            mean.lerp_(weight, share)

    return update


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Any], Losses],
    data: Dataset[Any],
    settings: LoopSettings,
    checkpoint: Path,
    recipe: Settings,
    collate: Callable[[list[Any]], Any] | None = None,
    made_from: Mapping[str, str] | None = None,
) -> None:
    """Train `model` in place, continuing from `checkpoint` if that file exists, and write the final state to it.

    data[i] is the i-th training sample, for any i. loss_of calls the model once and returns named losses, which are
    added up. Seed, step and process decide what a step draws at random (dropout). The checkpoint carries model,
    optimiser, step and `recipe`, of which `settings` are a part, and is replaced whole; only the first process writes.
    made_from: SHA-256 of files that the run learns from, by the recipe's key; a checkpoint that was made from others is
    refused. Normalisation in training mode uses all processes' statistics; one that the caller put into evaluation mode
    stays there.

    Raises FloatingPointError, naming step and losses, for a loss or gradient that is not finite; ValueError if another
    recipe or batch made the checkpoint.
    """
    fabric = start_fabric(settings.precision)
    synchronise_batch_norm(model, fabric)
    run = _Run(model, settings, fabric, checkpoint, recipe, dict(made_from or {}))
    first = run.resume() if checkpoint.is_file() else 0
    batches = DataLoader(
        data,
        batch_size=settings.batch_size,
        sampler=_Share(first, settings.steps, settings.batch_size, fabric.global_rank, fabric.world_size),
        num_workers=settings.workers,
        collate_fn=collate,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # without one, it would draw from the step's
    )
    board = checkpoint.parent if settings.tensorboard else None
    with StepLog(first, settings.steps, settings.log_every, board, shown=fabric.is_global_zero) as log:
        for step, batch in enumerate(batches, start=first):
            done = step + 1
            log.update(done, *run.step(step, batch, loss_of))
            if fabric.is_global_zero and (done % settings.checkpoint_every == 0 or done == settings.steps):
                run.save(done)
    fabric.barrier()  # every process may read the last checkpoint after this


class _Run:
    """The state of a training run: model, optimiser, running mean of the weights and loss scale."""

    def __init__(
        self,
        model: nn.Module,
        settings: LoopSettings,
        fabric: Fabric,
        checkpoint: Path,
        recipe: Settings,
        made_from: Mapping[str, str],
    ) -> None:
        self.model, self.settings, self.fabric = model, settings, fabric
        self.checkpoint, self.recipe, self.made_from = checkpoint, recipe, made_from
        self.total_batch = settings.batch_size * fabric.world_size  #: of all processes
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.average: AveragedModel | None = None
        if settings.ema_decay:
            self.average = AveragedModel(model, multi_avg_fn=running_mean(settings.ema_decay), use_buffers=False)
        self.precision = fabric.strategy.precision

    def resume(self) -> int:
        """Load the checkpoint and return its step. Raises ValueError if another recipe, batch or input made it."""
        state = checkpoints.read(self.checkpoint)
        checkpoints.check_recipe(self.checkpoint, state, self.recipe, self.total_batch)
        checkpoints.check_made_from(self.checkpoint, state, self.made_from)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state.get("scaler"):  # a run that started on a CPU has none
            self.precision.load_state_dict(state["scaler"])
        return state["step"]

    def save(self, done: int) -> None:
        """Write the checkpoint after `done` steps."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.state_dict(),
            "step": done,
            "batch": self.total_batch,
            "recipe": self.recipe.model_dump(mode="json"),
            "made_from": dict(self.made_from),
        }
        checkpoints.write(self.checkpoint, state)

    def step(
        self, step: int, batch: Any, loss_of: Callable[[nn.Module, Any], Losses]
    ) -> tuple[dict[str, float], float, float]:
        """Train on one batch. Return the losses by name, the learning rate and the norm of the gradient."""
        _seed(self.settings.seed, step, self.fabric.global_rank)
        rate = learning_rate_at(step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, values = _mean_over_processes(loss_of(self.wrapped, self.fabric.to_device(batch)), self.fabric)
        _check_finite(step, values, all(map(math.isfinite, values.values())), "loss")
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        gradient = float(norm) if norm is not None else math.nan
        scaler = getattr(self.precision, "scaler", None)
        # In float16 the scaler leaves out a step whose scaled gradients overflow, and scales less from then on.
        healthy = math.isfinite(gradient) if scaler is None else scaler.get_scale() >= LEAST_LOSS_SCALE
        _check_finite(step, values, healthy, "gradient")
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return values, rate, gradient


def _seed(seed: int, step: int, rank: int) -> None:
    """Start a new random state, so that a checkpoint need not hold one."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0]), verbose=False)


def _mean_over_processes(losses: Losses, fabric: Fabric) -> tuple[Tensor, dict[str, float]]:
    """Return the loss to differentiate in this process, and the value of every loss over all processes.

    Processes exchange the mean of their gradients. With this loss it is the gradient of the mean over all items, as in
    one process.
    """
    parts = [loss if isinstance(loss, Mean) else Mean(loss, torch.ones_like(loss)) for loss in losses.values()]
    totals = torch.stack([part.total.float() for part in parts])
    counts = torch.stack([part.number.to(totals) for part in parts])
    sums: Any = fabric.all_reduce(torch.stack([totals.detach(), counts]), reduce_op="sum")
    all_totals, all_counts = sums[0], sums[1].clamp(min=1)
    loss = (totals * (fabric.world_size / all_counts)).sum()
    return loss, dict(zip(losses, (all_totals / all_counts).tolist(), strict=True))


def _check_finite(step: int, losses: dict[str, float], finite: bool, what: str) -> None:
    if not finite:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
        raise FloatingPointError(
            f"step {step}: the {what} is not finite ({shown}); the checkpoint of an earlier step is kept. "
            "Lower the learning rate, or look at the batch"
        )
