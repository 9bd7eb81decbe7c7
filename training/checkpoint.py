# SPDX-License-Identifier: Apache-2.0
"""Read and write the checkpoint of a training stage, and check that a run may continue from it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from nightlab_core.config import Settings
from nightlab_core.files import atomic_path

#: Settings that may change between two parts of a run, since they do not affect the result. The batch of all processes
#: together is compared by itself: four processes may continue a run of one process with four times the batch.
_FREE = {f"loop.{name}" for name in ("batch_size", "workers", "checkpoint_every", "log_every", "tensorboard")}


def read(path: Path) -> dict[str, Any]:
    """Read the state in a checkpoint, on the CPU. Raises ValueError for another file."""
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a checkpoint, or was cut short; remove it, or name another")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not state.keys() & {"model", "weights"}:
        raise ValueError(f"{path} is not a checkpoint of a training stage or of a whole NightLab")
    return state


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Read the weights of a stage's checkpoint, their running mean if it has one, or of a whole NightLab's."""
    state = read(checkpoint)
    if state.get("average"):
        return {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}
    return state["weights"] if "weights" in state else state["model"]


def check_recipe(path: Path, state: dict[str, Any], recipe: Settings, batch: int) -> None:
    """Raise ValueError, naming the keys, if another recipe or batch (of all processes) made a checkpoint.

    A key that is newer than the checkpoint counts as its default.
    """
    if "recipe" not in state:
        raise ValueError(f"{path} is not a checkpoint of a training stage; choose another folder, or remove it")
    old = state["recipe"]
    if changed := _changes(old, recipe):
        raise ValueError(
            f"{path} was trained by another recipe ({', '.join(changed)}); choose another folder, or remove it"
        )
    before = state.get("batch", old["loop"]["batch_size"])
    if before != batch:
        raise ValueError(
            f"{path} was trained with {before} samples a step, this run takes {batch} (batch_size times processes); "
            "choose the batch size that gives as many, another folder, or remove it"
        )


def check_made_from(path: Path, state: dict[str, Any], made_from: Mapping[str, str]) -> None:
    """Raise ValueError if a checkpoint was made from other files than `made_from`, SHA-256 by key."""
    before = state.get("made_from", {})
    if changed := [key for key, digest in made_from.items() if before.get(key, digest) != digest]:
        raise ValueError(
            f"{path} was trained from another {' and another '.join(changed)}; choose another folder, or remove it"
        )


def is_finished(path: Path, recipe: Settings) -> bool:
    """Return whether a checkpoint is that of the last step of this recipe."""
    if not path.is_file():
        return False
    state = read(path)
    if "recipe" not in state or _changes(state["recipe"], recipe):
        return False
    return state["step"] >= state["recipe"]["loop"]["steps"]


def _changes(old: dict[str, Any], recipe: Settings) -> list[str]:
    """List the keys, with dots between depths, whose values differ and affect the result."""
    with suppress(ValidationError):  # keys or values that are unknown today are shown as differences
        old = type(recipe).model_validate(old, strict=False).model_dump(mode="json")
    before, now = _flat(old), _flat(recipe.model_dump(mode="json"))
    return sorted(k for k in (before.keys() | now.keys()) - _FREE if before.get(k) != now.get(k))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
