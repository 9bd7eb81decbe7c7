# SPDX-License-Identifier: Apache-2.0
"""Write the report of a run: report.json with every figure, frames.csv with one line per frame, and report.html.

A partial run gets a report, too. The page needs no other file.
"""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from nightlab_core.files import write_atomic
from nightlab_replay.figures.statistics import BLOCK_S, LEAST_BLOCKS, interval_text, percent, verdict_text
from nightlab_replay.figures.summarize import confidence_of, summarize
from nightlab_replay.figures.summary import RunSummary
from nightlab_replay.records import METHODS, RunData
from nightlab_replay.report.page import write_page
from nightlab_replay.report.pictures import PicturesError, Resegmenter, frame_miou, run_panels, sheet, worst_frames
from nightlab_replay.report.run_charts import METHOD_NAMES, draw, most_confused
from nightlab_replay.store import load_run, write_json

log = logging.getLogger(__name__)

PAGE, FIGURES, FRAMES = "report.html", "report.json", "frames.csv"


def write_report(folder: Path, *, pictures: bool = True) -> RunSummary:
    """Read the run in a folder, write the three files into it, and return the figures.

    With `pictures` the bags and the bundle are opened again for the worst frames. If they are missing, the page says
    so. Raises StoreError for a folder without a run, OSError if a file cannot be written.
    """
    data = load_run(folder)
    report = summarize(data)
    write_json(folder / FIGURES, report)
    write_atomic(folder / FRAMES, frames_csv(data))
    sheets, missing = _sheets(data) if pictures else ([], "")
    classes = data.run.settings.class_set
    write_page(
        folder / PAGE,
        "report.html.j2",
        report=report,
        settings=flatten(data.run.settings.model_dump(exclude={"class_names", "own_classes"})),
        findings=findings(report),
        charts=draw(report),
        confused=most_confused(report.accuracy),
        sheets=sheets,
        pictures_missing=missing,
        legend=list(zip(classes.names, classes.colors_rgb, strict=True)),
        method_names=METHOD_NAMES,
        interval_text=interval_text,
        block_s=BLOCK_S,
        least_blocks=LEAST_BLOCKS,
    )
    return report


def frames_csv(data: RunData) -> str:
    """Return the table of all frames, one line each, for a spreadsheet or pandas."""
    regions = data.run.settings.mode != "live"  # the live node's regions are not received
    stages = sorted({stage for r in data.records for stage in r.stages_ms})
    before = ("bag", "index", "time_ns", "stamp_ns", "frame_id", "status", "reason", "light_level", "refine_reason")
    after = ("agreement", "flicker", "latency_ms", "age_ms")
    scores = {name: iter(frame_miou(data.counts.confusion[:, m])) for m, name in enumerate(METHODS)}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    stage_columns, miou_columns = [f"{stage}_ms" for stage in stages], [f"miou_{method}" for method in METHODS]
    writer.writerow([*before, "confidence", *after, "regions", "refined", *stage_columns, *miou_columns])
    for record in data.records:
        miou = [next(scores[m]) if record.labelled else None for m in METHODS]
        writer.writerow(
            [
                *(getattr(record, key) for key in before),
                confidence_of(record),
                *(getattr(record, key) for key in after),
                len(record.boxes_xyxy) if regions else None,
                sum(record.refined) if regions else None,
                *(record.stages_ms.get(stage) for stage in stages),
                *miou,
            ]
        )
    return out.getvalue()


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names. Lists become text, and None a dash."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found.update(flatten(value, f"{prefix}{key}."))
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            found[prefix + key] = "—" if shown is None else shown
    return found


def findings(report: RunSummary) -> list[str]:
    """Summarise the run in a few sentences, the most important first."""
    return [*_accuracy_findings(report), *_confidence_findings(report), *_time_findings(report), *_losses(report)]


def _accuracy_findings(report: RunSummary) -> list[str]:
    accuracy = report.accuracy
    if accuracy is None:
        agreement = report.behaviour.agreement
        found = ["No frame has labels, so this report does not measure accuracy."]
        if agreement is not None and agreement < 1:
            found.append(f"The two levels agree on {percent(agreement)} % of the pixels.")
        return found
    image_level, both = accuracy.miou
    if report.run.settings.pipeline.refine == "never":
        return [f"The image level reaches {percent(image_level)} % mIoU on {accuracy.frames} labelled frames."]
    found = [
        f"Both levels reach {percent(both)} % mIoU on {accuracy.frames} labelled frames; the image level alone reaches "
        f"{percent(image_level)} %.",
        f"Effect of the second level: {verdict_text(accuracy.gain)}.",
    ]
    if 0 < accuracy.dark.frames < accuracy.frames:
        found.append(f"In the dark: {verdict_text(accuracy.dark.gain)}.")
    return found


def _confidence_findings(report: RunSummary) -> list[str]:
    found = []
    for figures in list(report.reliability.values())[-1:]:
        if figures.expected_calibration_error is not None:
            found.append(
                f"The mean confidence is {percent(figures.mean_confidence)} %, and {percent(figures.mean_correct)} % "
                "of the pixels are correct (expected calibration error "
                f"{percent(figures.expected_calibration_error)} points)."
            )
    for uncertainty in list(report.uncertainty.values())[-1:]:
        found.append(
            f"The uncertainty-aware IoU is {percent(uncertainty.uiou)} %: pixels with a confidence below "
            f"{uncertainty.threshold:.2f} then count as invalid."
        )
    return found


def _time_findings(report: RunSummary) -> list[str]:
    total = report.stages_ms.get("total")
    found = []
    if report.run.settings.pipeline.refine == "night":
        reasons = report.behaviour.refine_reasons
        number = sum(reasons.values())
        found.append(f"Hard regions were refined by night, in {reasons.get('night', 0)} of {number} frames.")
    if total is not None:
        found.append(f"A frame takes {total.p50:.0f} ms (median); 99 % of the frames take at most {total.p99:.0f} ms.")
    if report.age_ms is not None:
        found.append(
            f"A mask arrives at an age of {report.age_ms.p50:.0f} ms (median; p99 {report.age_ms.p99:.0f} ms)."
        )
    return found


def _losses(report: RunSummary) -> list[str]:
    frames = report.frames
    found = []
    if frames.dropped:
        found.append(f"{frames.dropped} of {frames.expected} frames were dropped because newer ones had arrived.")
    if frames.unreadable:
        found.append(f"{frames.unreadable} of {frames.expected} frames could not be read.")
    return found


def _sheets(data: RunData) -> tuple[list[dict[str, Any]], str]:
    """Draw the worst frames. Also return why pictures are missing, or ""."""
    sheets: list[dict[str, Any]] = []
    wanted = worst_frames(data)
    try:
        if wanted:
            with Resegmenter(data.run) as segment:
                for record, reason in wanted:
                    panels = run_panels(*segment(record), segment.predicted, data.run.settings.class_set)
                    sheets.append(sheet(record, reason, panels))
    except PicturesError as error:
        log.warning("pictures are missing in the report: %s", error)
        return sheets, str(error)
    return sheets, ""
