# SPDX-License-Identifier: Apache-2.0
"""Networks and data sets so small that a stage trains in a second, and shipped recipes that are made to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from class_sets import CAMVID11, CITYSCAPES19

from nightlab_core.data.rendered import night
from nightlab_core.labels import to_class_set
from nightlab_core.models.checkpoint import ModelCard, save_checkpoint
from nightlab_core.models.nightlab import NightLabSettings
from training.recipes import read_recipe

RECIPES = Path(__file__).parents[2] / "config" / "train"
INPUT_HW = (64, 96)  #: size of the rendered frames, and working size of the networks
CROP_HW = (64, 64)
CARD = ModelCard(name="tiny", hard_classes=("pole",), trained_on=(), licence="none", input_hw=INPUT_HW)
DISCRIMINATOR = {"channels": 4, "layers": 1}


def tiny_settings(hdm_channels: int = 0, **changes: Any) -> NightLabSettings:
    """Settings of a NightLab with every part of the lite one, whose networks hold a few thousand weights."""
    tree = {
        "segmenter": {"channels": 8, "stages": 2, "strides": [4]},
        "relam": {"channels": 4, "blocks": 1},
        "detector": {
            "channels": 8,
            "stages": 2,
            "strides": [4],
            "anchor_sizes": [[16, 32]],
            "max_boxes": 20,
            "hdm_channels": hdm_channels,
        },
        "region_hw": list(CROP_HW),
    }
    return NightLabSettings.model_validate({**tree, **changes}, strict=False)


def write_tiny_checkpoint(path: Path, settings: NightLabSettings, seed: int = 0) -> Path:
    """Write a whole NightLab with random weights, and return the path."""
    torch.manual_seed(seed)
    save_checkpoint(path, settings.build(), settings, CARD)
    return path


def write_frames(folder: Path, count: int, *, first_seed: int = 0, camvid: bool = False) -> None:
    """Write rendered night frames and their labels to folder/{images,labels}/{seed}.png.

    camvid: write CamVid's ids, 11 for unlabelled pixels, instead of Cityscapes train ids.
    """
    for seed in range(first_seed, first_seed + count):
        frame = night.render_scene(seed, size_hw=INPUT_HW)
        labels = frame.labels
        if camvid:
            labels = to_class_set(labels, CITYSCAPES19, CAMVID11)
            labels = np.where(labels == 255, 11, labels).astype(np.uint8)
        for kind, picture in (("images", frame.image_bgr), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / kind / f"{seed}.png"), picture)


def tiny_recipe(name: str, *, steps: int = 2, **changes: Any) -> dict[str, Any]:
    """A recipe of config/train for tiny networks and data, two samples a step, without warm-up.

    changes: keys to replace, of which those that the recipe does not have are left out.
    """
    tree = read_recipe(RECIPES / f"{name}.yaml")
    hdm_channels = 8 if "hdm_channels" in tree["model"].get("detector", {}) else 0
    tree["model"] = tiny_settings(hdm_channels).model_dump(mode="json")
    if "loop" in tree:
        tree["loop"] |= {"steps": steps, "batch_size": 2, "warmup_steps": 0, "checkpoint_every": 1, "workers": 0}
        tree["loop"] |= {"tensorboard": False}
        tree |= {"input_hw": list(INPUT_HW)}
    if "level" in tree or "class_weights" in tree or "detector" in name:
        tree["crop_hw"] = list(CROP_HW)
    if "relam" in name:
        tree |= {"discriminator": DISCRIMINATOR}
    for light in ("image_light", "region_light"):
        if light in tree:
            tree[light] |= {"discriminator": DISCRIMINATOR}
    tree |= {"frames": 3, "per_frame": 4} if "hdm" in name and "bundle" not in name else {}
    tree |= {"per_frame": 2} if "joint" in name else {}
    if "card" in tree:
        tree["card"] |= {"input_hw": list(INPUT_HW)}
    return tree | {key: value for key, value in changes.items() if key in tree}


def write_recipe(path: Path, tree: dict[str, Any]) -> Path:
    """Write a recipe as YAML, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
