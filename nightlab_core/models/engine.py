# SPDX-License-Identifier: Apache-2.0
"""Run torch networks behind the `Engine` protocol, so that `Pipeline` runs on a checkpoint as it runs on a bundle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nightlab_core.models.checkpoint import ModelCard, load_checkpoint, manifest_of
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.engines.engine import TensorSpec, check_inputs
from nightlab_core.runtime.engines.open import Engines

#: The inputs of the engines' contract -> its outputs, both in its order.
TorchNetwork = Callable[..., tuple[Tensor, ...]]

#: Crops that a region network reads at once. With deformable convolution at the paper's size each takes 1.2 GB.
CROPS_AT_ONCE = 4


class TorchEngine:
    """A torch network with the names, dtypes and shapes of the bundle's contract."""

    name = "torch"
    arithmetic = "float32"  #: see `OpenVinoEngine.arithmetic`

    def __init__(
        self,
        kind: EngineKind,
        network: TorchNetwork,
        *,
        device: torch.device | str = "cpu",
        crop_hw: tuple[int, int] | None = None,
        crops_at_once: int = CROPS_AT_ONCE,
        context: bool = False,
    ) -> None:
        """Wrap one network, for example a method of `NightLab` in evaluation mode.

        Args:
            kind: which of the three networks it is.
            network: takes and returns tensors on `device`.
            device: where the network's weights are.
            crop_hw: (h, w) of a region network's crops; None accepts every size.
            crops_at_once: a region network reads its crops in batches of this size at most.
            context: an image network gives its probabilities, too; a region network reads them.
        """
        self._network: TorchNetwork | None = network
        self._device = torch.device(device)
        self._batch = crops_at_once if kind == "region" else 1
        self._lock = threading.Lock()
        uint8, float32 = np.dtype(np.uint8), np.dtype(np.float32)
        batch = None if kind == "region" else 1
        size = crop_hw if kind == "region" and crop_hw else (None, None)
        self.inputs: Mapping[str, TensorSpec] = {
            "crops" if kind == "region" else "frame": TensorSpec(uint8, (batch, *size, 3))
        }
        if kind == "region" and context:
            self.inputs = {**self.inputs, "context": TensorSpec(uint8, (None, None, None, None))}
        self.outputs: Mapping[str, TensorSpec]
        if kind == "hardness":
            self.outputs = {"boxes": TensorSpec(float32, (1, None, 4)), "scores": TensorSpec(float32, (1, None))}
        else:
            self.outputs = {name: TensorSpec(uint8, (batch, *size)) for name in ("labels", "confidence")}
        if kind == "image" and context:
            self.outputs = {**self.outputs, "probabilities": TensorSpec(uint8, (1, None, None, None))}

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing: torch compiles nothing ahead."""

    @torch.inference_mode()
    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        checked = check_inputs(f"{self.name} engine", self.inputs, arrays)
        inputs = [torch.tensor(checked[name]) for name in self.inputs]
        with self._lock:
            if self._network is None:
                raise RuntimeError(f"{self.name}: the engine is closed")
            batches = zip(*(one.split(self._batch) for one in inputs), strict=True)
            parts = [self._network(*(part.to(self._device) for part in batch)) for batch in batches]
        joined = (torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True))
        return dict(zip(self.outputs, joined, strict=True))

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._network = None


def torch_engines(model: NightLab, settings: NightLabSettings, card: ModelCard) -> Engines:
    """Return the engines of a NightLab on the device of its weights.

    The model is put into evaluation mode, and its deformable convolutions into the form `deform_conv`. The bundle of
    the engines has the manifest that export would write, and no files.
    """
    model.eval().set_deform_form("deform_conv")
    device = next(model.parameters()).device
    return Engines(
        Bundle(Path(), manifest_of(model, settings, card)),
        image=TorchEngine("image", model.image_level, device=device, context=settings.region_context),
        hardness=TorchEngine("hardness", model.hardness, device=device),
        region=TorchEngine(
            "region",
            model.region_level,
            device=device,
            crop_hw=None if card.further_hw else settings.region_hw,
            context=settings.region_context,
        ),
    )


def open_checkpoint(path: Path, device: torch.device | str = "cpu") -> Engines:
    """Open the checkpoint of a whole NightLab as engines on a device. Raises what `load_checkpoint` raises."""
    model, settings, card = load_checkpoint(path)
    return torch_engines(model.to(device), settings, card)
