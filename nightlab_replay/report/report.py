# SPDX-License-Identifier: Apache-2.0
"""Writes what a replay found: report.json with every figure, frames.csv with one line a frame, and report.html, one
page that needs no other file. A run that was interrupted gets a report on what there is."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from nightlab_core.files import write_atomic
from nightlab_replay.intervals import BLOCK_S, LEAST_BLOCKS
from nightlab_replay.records import METHODS, FrameRecord, RunData, load_run
from nightlab_replay.report.drawings import METHOD_NAMES, draw, most_mixed
from nightlab_replay.report.page import jpeg_uri, write_page
from nightlab_replay.report.pictures import Again, PicturesError, frame_miou, run_panels, worst_frames
from nightlab_replay.report.words import bracket, findings
from nightlab_replay.summary import Report, summarize

log = logging.getLogger(__name__)

PAGE, FIGURES, FRAMES = "report.html", "report.json", "frames.csv"


def write_report(folder: Path, *, pictures: bool = True) -> Report:
    """Read the run in a folder and write the three files there; return the figures.

    With `pictures` the bags and the bundle are opened once more for the worst frames; the page says if they are gone.
    Raises StoreError for a folder without a run, OSError where it cannot be written.
    """
    data = load_run(folder)
    report = summarize(data)
    write_atomic(folder / FIGURES, report.model_dump_json(indent=1) + "\n")
    write_atomic(folder / FRAMES, frames_csv(data))
    sheets, missing = _sheets(data) if pictures else ([], "")
    classes = data.run.settings.class_set
    write_page(
        folder / PAGE,
        "report.html.j2",
        report=report,
        settings=flat(data.run.settings.model_dump(exclude={"class_names"})),
        findings=findings(report),
        charts=draw(report),
        mixed=most_mixed(report.accuracy),
        sheets=sheets,
        pictures_missing=missing,
        legend=list(zip(classes.names, classes.colors_rgb, strict=True)),
        method_names=METHOD_NAMES,
        bracket=bracket,
        block_s=BLOCK_S,
        least_blocks=LEAST_BLOCKS,
    )
    return report


def frames_csv(data: RunData) -> str:
    """One line a frame, for a spreadsheet or pandas."""
    regions = data.run.settings.mode != "live"  # those of the live node are not known
    stages = sorted({stage for r in data.records for stage in r.stages_ms})
    plain = ("bag", "index", "time_ns", "stamp_ns", "frame_id", "status", "reason", "light_level")
    later = ("agreement", "flicker", "latency_ms", "age_ms")
    scores = {name: iter(frame_miou(data.counts.confusion[:, m])) for m, name in enumerate(METHODS)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *plain,
            "confidence",
            *later,
            "regions",
            "refined",
            *(f"{s}_ms" for s in stages),
            *(f"miou_{m}" for m in METHODS),
        ]
    )
    for record in data.records:
        miou = [next(scores[m]) if record.labelled else None for m in METHODS]
        writer.writerow(
            [
                *(getattr(record, key) for key in plain),
                None if record.mean_confidence is None else record.mean_confidence / 255,
                *(getattr(record, key) for key in later),
                len(record.boxes_xyxy) if regions else None,
                sum(record.refined) if regions else None,
                *(record.stages_ms.get(stage) for stage in stages),
                *miou,
            ]
        )
    return out.getvalue()


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names; lists in words."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            found[prefix + key] = "—" if shown is None else shown
    return found


def _sheets(data: RunData) -> tuple[list[dict[str, Any]], str]:
    """The worst frames' pictures, and why there are none or not all."""
    sheets: list[dict[str, Any]] = []
    wanted = worst_frames(data)
    try:
        if wanted:
            with Again(data.run) as again:
                for record, why in wanted:
                    frame, result = again(record)
                    panels = run_panels(frame, result, again.predicted, data.run.settings.class_set)
                    sheets.append(_sheet(record, why, panels))
    except PicturesError as error:
        log.warning("the report lacks pictures: %s", error)
        return sheets, str(error)
    return sheets, ""


def _sheet(record: FrameRecord, why: str, panels: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "name": f"{record.bag}, frame {record.index}",
        "why": why,
        "light_level": record.light_level,
        "panels": {caption: jpeg_uri(picture, 78) for caption, picture in panels.items()},
    }
