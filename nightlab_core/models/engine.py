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

#: Input uint8 (B, H, W, 3) BGR -> the two outputs of the engines' contract, in its order.
TorchNetwork = Callable[[Tensor], tuple[Tensor, Tensor]]

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
    ) -> None:
        """Wrap one network, for example a method of `NightLab` in evaluation mode.

        Args:
            kind: which of the three networks it is.
            network: takes and returns tensors on `device`.
            device: where the network's weights are.
            crop_hw: (h, w) of a region network's crops; None accepts every size.
            crops_at_once: a region network reads its crops in batches of this size at most.
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
        self.outputs: Mapping[str, TensorSpec]
        if kind == "hardness":
            self.outputs = {"boxes": TensorSpec(float32, (1, None, 4)), "scores": TensorSpec(float32, (1, None))}
        else:
            self.outputs = {name: TensorSpec(uint8, (batch, *size)) for name in ("labels", "confidence")}

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Do nothing: torch compiles nothing ahead."""

    @torch.inference_mode()
    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """See `Engine`."""
        (array,) = check_inputs(f"{self.name} engine", self.inputs, arrays).values()
        with self._lock:
            if self._network is None:
                raise RuntimeError(f"{self.name}: the engine is closed")
            parts = [self._network(part.to(self._device)) for part in torch.tensor(array).split(self._batch)]
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
        image=TorchEngine("image", model.image_level, device=device),
        hardness=TorchEngine("hardness", model.hardness, device=device),
        region=TorchEngine("region", model.region_level, device=device, crop_hw=settings.region_hw),
    )


def open_checkpoint(path: Path, device: torch.device | str = "cpu") -> Engines:
    """Open the checkpoint of a whole NightLab as engines on a device. Raises what `load_checkpoint` raises."""
    model, settings, card = load_checkpoint(path)
    return torch_engines(model.to(device), settings, card)
