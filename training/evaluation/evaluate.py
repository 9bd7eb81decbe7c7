# SPDX-License-Identifier: Apache-2.0
"""Measure a bundle or a checkpoint on labelled images, image level beside both levels.

python -m training.evaluation.evaluate BUNDLE --data DATA --set camvid/val
python -m training.evaluation.evaluate runs/lite_image/checkpoint.pt --data DATA --set camvid/val --flip

A bundle runs as in the vehicle, a checkpoint (of a whole NightLab or of an image-level stage) in torch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.classes import DEFAULT, load_class_set
from nightlab_core.config import replace
from nightlab_core.data.datasets import catalogue
from nightlab_core.data.datasets.paired import LabelledImages, Sample
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix, iou
from nightlab_core.runtime.bundle import load_bundle, write_manifest
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.light import light_level
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings
from training.command import exit_on_error
from training.evaluation import levels
from training.evaluation.figures import Difference, by_class, by_part, difference, percent
from training.evaluation.predictor import Predictor, open_checkpoint
from training.evaluation.sliding import TestTime


@dataclass(frozen=True)
class Evaluation:
    """Confusion matrices of N frames, (N, C, C + 1), by each method."""

    name: str
    classes: ClassSet
    frames: tuple[str, ...]
    light: np.ndarray  #: float64 (N,): light level of each frame
    image_level: np.ndarray
    both_levels: np.ndarray | None  #: None for a model that has an image level alone

    def figures(self) -> dict[str, float]:
        """Mean IoU in percent, and where there are both levels their difference, with its 95 % interval if frames
        are enough."""
        found = {"image_level_miou": percent(self.image_level)}
        if self.both_levels is not None:
            d = difference(self.image_level, self.both_levels)
            found |= {"both_levels_miou": percent(self.both_levels)}
            found |= {"difference": d.points}
            if d.low is not None and d.high is not None:
                found |= {"difference_low": d.low, "difference_high": d.high}
        return found

    def report(self) -> dict[str, Any]:
        """`figures`, and the same by class and by part of the set (named parts, light levels)."""
        # An image level alone is laid beside itself, so that one form serves both.
        second = self.image_level if self.both_levels is None else self.both_levels
        by_name = {"frames": len(self.frames), "by_class": by_class(self.classes, self.image_level, second)}
        parts = by_part(self.name, self.frames, self.light, self.image_level, second)
        return {**self.figures(), **by_name, "by_part": parts}


def open_set(
    root: Path, name: str, pattern: str = "*", complete: bool = True, classes: ClassSet | None = None
) -> tuple[LabelledImages, ClassSet]:
    """Open a data set under `root`: return its samples, and the class set of their labels, in which it is judged.

    "nightcity_plus/val" is a split of a known data set, in the folder of its name (docs/datasets.md). Any other name,
    such as "nightcoarse/val", is a plain folder with labels of the set `classes` (default: cityscapes19).
    `complete=False` takes a part of a known data set.
    """
    head, _, split = name.partition("/")
    if head in catalogue.DATASETS:
        return catalogue.open_dataset(head, root / catalogue.DATASETS[head].folder, split, pattern, complete)
    return catalogue.open_dataset("train_ids", root, name, pattern, folder_classes=classes or load_class_set(DEFAULT))


def evaluate(
    predict: Predictor, samples: Sequence[Sample], classes: ClassSet, name: str, predicted: ClassSet
) -> Evaluation:
    """Run a model on every sample, at the sample's own size.

    classes: of the samples' labels, in which results are judged. predicted: of the model's labels.
    """
    frames, light = [], []
    image_level: list[np.ndarray] = []
    both_levels: list[np.ndarray] = []
    for sample in track(samples, name, total=len(samples)):
        found = predict(sample.image_bgr)
        frames.append(sample.name)
        light.append(light_level(sample.image_bgr))
        for labels, matrices in ((found.image_labels, image_level), (found.labels, both_levels)):
            if labels is not None:
                mapped = to_class_set(labels, predicted, classes)
                matrices.append(confusion_matrix(sample.labels, mapped, len(classes)))
    both = np.stack(both_levels) if both_levels else None
    return Evaluation(name, classes, tuple(frames), np.array(light), np.stack(image_level), both)


def print_evaluation(evaluation: Evaluation) -> None:
    """Two tables: IoU of every class in percent and the mean, then the mean by part of the set.

    A class without a true pixel is shown as absent.
    """
    report, both = evaluation.report(), evaluation.both_levels is not None
    title = f"{evaluation.name}, {report['frames']} frames, IoU in %"
    if not both:
        table = _table(title, "class", "image level")
        for name, value in zip(evaluation.classes.names, iou(evaluation.image_level.sum(0)), strict=True):
            table.add_row(name, "absent" if np.isnan(value) else f"{100 * value:.1f}")
        table.add_section()
        table.add_row("mean", f"{report['image_level_miou']:.2f}")
        for part in report["by_part"]:
            table.add_row(f"{part['name']} ({part['frames']} frames)", f"{part['first']:.2f}")
        Console().print(table)
        return
    table = _table(title, "class", "image level", "both levels", "difference")
    for row in report["by_class"]:
        table.add_row(row["name"], *(("absent", "absent", "") if row["first"] is None else _cells(row, 1)))
    table.add_section()
    whole = difference(evaluation.image_level, evaluation.both_levels)  # type: ignore[arg-type]  # there are both
    table.add_row("mean", f"{report['image_level_miou']:.2f}", f"{report['both_levels_miou']:.2f}", str(whole))
    Console().print(table)
    table = _table("mean IoU by part", "part", "image level", "both levels", "difference")
    for row in report["by_part"]:
        table.add_row(f"{row['name']}, {row['span']} ({row['frames']} frames)", *_cells(row, 2))
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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _cells(row: dict[str, Any], digits: int) -> tuple[str, str, str]:
    first, second = (f"{row[key]:.{digits}f}" for key in ("first", "second"))
    return first, second, str(Difference(**row["difference"]))


def evaluate_model(
    model: Path,
    data: Path,
    sets: Sequence[str],
    *,
    pattern: str = "*",
    partial: bool = False,
    classes: str | None = None,
    engine: EngineChoice = "auto",
    precision: Literal["auto", "float32"] = "float32",
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    test_time: TestTime = TestTime(),  # noqa: B008 - frozen
    record_figures: bool = False,
    json_path: Path | None = None,
) -> dict[str, Evaluation]:
    """Measure a bundle or a checkpoint on data sets, print a table for each, and return the evaluations by set.

    Args:
        model: folder of a bundle, or file of a checkpoint.
        data: folder that holds the data sets.
        sets: names such as "camvid/val"; see `open_set`.
        pattern: glob of the image names to measure.
        partial: accept a data set that lacks frames.
        classes: key or YAML file of the class set of plain folders; None: the model's.
        engine, precision: inference library and arithmetic of a bundle; a checkpoint runs in torch.
        settings: merge, number of regions and thresholds of the pipeline.
        test_time: scales, mirror image and windows of a checkpoint's image level.
        record_figures: write the figures into the bundle's manifest.
        json_path: file to write the whole report to.

    Raises ValueError for options that do not fit the model and for wrong data, OSError for files that are missing.
    """
    if record_figures and not model.is_dir():
        raise ValueError(f"{model} is not a bundle; expected the folder of a bundle to record figures in")
    if model.is_dir() and test_time != TestTime():
        raise ValueError(f"{model} is a bundle, which reads a frame once and whole; evaluate its checkpoint instead")
    evaluations: dict[str, Evaluation] = {}
    predicted = levels.class_set_of(model)
    folder_classes = load_class_set(classes) if classes else predicted
    with _opened(model, engine, precision, settings, test_time) as predict:
        for name in sets:
            samples, judged = open_set(data, name, pattern, not partial, folder_classes)
            name = name if pattern == "*" else f"{name}/{pattern}"
            evaluations[name] = evaluate(predict, samples, judged, name, predicted)
            print_evaluation(evaluations[name])
    if record_figures:
        record(model, {name: evaluation.figures() for name, evaluation in evaluations.items()})
    if json_path:
        reports = {name: evaluation.report() for name, evaluation in evaluations.items()}
        json_path.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    return evaluations


@contextmanager
def _opened(
    model: Path,
    engine: EngineChoice,
    precision: Literal["auto", "float32"],
    settings: PipelineSettings,
    test_time: TestTime,
) -> Iterator[Predictor]:
    """Open a bundle or a checkpoint, and close it afterwards."""
    if not model.is_dir():
        yield open_checkpoint(model, settings, test_time)
        return
    options = EngineOptions(engine=engine, precision=precision)
    with Engines.open(model, options) as engines, Pipeline(engines, settings) as pipeline:
        yield pipeline


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="bundle (a folder) or checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--set", action="append", required=True, help="for example camvid/val; may be given again")
    parser.add_argument("--pattern", default="*", help="glob of image names (default: all)")
    parser.add_argument("--partial", action="store_true", help="the data set may lack frames")
    parser.add_argument("--engine", choices=("auto", "openvino", "onnxruntime", "tensorrt"), default="auto")
    parser.add_argument("--precision", choices=("auto", "float32"), default="float32")
    parser.add_argument("--merge", choices=("replace", "confident"), default=PipelineSettings().merge)
    parser.add_argument("--max-regions", type=int, default=PipelineSettings().max_regions)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of a checkpoint's image level")
    parser.add_argument("--flip", action="store_true", help="read the mirror image too, of a checkpoint")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="slide a window, of a checkpoint")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--record", action="store_true", help="write the figures into the bundle's manifest")
    arguments = parser.parse_args()
    window = tuple(arguments.window) if arguments.window else None
    with exit_on_error():
        evaluate_model(
            arguments.model,
            arguments.data,
            arguments.set,
            pattern=arguments.pattern,
            partial=arguments.partial,
            engine=arguments.engine,
            precision=arguments.precision,
            settings=PipelineSettings(merge=arguments.merge, max_regions=arguments.max_regions),
            test_time=TestTime(scales=tuple(arguments.scales), flip=arguments.flip, window_hw=window),
            record_figures=arguments.record,
            json_path=arguments.json,
        )


if __name__ == "__main__":
    main()
