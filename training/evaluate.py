# SPDX-License-Identifier: Apache-2.0
"""Measure a bundle on labelled images, image level beside both levels, with the runtime that the vehicle runs.

python -m training.evaluate BUNDLE --data DATA --set camvid/val
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.config import replace
from nightlab_core.data import datasets
from nightlab_core.data.datasets import Sample
from nightlab_core.labels import ClassSet, in_class_set
from nightlab_core.metrics import confusion_matrix, iou, mean_iou, paired_bootstrap
from nightlab_core.runtime.bundle import load_bundle, write_manifest
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings


@dataclass(frozen=True)
class Evaluation:
    """Confusion matrices of every frame, (N, C, C + 1), by both methods."""

    name: str
    classes: ClassSet
    image_level: np.ndarray
    both_levels: np.ndarray

    def figures(self) -> dict[str, float]:
        """Mean IoU of both, in percent, and the difference with its 95 % interval."""
        difference, low, high = paired_bootstrap(self.image_level, self.both_levels)
        return {
            "image_level_miou": 100 * mean_iou(self.image_level.sum(0)),
            "both_levels_miou": 100 * mean_iou(self.both_levels.sum(0)),
            "difference": 100 * difference,
            "difference_low": 100 * low,
            "difference_high": 100 * high,
        }


def open_set(root: Path, name: str, pattern: str = "*") -> tuple[Sequence[Sample], ClassSet]:
    """A data set under `root`, and the class set that it is judged in.

    "nightcity_plus/val" is a split of a known data set, in the folder of its name (docs/datasets.md); "nightcoarse/val"
    is none, and so a plain folder of train ids.
    """
    head, _, split = name.partition("/")
    if head in datasets.DATASETS and head != "train_ids":
        return datasets.open_dataset(head, root / datasets.SHARED_FOLDERS.get(head, head), split, pattern)
    return datasets.open_dataset("train_ids", root, name, pattern)


def evaluate(pipeline: Pipeline, samples: Sequence[Sample], classes: ClassSet, name: str) -> Evaluation:
    """Run the pipeline on every sample, at the sample's own size."""
    image_level, both_levels = [], []
    for sample in track(samples, name, total=len(samples)):
        result = pipeline(sample.image_bgr)
        truth, first, both = (in_class_set(m, classes) for m in (sample.labels, result.image_labels, result.labels))
        image_level.append(confusion_matrix(truth, first, len(classes)))
        both_levels.append(confusion_matrix(truth, both, len(classes)))
    return Evaluation(name, classes, np.stack(image_level), np.stack(both_levels))


def print_evaluation(evaluation: Evaluation) -> None:
    """One table: IoU of every class in percent, then the mean; a class without a true pixel is shown as absent."""
    table = Table(title=f"{evaluation.name}, {len(evaluation.image_level)} frames, IoU in %")
    for column in ("class", "image level", "both levels", "difference"):
        table.add_column(column, justify="left" if column == "class" else "right")
    rows = zip(
        evaluation.classes.names, iou(evaluation.image_level.sum(0)), iou(evaluation.both_levels.sum(0)), strict=True
    )
    for class_name, a, b in rows:
        cells = (
            ("absent", "absent", "") if np.isnan(a) else (f"{100 * a:.1f}", f"{100 * b:.1f}", f"{100 * (b - a):+.1f}")
        )
        table.add_row(class_name, *cells)
    f = evaluation.figures()
    interval = f"{f['difference']:+.2f} [{f['difference_low']:+.2f}, {f['difference_high']:+.2f}]"
    table.add_section()
    table.add_row("mean", f"{f['image_level_miou']:.2f}", f"{f['both_levels_miou']:.2f}", interval)
    Console().print(table)


def record(bundle_dir: Path, figures: dict[str, dict[str, float]]) -> None:
    """Put measured figures into the bundle's manifest, over those of the same sets and beside those of others."""
    manifest = load_bundle(bundle_dir).manifest
    measured = {
        f"{name.replace('/', '_')}_{key}": round(value, 2)
        for name, values in figures.items()
        for key, value in values.items()
    }
    write_manifest(bundle_dir, replace(manifest, accuracy={**manifest.accuracy, **measured}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--set", action="append", required=True, help="for example camvid/val; may be given again")
    parser.add_argument("--pattern", default="*", help="glob of image names (default: all)")
    parser.add_argument("--engine", choices=("auto", "openvino", "onnxruntime"), default="auto")
    parser.add_argument("--precision", choices=("auto", "float32"), default="float32")
    parser.add_argument("--merge", choices=("replace", "confident"), default=PipelineSettings().merge)
    parser.add_argument("--max-regions", type=int, default=PipelineSettings().max_regions)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--record", action="store_true", help="write the figures into the bundle's manifest")
    arguments = parser.parse_args()
    settings = PipelineSettings(merge=arguments.merge, max_regions=arguments.max_regions)
    pipeline = Pipeline.open(
        arguments.bundle, engine=arguments.engine, precision=arguments.precision, settings=settings
    )
    figures = {}
    for name in arguments.set:
        samples, classes = open_set(arguments.data, name, arguments.pattern)
        name = name if arguments.pattern == "*" else f"{name}/{arguments.pattern}"
        evaluation = evaluate(pipeline, samples, classes, name)
        print_evaluation(evaluation)
        figures[name] = evaluation.figures()
    pipeline.close()
    if arguments.record:
        record(arguments.bundle, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
