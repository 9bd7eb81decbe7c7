# SPDX-License-Identifier: Apache-2.0
"""Measure the paper's ladder on any data set: the gain of each network and of each choice of boxes.

python -m training.evaluation.ablate config/ablate/lite.yaml --data DATA --set camvid/val --json results.json

Every network runs once a frame, whatever number of rows uses it. A row whose checkpoint is not there is shown as not
trained, with the command that trains it; `--keep results.json` shows the figures of an
earlier run instead, marked as such.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nightlab_core.data.datasets.catalogue import open_set
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.files import write_atomic
from nightlab_core.labels import ClassSet
from nightlab_core.metrics import iou
from nightlab_core.output import check_report
from nightlab_core.runtime.light import light_level
from training.command import exit_on_error
from training.evaluation.figures import Difference, by_class, by_part, difference, percent
from training.evaluation.ladder import Ablation, Counts, Ladder, Networks, Row, missing_paths
from training.evaluation.results import KEPT, commands_to_train, write_page
from training.gains import MERGES
from training.recipes import load_recipe


def ablate(
    ablation: Ablation,
    networks: Networks,
    samples: Sequence[Sample],
    classes: ClassSet,
    name: str,
    earlier: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure all rows on a data set. Return the content of `--json`; IoU in percent, None for absent classes.

    earlier: by name, entries that an earlier run measured, for rows that are not trained here (`earlier_entries`).
    """
    rows = [row for row in ablation.rows if not missing_paths(row)]
    counts: list[list[Counts]] = []
    frames, light = [], []
    with Ladder(networks, ablation, classes) as ladder:
        for sample in track(samples, name, total=len(samples)):
            counts.append(ladder.count(sample, rows))
            frames.append(sample.name)
            light.append(light_level(sample.image_bgr))
    stacked = {row.name: _stacked([of_frame[i] for of_frame in counts]) for i, row in enumerate(rows)}
    finals = {row.name: final(ablation, row, stacked[row.name]) for row in rows}

    entries: list[dict[str, Any]] = []
    previous = ""
    for row in ablation.rows:
        if row.name not in stacked:
            entry = earlier.get(row.name, {"name": row.name, "not_trained": _how_to_train(ablation, row)})
            if row.against is None:  # also where the recipe of then compared it
                entry = {k: v for k, v in entry.items() if k not in ("against", "difference")}
            entries.append(entry)
            continue
        against = row.against if row.against is None or row.against in stacked else previous
        entries.append(_entry(ablation, row, stacked[row.name], finals, classes, against))
        previous = row.name
    found: dict[str, Any] = {"name": name, "frames": len(frames), "classes": list(classes.names), "rows": entries}
    with_boxes = [row for row in rows if row.boxes]
    if with_boxes:
        last = with_boxes[-1]
        first, second = stacked[last.name].image, finals[last.name]
        parts = by_part(name, frames, np.array(light), first, second)
        found["detail"] = {"row": last.name, "by_class": by_class(classes, first, second), "by_part": parts}
    return found


