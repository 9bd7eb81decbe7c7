# SPDX-License-Identifier: Apache-2.0
"""Measure a bundle or a checkpoint on labelled images: the image level beside both levels (`nightlab evaluate`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.benchmark.curve import with_scale
from nightlab_core.classes import load_class_set
from nightlab_core.config import replace
from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.files import write_atomic
from nightlab_core.labels import IGNORE_ID, ClassSet, to_class_set
from nightlab_core.metrics import (
    UncertaintyAwareIoU,
    calibration_error,
    confidence_counts,
    confusion_matrix,
    iou,
    uiou_by_threshold,
)
from nightlab_core.runtime.bundle import MANIFEST_NAME, load_bundle, sha256_of, write_manifest
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PrecisionChoice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, Result
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_core.version import package_version
from training import models, networks
from training.evaluation.figures import Difference, by_class, by_part, difference, parts, percent
from training.sliding import TestTime


@dataclass(frozen=True)
class Evaluation:
    """Confusion matrices of N frames, (N, C, C + 1), and `confidence_counts` of these, by each method."""

    name: str
    classes: ClassSet
    frames: tuple[str, ...]
    light: np.ndarray  #: float64 (N,): light level of each frame
    image_level: np.ndarray
    both_levels: np.ndarray | None  #: None for a model that has an image level alone
    confidence: dict[str, np.ndarray]  #: by method ("image_level", "both_levels"): int64 (N, bins, C + 1, 3)

    def uiou(self) -> dict[str, UncertaintyAwareIoU]:
        """Mean uncertainty-aware IoU by method, at each threshold; see `metrics.uncertainty_aware_iou`."""
        labelled = self.image_level.sum(axis=(0, 2))
        totals = {method: counts.sum(axis=0)[:, : len(self.classes)] for method, counts in self.confidence.items()}
        return {m: uiou_by_threshold(labelled, total[..., 0], total[..., 1]) for m, total in totals.items()}

    def calibration(self) -> list[dict[str, Any]]:
        """Return an entry for the whole set, named "all", and each part: the expected calibration error by method.

        It is in points of percent, None without a labelled prediction.
        """
        whole = ("all", "", np.ones(len(self.frames), bool))
        return [
            {"name": name, "span": span, "frames": int(held.sum())}
            | {method: _error_points(counts[held]) for method, counts in self.confidence.items()}
            for name, span, held in (whole, *parts(self.name, self.frames, self.light))
        ]

    def figures(self) -> dict[str, float]:
        """Mean IoU and best uncertainty-aware IoU in percent, and where there are both levels their difference of mean
        IoU, with its 95 % interval if frames are enough."""
        found = {"image_level_miou": percent(self.image_level)}
        if self.both_levels is not None:
            d = difference(self.image_level, self.both_levels)
            found |= {"both_levels_miou": percent(self.both_levels)}
            found |= {"difference": d.points}
            if d.low is not None and d.high is not None:
                found |= {"difference_low": d.low, "difference_high": d.high}
        return found | {f"{method}_uiou": 100 * values.best for method, values in self.uiou().items()}

    def report(self) -> dict[str, Any]:
        """`figures`, and the same by class and by part of the set (named parts, light levels)."""
        # An image level alone is laid beside itself, so that one form serves both.
        second = self.image_level if self.both_levels is None else self.both_levels
        by_name = {"frames": len(self.frames), "by_class": by_class(self.classes, self.image_level, second)}
        of_parts = by_part(self.name, self.frames, self.light, self.image_level, second)
        uiou = {
            method: {
                "best": 100 * values.best,
                "threshold": values.threshold,
                "average": 100 * values.average,
                "by_threshold": [100 * value for value in values.by_threshold],
            }
            for method, values in self.uiou().items()
        }
        return {**self.figures(), **by_name, "by_part": of_parts, "uiou": uiou, "calibration": self.calibration()}


def evaluate(
    segment: Callable[[np.ndarray], Result],
    samples: Sequence[Sample],
    classes: ClassSet,
    name: str,
    predicted: ClassSet,
    both_levels: bool = True,
) -> Evaluation:
    """Segment every sample at its own size, and count pixels by true and predicted class.

    Args:
        segment: a pipeline or a `Model`.
        samples: images with labels.
        classes: class set of the labels, in which results are evaluated.
        name: of the data set.
        predicted: class set of the model's labels.
        both_levels: false for a model that has an image level alone.
    """
    frames, light = [], []
    methods = ("image_level", "both_levels") if both_levels else ("image_level",)
    matrices: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    confidences: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    for sample in track(samples, name, total=len(samples)):
        result = segment(sample.image_bgr)
        frames.append(sample.name)
        light.append(result.light_level)
        masks = (result.image_labels, result.image_confidence), (result.labels, result.confidence)
        for method, (labels, confidence) in zip(methods, masks, strict=False):
            mapped = to_class_set(labels, predicted, classes)
            matrices[method].append(confusion_matrix(sample.labels, mapped, len(classes)))
            # The threshold has removed these pixels; their confidence belongs to no label.
            kept = np.where(labels == IGNORE_ID, np.uint8(IGNORE_ID), sample.labels)
            confidences[method].append(confidence_counts(kept, mapped, confidence, len(classes)))
    first, both = (np.stack(matrices[m]) if m in matrices else None for m in ("image_level", "both_levels"))
    assert first is not None
    by_confidence = {method: np.stack(counts) for method, counts in confidences.items()}
    return Evaluation(name, classes, tuple(frames), np.array(light), first, both, by_confidence)


def print_evaluation(evaluation: Evaluation) -> None:
    """Tables of the IoU of every class in percent and the mean, of the mean by part of the set, and of the confidence.

    A class without a labelled pixel is shown as absent.
    """
    _print_accuracy(evaluation)
    _print_confidence(evaluation)


def _print_confidence(evaluation: Evaluation) -> None:
    """Print UIoU beside the mean IoU, and the calibration error of the set and its parts."""
    names = [method.replace("_", " ") for method in evaluation.confidence]
    table = _table("confidence", "", *names)
    uiou = evaluation.uiou().values()
    table.add_row("mean UIoU, best threshold", *(f"{100 * u.best:.2f} at {u.threshold:.2f}" for u in uiou))
    table.add_row("mean UIoU, average of thresholds", *(f"{100 * u.average:.2f}" for u in uiou))
    for row in evaluation.calibration():
        errors = (row[method] for method in evaluation.confidence)
        cells = ("" if error is None else f"{error:.2f}" for error in errors)
        table.add_row(f"calibration error, {row['name']} ({row['frames']} frames)", *cells)
    Console().print(table)


def _print_accuracy(evaluation: Evaluation) -> None:
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


def _error_points(counts: np.ndarray) -> float | None:
    """Compute the expected calibration error in points from counts (N, bins, C + 1, 3)."""
    error = calibration_error(*counts.sum(axis=(0, 2)).T)
    return None if np.isnan(error) else 100 * error


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
    pixel_bits: int = 0,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "float32",
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
        pixel_bits: significant bits of 16-bit images; 0: measured.
        engine, precision: inference library and arithmetic of a bundle; a checkpoint runs in torch.
        settings: merge, number of regions and thresholds of the pipeline.
        test_time: scale of the image level's input; more scales, mirror image and windows for a checkpoint alone.
        record_figures: write the figures into the bundle's manifest.
        json_path: file to write the whole report to.

    Raises ValueError for options that do not fit the model and for wrong data, OSError for files that are missing.
    """
    if record_figures and not model.is_dir():
        raise ValueError(f"{model} is not a bundle; expected the folder of a bundle to record figures in")
    evaluations: dict[str, Evaluation] = {}
    predicted = networks.class_set_of(model)
    folder_classes = load_class_set(classes) if classes else predicted
    with _opened(model, engine, precision, settings, test_time) as (segment, both_levels, library):
        origin = _origin(model, library)
        Console().print(", ".join(f"{key} {value}" for key, value in origin.items()), soft_wrap=True, highlight=False)
        for name in sets:
            samples, evaluated = open_set(data, name, pattern, not partial, folder_classes, pixel_bits)
            name = name if pattern == "*" else f"{name}/{pattern}"
            evaluations[name] = evaluate(segment, samples, evaluated, name, predicted, both_levels)
            print_evaluation(evaluations[name])
    if record_figures:
        record(model, {name: evaluation.figures() for name, evaluation in evaluations.items()})
    if json_path:
        reports = {name: origin | evaluation.report() for name, evaluation in evaluations.items()}
        write_atomic(json_path, json.dumps(reports, indent=2) + "\n")
    return evaluations


@contextmanager
def _opened(
    model: Path,
    engine: EngineChoice,
    precision: PrecisionChoice,
    settings: PipelineSettings,
    test_time: TestTime,
) -> Iterator[tuple[Callable[[np.ndarray], Result], bool, str]]:
    """Open a bundle or a checkpoint, and close it afterwards. Yields it, whether it has both levels, and the engine."""
    if not model.is_dir():
        with models.open_model(model, settings, test_time) as opened:
            yield opened, opened.both_levels, "torch"
        return
    scale = test_time.check_bundle(model)
    options = EngineOptions(engine=engine, precision=precision)
    with Engines.open(model, options) as engines, Pipeline(with_scale(engines, scale), settings) as pipeline:
        yield pipeline, True, engines.name


def _origin(model: Path, engine: str) -> dict[str, str]:
    """Return what was measured: the version, the SHA-256 of bundle.yaml or of the checkpoint, and the engine."""
    file = model / MANIFEST_NAME if model.is_dir() else model
    return {"version": package_version(), "model": model.name, "sha256": sha256_of(file), "engine": engine}
