# SPDX-License-Identifier: Apache-2.0
"""Check that a recipe trains at its full size on this machine, and measure time and memory.

python -m training.smoke config/train/nightcity_plus_swin_b/image.yaml --steps 2

Run the stage's own loop for a few steps on random images and labels. No data set and no ImageNet weights are needed.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nightlab_core.config import Settings, replace
from nightlab_core.models.deform import set_deform_form
from training.command import exit_on_error
from training.loop import Losses, fit
from training.recipes import load_recipe
from training.stages import detector, joint, relam, segmenter

Loss = Callable[[nn.Module, Any], Losses]
Collate = Callable[[list[Any]], Any]
TrainMode = Callable[[Any, Any], None]


class RandomImages(Dataset[Any]):
    """Random samples: sample i is `draw` of a generator seeded with i."""

    def __init__(self, draw: Callable[[torch.Generator], Any]) -> None:
        self.draw = draw

    def __getitem__(self, index: int) -> Any:
        return self.draw(torch.Generator().manual_seed(index))


def recipe_class(path: Path) -> type[Settings]:
    """Return the recipe's class by its file's name. Raises ValueError for one that trains no network from images."""
    if "relam" in path.stem:
        return relam.ReLAMRecipe
    stages: dict[str, type[Settings]] = {
        "image": segmenter.SegmenterRecipe,
        "region": segmenter.SegmenterRecipe,
        "detector": detector.DetectorRecipe,
        "joint": joint.JointRecipe,
    }
    stage = path.stem.split("_")[-1]
    if stage not in stages:
        raise ValueError(f"{path} is of stage {stage!r}; expected a recipe whose name ends in {', '.join(stages)}")
    return stages[stage]


def stage(recipe: Any) -> tuple[nn.Module, TrainMode, Loss, RandomImages, Collate | None]:
    """Return a recipe's network with random weights, its stage's `train_mode`, loss, random samples and collation."""
    windows = getattr(recipe, "level", "") == "region"
    size_hw = recipe.model.region_hw if windows else recipe.crop_hw

    def image(generator: torch.Generator) -> Tensor:
        return torch.rand(3, *size_hw, generator=generator)

    if isinstance(recipe, relam.ReLAMRecipe):
        pairs = RandomImages(lambda g: (image(g) / 4, image(g)))
        return relam.LightAdaptation(recipe), relam.train_mode, relam.adaptation_loss, pairs, None
    boxes = torch.tensor([[64.0, 32.0, 128.0, 160.0], [200.0, 100.0, 260.0, 140.0]])
    if isinstance(recipe, joint.JointRecipe):
        whole, samples = joint.Joint(recipe.model.build(), recipe), _joint_samples(recipe, boxes)
        return whole, joint.train_mode, joint.joint_loss, samples, joint.collate
    if isinstance(recipe, detector.DetectorRecipe):
        proposals = detector.ProposalLosses(recipe.model.build_detector())
        known = torch.ones(size_hw, dtype=torch.bool)
        samples = RandomImages(lambda g: (image(g), boxes, known))
        return proposals, detector.train_mode, detector.detection_loss, samples, detector.collate
    outputs = recipe.model.outputs(recipe.level)
    num_classes = len(recipe.model.classes)
    weight = segmenter.loss_weights(recipe.class_weights, outputs)

    def sample(generator: torch.Generator) -> tuple[Tensor, ...]:
        labels = torch.randint(0, num_classes, size_hw, generator=generator)
        return image(generator), labels

    samples = RandomImages(sample)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Losses:
        return segmenter.segmentation_loss(
            model, batch, weight.to(batch[0].device), outputs, recipe.lovasz_weight, recipe.loss_stride
        )

    return recipe.model.build_level(recipe.level), segmenter.train_mode, loss, samples, None


def _joint_samples(recipe: joint.JointRecipe, boxes: Tensor) -> RandomImages:
    num_classes = len(recipe.model.classes)

    def labelled(generator: torch.Generator, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, num_classes, size_hw, generator=generator)
        return torch.rand(3, *size_hw, generator=generator), labels

    def sample(generator: torch.Generator) -> joint.JointBatch:
        frame, window = (labelled(generator, hw) for hw in (recipe.crop_hw, recipe.model.region_hw))
        light = tuple((image / 4, image) for image in (frame[0], window[0]))
        return joint.JointBatch(*frame, [boxes], [0], *window, light)

    return RandomImages(sample)


def smoke(path: Path, steps: int, batch_size: int = 0, precision: str = "") -> dict[str, float]:
    """Run `steps` steps of a recipe; with `batch_size` or `precision`, with that instead of the recipe's.

    Returns seconds a step (the median from one start to the next; for a single step the whole run), millions of
    weights, and the peak memory in GB: of the process, and of the GPU if any.
    """
    recipe: Any = load_recipe(path, recipe_class(path))
    changes: dict[str, Any] = {"steps": steps, "warmup_steps": 0, "workers": 0, "tensorboard": False, "log_every": 1}
    changes |= ({"batch_size": batch_size} if batch_size else {}) | ({"precision": precision} if precision else {})
    recipe = replace(recipe, loop=replace(recipe.loop, **changes))
    model, train_mode, loss, samples, collate = stage(recipe)
    # The operator that a GPU trains with: grid_sample takes nine times the memory.
    set_deform_form(model, "deform_conv")
    train_mode(model, recipe)
    begins: list[float] = []

    def timed(model: nn.Module, batch: Any) -> Losses:
        # The loop reads every step's losses, so a GPU has finished the step before.
        begins.append(time.monotonic())
        return loss(model, batch)

    with tempfile.TemporaryDirectory() as folder:
        fit(model, timed, samples, recipe.loop, Path(folder) / "checkpoint.pt", recipe, collate)
        seconds = [after - before for before, after in itertools.pairwise(begins)] or [time.monotonic() - begins[0]]
    figures = {
        "batch_size": float(recipe.loop.batch_size),
        "seconds_per_step": statistics.median(seconds),
        "weights_million": sum(p.numel() for p in model.parameters()) / 1e6,
        "peak_process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    if torch.cuda.is_available():
        figures["peak_gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe whose name ends in image, region, detector or joint")
    parser.add_argument("--steps", type=int, default=2, help="steps to run (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=0, help="images a step (default: the recipe's)")
    parser.add_argument("--precision", default="", help="such as 32-true (default: the recipe's)")
    arguments = parser.parse_args()
    with exit_on_error():
        figures = smoke(arguments.recipe, arguments.steps, arguments.batch_size, arguments.precision)
    print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
