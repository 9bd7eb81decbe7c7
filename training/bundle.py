# SPDX-License-Identifier: Apache-2.0
"""Put the stages' checkpoints together into one NightLab checkpoint, which `nightlab_core.export` turns to a bundle.

python -m training.bundle config/train/lite_bundle.yaml --out checkpoints/nightlab-lite.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import Field
from torch import nn

from nightlab_core.config import Settings, load_yaml
from nightlab_core.export import ModelCard, save_checkpoint
from nightlab_core.models.nightlab import NightLab, NightLabSettings
from nightlab_core.output_labels import OutputLabels
from training.checkpoint import load_weights, read
from training.command import errors_in_words


class BundleRecipe(Settings):
    """Where the stages' checkpoints are, and what the bundle says of itself."""

    model: NightLabSettings
    image: str
    region: str
    detector: str
    #: Added to the region level's logits of these classes, chosen on val: its windows are crowded with hard classes in
    #: training, so that how likely each is has to be set right again (Menon et al., ICLR 2021).
    region_offsets: dict[str, float] = Field(default_factory=dict)
    card: ModelCard


def from_stages(recipe: BundleRecipe) -> NightLab:
    """The NightLab of the stages' weights. A stage without a checkpoint of its own yet is an error that names it."""
    model = recipe.model.build()
    _load(model.image, recipe.image, "image")
    _load(model.region, recipe.region, "region")
    if recipe.region_offsets:
        offset(model.region.segmenter, OutputLabels.of(recipe.model.region_classes).names, recipe.region_offsets)
    _load(model.detector, recipe.detector)
    return model


def offset(segmenter: nn.Module, names: tuple[str, ...], offsets: dict[str, float]) -> None:
    """Add to the bias of the segmenter's last convolution, whose output k is the logit of names[k]."""
    *_, classifier = (m for m in segmenter.modules() if isinstance(m, nn.Conv2d))
    if classifier.bias is None or len(classifier.bias) != len(names):
        raise ValueError(f"region_offsets: the segmenter ends in {classifier}, not in {len(names)} biased logits")
    for name, value in offsets.items():
        if name not in names:
            raise KeyError(f"region_offsets names {name!r}; the network tells apart {', '.join(names)}")
        classifier.bias.data[names.index(name)] += value


def assemble(recipe: BundleRecipe, out: Path) -> None:
    """Write the checkpoint."""
    save_checkpoint(out, from_stages(recipe), recipe.model, recipe.card)


def _load(network: nn.Module, path: str, level: str = "") -> None:
    """Raises FileNotFoundError, and ValueError for a checkpoint of another level or model, or of an unfinished run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; train that stage first, see docs/training.md")
    state = read(Path(path))
    trained = state.get("recipe", {})
    if level and trained.get("level", level) != level:
        raise ValueError(f"{path} is of the {trained['level']} level; expected one of the {level} level")
    if trained and state["step"] < trained["loop"]["steps"]:
        raise ValueError(f"{path} is of step {state['step']} of {trained['loop']['steps']}: finish that stage first")
    weights = {k.removeprefix("detector."): v for k, v in load_weights(Path(path)).items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the recipe's model: {error}") from None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    arguments = parser.parse_args()
    with errors_in_words():
        assemble(load_yaml(arguments.recipe, BundleRecipe), arguments.out)


if __name__ == "__main__":
    main()
