# SPDX-License-Identifier: Apache-2.0
"""Combine the stages' checkpoints into one checkpoint of a whole NightLab, which the export turns into a bundle.

python -m training.combine_checkpoints config/train/lite_hdm_bundle.yaml --out runs/nightlab-lite.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from nightlab_core.config import Settings, replace
from nightlab_core.models.checkpoint import ModelCard, save_checkpoint
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from training.checkpoint import load_weights, read
from training.command import exit_on_error
from training.recipes import load_recipe

Part = Literal["image", "region", "detector"]


class CombineRecipe(Settings):
    """The stages' checkpoints, and the card of the bundle."""

    model: NightLabSettings
    #: A level's checkpoint: of its stage, or of a whole NightLab. The weights of several are averaged: the mean of the
    #: weights before and after a training often generalises better than either (Wortsman et al., CVPR 2022).
    image: str | tuple[str, ...]
    region: str | tuple[str, ...]
    detector: str
    #: Added to the region level's logits of these classes, chosen on val: training windows hold many hard classes, so
    #: the prior of each must be corrected (Menon et al., ICLR 2021).
    region_offsets: dict[str, float] = Field(default_factory=dict)
    card: ModelCard


def load_stages(recipe: CombineRecipe) -> NightLab:
    """Build the NightLab of the stages' weights, without offsets on the region level's logits.

    Raises FileNotFoundError for a missing checkpoint, ValueError for one that does not fit.
    """
    model = recipe.model.build()
    load_part(model.image, recipe.image, "image", recipe.model)
    load_part(model.region, recipe.region, "region", recipe.model)
    load_part(model.detector, recipe.detector, "detector", recipe.model)
    return model


def shift_logits(segmenter: nn.Module, names: tuple[str, ...], offsets: dict[str, float]) -> None:
    """Add to the bias of the segmenter's last convolution, whose output k is the logit of names[k]."""
    *_, classifier = (m for m in segmenter.modules() if isinstance(m, nn.Conv2d))
    if classifier.bias is None or len(classifier.bias) != len(names):
        raise ValueError(f"region_offsets: the segmenter ends in {classifier}, not in {len(names)} biased logits")
    for name, value in offsets.items():
        if name not in names:
            raise KeyError(f"region_offsets names {name!r}; the network distinguishes {', '.join(names)}")
        classifier.bias.data[names.index(name)] += value


def write_checkpoint(model: NightLab, recipe: CombineRecipe, out: Path) -> None:
    """Write the checkpoint of a whole NightLab, to whose region level the recipe's offsets are added."""
    if recipe.region_offsets:
        shift_logits(model.region.segmenter, recipe.model.outputs("region").names, recipe.region_offsets)
    save_checkpoint(out, model, recipe.model, replace(recipe.card, region_offsets=recipe.region_offsets))


def combine_checkpoints(recipe: CombineRecipe, out: Path) -> None:
    """Combine the checkpoints that the recipe names, and write the result to `out`."""
    write_checkpoint(load_stages(recipe), recipe, out)


def load_part(network: nn.Module, paths: str | tuple[str, ...], part: Part, settings: NightLabSettings) -> None:
    """Load a checkpoint's weights into a network, or the mean of several. Raises as `load_stages`."""
    found = [_weights(network, path, part, settings) for path in ((paths,) if isinstance(paths, str) else paths)]
    mean = {k: sum(weights[k].double() for weights in found) / len(found) for k in found[0]}
    network.load_state_dict({k: v.to(found[0][k].dtype) for k, v in mean.items()})  # type: ignore[union-attr]


def _weights(network: nn.Module, path: str, part: Part, settings: NightLabSettings) -> dict[str, Tensor]:
    """Raises FileNotFoundError, and ValueError for a checkpoint of another level or model, or of an unfinished run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train that stage first, see docs/training.md")
    state = read(Path(path))
    trained = state.get("recipe", {})
    if trained.get("level", part) != part:
        raise ValueError(f"{path} is of the {trained['level']} level; expected the {part} level's")
    if trained and state["step"] < trained["loop"]["steps"]:
        raise ValueError(f"{path} is of step {state['step']} of {trained['loop']['steps']}: finish that stage first")
    weights = load_weights(Path(path))
    own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
    try:
        network.load_state_dict(own or weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the recipe's model: {error}") from None
    if stored := state.get("settings") or trained.get("model"):
        before = _beyond_shapes(NightLabSettings.model_validate(stored, strict=False), part)
        now = _beyond_shapes(settings, part)
        if changed := [f"{key} {before[key]}, not {now[key]}" for key in now if before[key] != now[key]]:
            raise ValueError(f"{path} was trained with {'; '.join(changed)}; correct the recipe's model")
    if part == "region" and own and (added := state.get("card", {}).get("region_offsets")):
        names = settings.outputs("region").names
        shift_logits(network.get_submodule("segmenter"), names, {name: -value for name, value in added.items()})
        return {k: v.clone() for k, v in network.state_dict().items()}
    return own or weights


def _beyond_shapes(settings: NightLabSettings, part: Part) -> dict[str, object]:
    """Return the settings that decide how a part's weights are used and do not show in their shapes."""
    if part == "detector":
        keys = ("strides", "anchor_sizes", "aspect_ratios", "reduction")
        return {f"model.detector.{key}": getattr(settings.detector, key) for key in keys}
    found: dict[str, object] = {
        "model.classes": settings.classes.names,
        "model.relam.reduction": settings.relam and settings.relam.reduction,
    }
    if part == "image":
        segmenter, name = settings.segmenter, "segmenter"
    else:
        segmenter, name = settings.region_segmenter or settings.segmenter, "region_segmenter"
        found["model.region_classes"] = settings.region_classes
    return found | {f"model.{name}.{key}": getattr(segmenter, key) for key in ("strides", "output_stride")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    with exit_on_error():
        combine_checkpoints(load_recipe(arguments.recipe, CombineRecipe), arguments.out)


if __name__ == "__main__":
    main()
