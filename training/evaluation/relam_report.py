# SPDX-License-Identifier: Apache-2.0
"""Measure a trained light adaptation on images that it has not seen, and draw a contact sheet.

python -m training.evaluation.relam_report config/train/relam_image.yaml --data DATA --out runs/relam_image

Read OUT/checkpoint.pt and the recipe's `check_night` and `check_day`. Write OUT/report.json and OUT/report.jpg, whose
columns are night, adapted, and the light map (grey means no change).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from nightlab_core.data.hard_regions import hard_regions
from nightlab_core.files import write_atomic
from nightlab_core.models.nightlab import to_image
from nightlab_core.runtime import regions
from training.command import exit_on_error
from training.loop import load_weights
from training.recipes import load_recipe
from training.sources import SourceSettings, load_source
from training.stages.relam import LightAdaptation, ReLAMRecipe

HIGHLIGHT = 0.8  #: luminance, 0..1, from which a pixel is a lamp or a lit sign
_LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722]).reshape(3, 1, 1)  # Rec. 709, of RGB


def check_images(recipe: ReLAMRecipe, sources: Sequence[SourceSettings], data: Path, count: int) -> Iterator[Tensor]:
    """`count` images (1, 3, H, W) RGB in 0..1 of a source each: frames at the working size, or windows around the
    hardest regions, cut as the pipeline cuts them."""
    classes = recipe.model.classes
    hard = classes.ids_of(recipe.hard_classes)
    for source in sources:
        samples = load_source(source, data, classes)
        for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int):
            sample = samples[int(i)]
            if recipe.level == "image":
                size_hw = regions.network_size_hw(sample.image_bgr.shape[:2], recipe.input_hw, 32)
                image = regions.resize_image(sample.image_bgr, size_hw)[None]
            else:
                boxes = hard_regions(sample.labels, hard)
                if not len(boxes):
                    continue
                largest = boxes[[(boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()]]
                h, w = recipe.model.region_hw
                windows = regions.context_boxes(largest, sample.labels.shape, 0.2, w / h)
                image = regions.crop_and_enlarge(sample.image_bgr, windows, (h, w))
            yield to_image(torch.from_numpy(np.ascontiguousarray(image)))


@torch.inference_mode()
def measure(model: LightAdaptation, night: Sequence[Tensor], day: Sequence[Tensor]) -> dict[str, float]:
    """Means over images (1, 3, H, W): SSIM, luminance in 0..1, the discriminator's score (0 night, 1 day)."""
    model.eval()
    rows: dict[str, list[Tensor]] = {}

    def note(key: str, value: Tensor) -> None:
        rows.setdefault(key, []).append(value)

    for kind, images in (("night", night), ("day", day)):
        for image in images:
            adapted = model.generator(image)
            light, light_adapted = ((x * _LUMINANCE).sum(1) for x in (image, adapted))
            note(f"{kind}_ssim", model.similarity(adapted, image))
            note(f"{kind}_luminance", light.mean())
            note(f"{kind}_luminance_adapted", light_adapted.mean())
            note(f"{kind}_score", model.discriminator(image).mean())
            note(f"{kind}_score_adapted", model.discriminator(adapted).mean())
            if kind == "night" and (bright := light > HIGHLIGHT).any():
                note("highlights_luminance", light[bright].mean())
                note("highlights_luminance_adapted", light_adapted[bright].mean())
    return {key: round(float(torch.stack(values).mean()), 4) for key, values in rows.items()}


@torch.inference_mode()
def contact_sheet(model: LightAdaptation, images: Sequence[Tensor], width: int = 420) -> np.ndarray:
    """One row an image: as it was, adapted, and the light map round grey; uint8 (rows, 3 * width, 3) BGR."""
    rows = []
    for image in images:
        shown = torch.cat([image, model.generator(image), model.generator.light_map(image) / 2 + 0.5], 3)[0]
        bgr = (shown.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()[..., ::-1]
        rows.append(cv2.resize(bgr, (3 * width, round(bgr.shape[0] * 3 * width / bgr.shape[1]))))
    return np.concatenate(rows)


def report(recipe: ReLAMRecipe, data: Path, out: Path, count: int = 16, rows: int = 8) -> dict[str, float]:
    """Measure OUT/checkpoint.pt on `count` images of each check source, and write report.json and report.jpg."""
    model = LightAdaptation(recipe)
    model.load_state_dict(load_weights(out / "checkpoint.pt"))
    night = list(check_images(recipe, recipe.check_night, data, count))
    day = list(check_images(recipe, recipe.check_day, data, count))
    if not night or not day:
        raise ValueError("check_night or check_day of the recipe gives no image; name a set for each")
    figures = measure(model, night, day)
    write_atomic(out / "report.json", json.dumps(figures, indent=1) + "\n")
    cv2.imwrite(str(out / "report.jpg"), contact_sheet(model, night[:: max(1, len(night) // rows)][:rows]))
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the stage's checkpoint")
    parser.add_argument("--count", type=int, default=16, help="images of each source (default: %(default)s)")
    arguments = parser.parse_args()
    with exit_on_error():
        recipe = load_recipe(arguments.recipe, ReLAMRecipe)
        for name, value in report(recipe, arguments.data, arguments.out, arguments.count).items():
            print(f"{name:32s}{value:8.4f}")


if __name__ == "__main__":
    main()
