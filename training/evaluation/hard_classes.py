# SPDX-License-Identifier: Apache-2.0
"""Find the hard classes: those with an IoU below 0.5 on data held out from training (NightLab, CVPR 2022).

python -m training.evaluation.hard_classes runs/lite_image/checkpoint.pt --data DATA --set camvid/val \\
    --out runs/hard_classes.yaml

The model is the image level's checkpoint, which names its training data. A set that shares a frame with that data is
refused, and so is a test set, which would no longer be independent. Put the list into `hard_classes` of the recipes of
the region level and the detector.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.config import replace
from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.data.image_files import read_image
from nightlab_core.files import write_atomic
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix, iou
from nightlab_core.runtime.pipeline import Result
from training import checkpoint as checkpoints
from training.command import exit_on_error
from training.models import open_model
from training.sources import SourceSettings, open_source
from training.stages.segmenter import SegmenterRecipe

THRESHOLD = 0.5  #: the paper's
#: Mean difference in grey levels below which two small pictures are one: copies of another size or in JPEG differ by
#: less than 1.
SAME_PICTURE = 3.0


def refuse_test(name: str) -> None:
    """Raise ValueError for a set whose name says that it is a test set."""
    if re.search(r"(^|[/_\-.])test", name.lower()):
        raise ValueError(f"{name} is a test set; choose the hard classes on a val set, and keep this one to measure on")


def training_images(sources: Sequence[SourceSettings], data: Path, classes: ClassSet) -> list[Path]:
    """List the image files that a recipe's sources draw from."""
    complete = (replace(source, complete=False) for source in sources if source.kind != "rendered")
    return [path for source in complete for path in open_source(source, data, classes).images]


def refuse_trained_on(name: str, images: Sequence[Path], trained_on: Sequence[Path]) -> None:
    """Raise ValueError if a set shares a frame with the training images: a file, or a copy of equal name, any size."""
    of_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in trained_on:
        of_stem[path.stem].append(path)
    shared = [p for p in images if any(_same_picture(p, other) for other in of_stem[p.stem])]
    if shared:
        raise ValueError(
            f"{name}: the model was trained on {len(shared)} of its {len(images)} frames, such as {shared[0].name}; "
            "expected a set that was held out from training"
        )


def _same_picture(path: Path, other: Path) -> bool:
    small = [cv2.resize(read_image(p), (64, 36), interpolation=cv2.INTER_AREA).astype(float) for p in (path, other)]
    return bool(np.abs(small[0] - small[1]).mean() < SAME_PICTURE)


def class_iou(
    segment: Callable[[np.ndarray], Result],
    samples: Sequence[Sample],
    classes: ClassSet,
    name: str,
    predicted: ClassSet,
) -> np.ndarray:
    """Return the IoU of each class of `predicted`, the model's set, float64 (C,); NaN if the data set cannot tell.

    classes: of the samples' labels. A class of a smaller set stands for all of the model's classes that are
    evaluated as it: CamVid's sign is a traffic light or a traffic sign, and both get the IoU of sign.
    """
    matrix = np.zeros((len(classes), len(classes) + 1), np.int64)
    for sample in track(samples, name, total=len(samples)):
        found = segment(sample.image_bgr).image_labels
        matrix += confusion_matrix(sample.labels, to_class_set(found, predicted, classes), len(classes))
    evaluated_as = to_class_set(np.arange(len(predicted), dtype=np.uint8)[None], predicted, classes)[0]
    return np.append(iou(matrix), np.full(256 - len(classes), np.nan))[evaluated_as]


def hard_classes(
    found: dict[str, np.ndarray], names: Sequence[str], threshold: float = THRESHOLD
) -> tuple[list[str], np.ndarray]:
    """Return the classes whose mean IoU over the sets that hold them is below the threshold, in the order of `names`,
    and those means, float64 (C,); a class that no set holds is not called hard."""
    values = np.stack(list(found.values()))
    held = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(held, values, 0).sum(0) / held.sum(0)
    return [name for name, value in zip(names, mean, strict=True) if value < threshold], mean


def report(found: dict[str, np.ndarray], names: Sequence[str], hard: Sequence[str], mean: np.ndarray) -> None:
    """Print the IoU of every class on every set."""
    table = Table(title="IoU in %, image level")
    for i, column in enumerate(("class", *found, "mean", "")):
        table.add_column(column, justify="right" if i else "left")
    for i, name in enumerate(names):
        cells = ["absent" if np.isnan(v) else f"{100 * v:.1f}" for v in (*(f[i] for f in found.values()), mean[i])]
        table.add_row(name, *cells, "hard" if name in hard else "")
    Console().print(table)


def write_hard_classes(
    checkpoint: Path, data: Path, sets: Sequence[str], out: Path, *, partial: bool = False, threshold: float = THRESHOLD
) -> list[str]:
    """Measure an image level's checkpoint on data sets, print its IoU by class, write the hard classes to a YAML file.

    Returns their names. Raises ValueError for a test set, for a set that the checkpoint was trained on, and for a
    checkpoint that does not say what it was trained on.
    """
    state = checkpoints.read(checkpoint)
    if "recipe" not in state:
        raise ValueError(f"{checkpoint} does not say what it was trained on; expected the checkpoint of a stage")
    recipe = SegmenterRecipe.model_validate(state["recipe"], strict=False)
    predicted = recipe.model.classes
    trained_on = training_images(recipe.sources, data, predicted)
    found = {}
    with open_model(checkpoint) as model:
        for name in sets:
            refuse_test(name)
            samples, classes = open_set(data, name, complete=not partial)
            refuse_trained_on(name, samples.images, trained_on)
            found[name] = class_iou(model, samples, classes, name, predicted)
    hard, mean = hard_classes(found, predicted.names, threshold)
    report(found, predicted.names, hard, mean)
    measured = {n: round(float(v), 4) for n, v in zip(predicted.names, mean, strict=True) if not np.isnan(v)}
    line = yaml.safe_dump({"hard_classes": hard}, default_flow_style=None, width=10**6, sort_keys=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        out,
        f"# IoU below {threshold} on {', '.join(found)}, image level {checkpoint}\n{line}"
        + yaml.safe_dump({"iou": measured}, sort_keys=False),
    )
    print(f"{line.strip()}\nwritten to {out}; put the line into the recipes of the region level and the detector")
    return hard


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of the image level, as training.stages.segmenter writes it")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--set", action="append", required=True, help="for example camvid/val; may be given again")
    parser.add_argument("--partial", action="store_true", help="accept a data set that lacks frames")
    parser.add_argument("--below", type=float, default=THRESHOLD, help="IoU (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="YAML file to write")
    arguments = parser.parse_args()
    with exit_on_error():
        write_hard_classes(
            arguments.checkpoint,
            arguments.data,
            arguments.set,
            arguments.out,
            partial=arguments.partial,
            threshold=arguments.below,
        )


if __name__ == "__main__":
    main()
