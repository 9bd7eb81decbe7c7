# SPDX-License-Identifier: Apache-2.0
"""Is the new bundle better in the dark? Compare two replays of the same bags, frame by frame.

    nightlab-replay old_bag/ --bundle old --out a
    nightlab-replay old_bag/ --bundle new --out b
    nightlab-replay compare a b --fail-below 45 --no-worse-than 0.5

Writes compare.json and compare.html, and prints the verdict. Exit status: 0 if every gate is passed, or none was asked
for; 1 if a gate failed; 2 if the two cannot be compared, with the reason.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape

from nightlab_core.files import write_atomic
from nightlab_replay.comparison import Comparison, compare
from nightlab_replay.intervals import BLOCK_S, LEAST_BLOCKS
from nightlab_replay.pairing import CompareError, Pairs, pair
from nightlab_replay.records import FrameRecord, StoreError, load_run
from nightlab_replay.report import charts
from nightlab_replay.report.drawings import in_percent, whisker
from nightlab_replay.report.page import jpeg_uri, percent, write_page
from nightlab_replay.report.pictures import Again, PicturesError, apart, compared_panels, frame_miou
from nightlab_replay.report.verdict import improved
from nightlab_replay.report.words import bracket

log = logging.getLogger(__name__)

PAGE, FIGURES = "compare.html", "compare.json"
PASSED, FAILED, NOT_COMPARED = 0, 1, 2
#: Frames shown that B spoilt most, and as many that it mended most.
_SHOWN = 3


def main(argv: list[str]) -> int:
    """Command line of `nightlab-replay compare`; the return value is the exit status."""
    args = _parser().parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    try:
        found = write_comparison(
            args.first,
            args.second,
            args.out or args.second,
            fail_below=args.fail_below,
            no_worse_than=args.no_worse_than,
            pictures=not args.no_pictures,
        )
    except (CompareError, StoreError, OSError) as error:
        print(f"nightlab-replay compare: {error}", file=sys.stderr)
        return NOT_COMPARED
    console.print(f"A: {escape(found.first.bundle)} ({args.first})   B: {escape(found.second.bundle)} ({args.second})")
    for sentence in found.sentences:
        console.print(escape(sentence), soft_wrap=True)
    for gate in found.gates:
        mark = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        console.print(f"{mark} {gate.name}: {escape(gate.reason)}", soft_wrap=True)
    console.print(f"Comparison: {((args.out or args.second) / PAGE).resolve()}", soft_wrap=True)
    return PASSED if found.passed else FAILED


def write_comparison(
    first: Path,
    second: Path,
    out: Path,
    *,
    fail_below: float | None = None,
    no_worse_than: float | None = None,
    pictures: bool = True,
) -> Comparison:
    """Compare the runs in two folders, write compare.json and compare.html into `out`, return the figures.

    Raises CompareError, StoreError, OSError.
    """
    pairs = pair(load_run(first), load_run(second))
    found = compare(pairs, (str(first), str(second)), fail_below, no_worse_than)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / FIGURES, found.model_dump_json(indent=1) + "\n")
    sheets, missing = _sheets(pairs) if pictures else ([], "")
    classes = pairs.second.run.settings.class_set
    write_page(
        out / PAGE,
        "compare.html.j2",
        found=found,
        better=improved(found.accuracy, "better"),
        worse=improved(found.accuracy, "worse"),
        charts=_draw(found),
        sheets=sheets,
        pictures_missing=missing,
        legend=list(zip(classes.names, classes.colors_rgb, strict=True)),
        bracket=bracket,
        block_s=BLOCK_S,
        least_blocks=LEAST_BLOCKS,
    )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightlab-replay compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, metavar="A", help="folder of a replay: the old bundle")
    parser.add_argument("second", type=Path, metavar="B", help="folder of a replay: the new bundle")
    parser.add_argument("--out", type=Path, help="folder for compare.json and compare.html (default: B)")
    parser.add_argument(
        "--fail-below", type=_miou, metavar="MIOU", help="fail if B's mIoU is below so many per cent, 0 to 100"
    )
    parser.add_argument(
        "--no-worse-than",
        type=_points,
        metavar="POINTS",
        help="fail unless the 95 %% interval shows that B loses at most so many points of mIoU, "
        "or if a light level is shown to lose more",
    )
    parser.add_argument("--no-pictures", action="store_true", help="do not open the bags again for pictures")
    return parser


def _miou(text: str) -> float:
    value = _number(text)
    if not 1 < value <= 100:
        raise argparse.ArgumentTypeError(f"received {text}, expected per cent, above 1 and up to 100, such as 45.5")
    return value


def _points(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"received {text}, expected points of mIoU, 0 to 100, such as 0.5")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a number") from None


def _draw(found: Comparison) -> dict[str, Markup]:
    """The page's charts by name."""
    drawn = {}
    accuracy = found.accuracy
    if accuracy is not None:
        rows = [(f"{part.name} ({part.frames})", whisker(part.gain)) for part in (*accuracy.by_light, accuracy.dark)]
        words = "; ".join(
            f"{name} {bracket(part.gain)}" for (name, _), part in zip(rows, accuracy.by_light, strict=False)
        )
        drawn["light"] = charts.forest(rows, "points of mIoU, B minus A", f"Change by light level: {words}")
        classes = [(c.name, whisker(c.gain)) for c in accuracy.by_class]
        shown = len(improved(accuracy, "better")), len(improved(accuracy, "worse"))
        label = f"Change of IoU by class: {shown[0]} improved, {shown[1]} got worse"
        drawn["gains"] = charts.forest(classes, "points of IoU, B minus A", label)
        both = [(c.name, in_percent(c.iou[0]), in_percent(c.iou[1])) for c in accuracy.by_class]
        label = f"IoU by class. A {percent(accuracy.miou[0])} % mIoU, B {percent(accuracy.miou[1])} %"
        drawn["classes"] = charts.dumbbells(both, "IoU, %", label)
    for stage, change in found.stages_ms.items():
        for side, figures in (("A", change.first), ("B", change.second)):
            label = f"{stage} in {side}: from 0 to {figures.counts_to:.1f} ms"
            drawn[f"{stage}_{side}"] = charts.spark(figures.counts, label)
    return drawn