def earlier_entries(path: Path, name: str, frames: int, classes: ClassSet) -> dict[str, dict[str, Any]]:
    """Read the rows of a data set from a `--json` file, by name, marked as kept; untrained rows are left out.

    Raises ValueError for another file, or if the set had other frames or classes.
    """
    try:
        found = {of_set["name"]: of_set for of_set in json.loads(path.read_text(encoding="utf-8"))["sets"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file that training.evaluation.ablate --json wrote: {error!r}") from None
    if name not in found:
        return {}
    before = found[name]["frames"], found[name]["classes"]
    if before != (frames, list(classes.names)):
        raise ValueError(
            f"{path}: {name} had {before[0]} frames of {len(before[1])} classes, now {frames} of {len(classes)}"
        )
    return {row["name"]: {**row, "kept": True} for row in found[name]["rows"] if "not_trained" not in row}


def final(ablation: Ablation, row: Row, counts: Counts) -> np.ndarray:
    """Return a row's matrices (N, C, C + 1), with the recipe's merge and the row's number of regions."""
    if counts.sweep is None:
        return counts.image
    return counts.sweep[:, MERGES.index(ablation.merge), ablation.regions_of(row)]


def _entry(
    ablation: Ablation, row: Row, counts: Counts, finals: dict[str, np.ndarray], classes: ClassSet, against: str | None
) -> dict[str, Any]:
    matrices = finals[row.name]
    entry: dict[str, Any] = {"name": row.name, "miou": percent(matrices), "image_level": percent(counts.image)}
    entry["by_class"] = [None if np.isnan(v) else 100 * v for v in iou(matrices.sum(axis=0)).tolist()]
    if against:
        entry |= {"against": against, "difference": asdict(difference(finals[against], matrices))}
    if counts.sweep is not None and counts.oracle is not None and counts.bound is not None:
        entry["regions"] = chosen = ablation.regions_of(row)
        numbers = range(counts.sweep.shape[2])
        entry["sweep"] = {m: [percent(counts.sweep[:, i, n]) for n in numbers] for i, m in enumerate(MERGES)}
        entry["gain"] = asdict(difference(counts.image, matrices))
        entry |= {"oracle": percent(counts.oracle), "bound": percent(counts.bound)}
        replaced, confident = (counts.sweep[:, MERGES.index(m), chosen] for m in ("replace", "confident"))
        entry["confident_over_replace"] = asdict(difference(replaced, confident))
    return entry


def _stacked(counts: list[Counts]) -> Counts:
    """Stack the counts of single frames: (N, C, C + 1), the sweep (N, M, MAX_REGIONS + 1, C, C + 1)."""
    columns = {f.name: [getattr(c, f.name) for c in counts] for f in fields(Counts)}
    return Counts(**{name: None if column[0] is None else np.stack(column) for name, column in columns.items()})  # type: ignore[arg-type]


def _how_to_train(ablation: Ablation, row: Row) -> list[dict[str, str]]:
    return [{"path": path, "command": ablation.train.get(path, "")} for path in missing_paths(row)]


def print_ladder(found: dict[str, Any], ablation: Ablation) -> None:
    """Print a table for a data set."""
    settings = ablation.pipeline
    way = f"{ablation.merge} merge, {settings.max_regions} regions unless a row says otherwise"
    table = Table(title=f"{found['name']}, {found['frames']} frames, mean IoU in %, {way}")
    for column in ("row", "mIoU", "against the row before", *MERGES, "oracle", "bound"):
        table.add_column(column, justify="left" if column == "row" else "right")
    for entry in found["rows"]:
        if "not_trained" in entry:
            table.add_row(entry["name"], "not trained")
            continue
        change = str(Difference(**entry["difference"])) if "difference" in entry else ""
        sweeps = entry.get("sweep", {})  # of an entry that was kept, perhaps without the newest merge
        sweep = [f"{sweeps[m][entry['regions']]:.2f}" if m in sweeps else "" for m in MERGES]
        left = [f"{entry[key]:.2f}" if key in entry else "" for key in ("oracle", "bound")]
        table.add_row(entry["name"] + KEPT * ("kept" in entry), f"{entry['miou']:.2f}", change, *sweep, *left)
    Console().print(table)
    for path, command in commands_to_train(found["rows"], ablation.train).items():
        Console().print(f"not trained: {path}: {command or 'no command known'}", soft_wrap=True, highlight=False)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/ablate")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--set", action="append", required=True, help="for example camvid/val; may be given again")
    parser.add_argument("--pattern", default="*", help="glob of image names (default: all)")
    parser.add_argument("--partial", action="store_true", help="the data set may lack frames")
    parser.add_argument("--keep", type=Path, help="an earlier --json, for rows whose checkpoints are not there")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    arguments = parser.parse_args()
    with exit_on_error():
        if arguments.json:
            check_report(
                arguments.json, lambda content: isinstance(content, dict) and content.keys() >= {"ablation", "sets"}
            )
        ablation = load_recipe(arguments.recipe, Ablation)
        networks = Networks([row for row in ablation.rows if not missing_paths(row)], ablation.hard_classes)
        results = []
        for name in arguments.set:
            samples, classes = open_set(arguments.data, name, arguments.pattern, not arguments.partial)
            name = name if arguments.pattern == "*" else f"{name}/{arguments.pattern}"
            kept = earlier_entries(arguments.keep, name, len(samples), classes) if arguments.keep else {}
            results.append(ablate(ablation, networks, samples, classes, name, kept))
            print_ladder(results[-1], ablation)
        whole = {"recipe": str(arguments.recipe), "ablation": ablation.model_dump(mode="json"), "sets": results}
        if arguments.json:
            write_atomic(arguments.json, json.dumps(whole, indent=1) + "\n")
        if arguments.markdown:
            write_page(whole, arguments.markdown, arguments.json)


if __name__ == "__main__":
    main()
