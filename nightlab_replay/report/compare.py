# SPDX-License-Identifier: Apache-2.0
"""Compare two runs and write compare.json and compare.html: the function behind `nightlab compare`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from nightlab_core.output import OutputError, check_report
from nightlab_replay.figures.comparison import Comparison, classes_with, compare
from nightlab_replay.figures.statistics import BLOCK_S, LEAST_BLOCKS, interval_text, percent
from nightlab_replay.pairing import PairedRuns, pair_runs
from nightlab_replay.records import FrameRecord
from nightlab_replay.report import charts
from nightlab_replay.report.page import write_page
from nightlab_replay.report.pictures import (
    PicturesError,
    Resegmenter,
    compared_panels,
    frame_miou,
    lowest_apart,
    sheet,
)
from nightlab_replay.store import load_run, write_json

log = logging.getLogger(__name__)

PAGE, FIGURES = "compare.html", "compare.json"
#: Number of frames shown of those that regressed most, and as many of those that improved most.
_SHOWN = 3


def write_comparison(
    first: Path,
    second: Path,
    out: Path | None = None,
    *,
    fail_below: float | None = None,
    no_worse_than: float | None = None,
    pictures: bool = True,
) -> Comparison:
    """Compare the runs in two folders, write compare.json and compare.html, and return the comparison.

    Args:
        first: folder of run A, the old bundle.
        second: folder of run B, the new bundle.
        out: folder for the two files; None takes `second`.
        fail_below: gate that fails if B's mIoU is below this many per cent.
        no_worse_than: gate that fails unless the 95 % interval shows that B loses at most this many points of mIoU, or
            if a light level is shown to lose more.
        pictures: open the bags again to draw the frames that changed most.

    Raises CompareError if the runs cannot be compared, StoreError for a folder without a run, OutputError if one of the
    files is there and not from an earlier comparison, and OSError.
    """
    out = out or second
    check_report(out / FIGURES, lambda content: isinstance(content, dict) and "different_settings" in content)
    if (out / PAGE).exists() and not (out / FIGURES).exists():
        raise OutputError(f"{out / PAGE} is there without {FIGURES}; choose another folder for the comparison")
    pairs = pair_runs(load_run(first), load_run(second))
    comparison = compare(pairs, (str(first), str(second)), fail_below, no_worse_than)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FIGURES, comparison)
    sheets, missing = _sheets(pairs) if pictures else ([], "")
    classes = pairs.second.run.settings.class_set
    write_page(
        out / PAGE,
        "compare.html.j2",
        comparison=comparison,
        better=classes_with("better", comparison.accuracy),
        worse=classes_with("worse", comparison.accuracy),
        charts=_charts(comparison),
        sheets=sheets,
        pictures_missing=missing,
        legend=list(zip(classes.names, classes.colors_rgb, strict=True)),
        interval_text=interval_text,
        block_s=BLOCK_S,
        least_blocks=LEAST_BLOCKS,
    )
    return comparison


def _charts(comparison: Comparison) -> dict[str, Markup]:
    """Draw the charts of the page by name."""
    drawn = {}
    accuracy = comparison.accuracy
    if accuracy is not None:
        rows = [
            (f"{part.name} ({part.frames})", charts.whisker(part.gain)) for part in (*accuracy.by_light, accuracy.dark)
        ]
        by_light = "; ".join(f"{part.name} ({part.frames}) {interval_text(part.gain)}" for part in accuracy.by_light)
        drawn["light"] = charts.forest(rows, "points of mIoU, B minus A", f"Change by light level: {by_light}")
        classes = [(c.name, charts.whisker(c.gain)) for c in accuracy.by_class]
        better, worse = (len(classes_with(verdict, accuracy)) for verdict in ("better", "worse"))
        label = f"Change of IoU by class: {better} improved, {worse} regressed"
        drawn["gains"] = charts.forest(classes, "points of IoU, B minus A", label)
        label = f"IoU by class. A {percent(accuracy.miou[0])} % mIoU, B {percent(accuracy.miou[1])} %"
        drawn["classes"] = charts.dumbbells(charts.iou_rows(accuracy.by_class), "IoU, %", label)
    for stage, change in comparison.stages_ms.items():
        for side, figures in (("A", change.first), ("B", change.second)):
            label = f"{stage} in {side}: from 0 to {figures.counts_to:.1f} ms"
            drawn[f"{stage}_{side}"] = charts.sparkline(figures.counts, label)
    return drawn


def _changed_frames(pairs: PairedRuns) -> list[tuple[tuple[FrameRecord, FrameRecord], str]]:
    """Select, with reasons, the frames that regressed and improved most; without labels, those of lower confidence."""
    if not pairs.labelled:
        known = [(a, b) for a, b in pairs.records if a.mean_confidence is not None and b.mean_confidence is not None]
        change = np.array([(b.mean_confidence or 0) - (a.mean_confidence or 0) for a, b in known]) / 255
        places = lowest_apart([b for _, b in known], change, 2 * _SHOWN)
        return [(known[p], f"mean confidence {100 * change[p]:+.1f} points") for p in places]
    first, second = (frame_miou(c[:, 1]) for c in pairs.confusion)
    change, found = second - first, []
    for sign, verdict in ((1, "regressed"), (-1, "improved")):
        for place in lowest_apart([b for _, b in pairs.labelled], sign * change, _SHOWN):
            if sign * change[place] < 0:
                numbers = f"mIoU of this frame {100 * first[place]:.1f} → {100 * second[place]:.1f} %"
                found.append((pairs.labelled[place], f"{verdict}, {numbers}"))
    return found


def _sheets(pairs: PairedRuns) -> tuple[list[dict[str, Any]], str]:
    """Draw the changed frames. Also return why pictures are missing, or ""."""
    sheets: list[dict[str, Any]] = []
    wanted = _changed_frames(pairs)
    evaluated = pairs.second.run.settings.class_set
    try:
        if wanted:
            with Resegmenter(pairs.first.run) as old, Resegmenter(pairs.second.run) as new:
                for (first, second), reason in wanted:
                    frame, result = new(second)
                    panels = compared_panels(frame, (old(first)[1], old.predicted), (result, new.predicted), evaluated)
                    sheets.append(sheet(second, reason, panels))
    except PicturesError as error:
        log.warning("pictures are missing in the comparison: %s", error)
        return sheets, str(error)
    return sheets, ""