def _wanted(pairs: Pairs) -> list[tuple[tuple[FrameRecord, FrameRecord], str]]:
    """Frames to look at: those that B spoils most and mends most; without labels, where it is less sure."""
    if not pairs.labelled:
        known = [(a, b) for a, b in pairs.records if a.mean_confidence is not None and b.mean_confidence is not None]
        change = np.array([(b.mean_confidence or 0) - (a.mean_confidence or 0) for a, b in known]) / 255
        places = apart([b for _, b in known], change, 2 * _SHOWN)
        return [(known[p], f"mean confidence {100 * change[p]:+.1f} points") for p in places]
    first, second = (frame_miou(c[:, 1]) for c in pairs.confusion)
    change, found = second - first, []
    for sign in (1, -1):  # spoilt first
        for place in apart([b for _, b in pairs.labelled], sign * change, _SHOWN):
            if sign * change[place] < 0:
                words = f"mIoU of this frame {100 * first[place]:.1f} → {100 * second[place]:.1f} %"
                found.append((pairs.labelled[place], f"{'got worse' if sign == 1 else 'improved'}, {words}"))
    return found


def _sheets(pairs: Pairs) -> tuple[list[dict[str, Any]], str]:
    """The pictures, and why there are none or not all."""
    sheets: list[dict[str, Any]] = []
    wanted = _wanted(pairs)
    judged = pairs.second.run.settings.class_set
    try:
        if wanted:
            with Again(pairs.first.run) as old, Again(pairs.second.run) as new:
                for (first, second), why in wanted:
                    frame, result = new(second)
                    panels = compared_panels(frame, (old(first)[1], old.predicted), (result, new.predicted), judged)
                    pictures = {caption: jpeg_uri(picture, 78) for caption, picture in panels.items()}
                    name = f"{second.bag}, frame {second.index}"
                    sheets.append({"name": name, "why": why, "light_level": second.light_level, "panels": pictures})
    except PicturesError as error:
        log.warning("the comparison lacks pictures: %s", error)
        return sheets, str(error)
    return sheets, ""
