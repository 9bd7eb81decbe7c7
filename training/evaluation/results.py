# SPDX-License-Identifier: Apache-2.0
"""The page of results, written from what `training.evaluation.ablate --json` stored.

python -m training.evaluation.results results.json --out docs/results.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.command import exit_on_error
from training.evaluation.figures import Difference

_INTRODUCTION = """# Results

Written by `python -m training.evaluation.ablate {recipe} --data DATA {sets} --markdown FILE`.

Mean IoU in percent, from one confusion matrix over all frames of a set; pixels without a label are left out, classes
without a true pixel are absent. A bundle is read by the vehicle's engines in float32, single scale. In brackets, the
95 % interval of the paired bootstrap over frames: frames of one drive are alike, which makes it too narrow. No figure
here can be laid beside those published for NightCity or BDD100K: these are other frames.

- **boxes from the prediction**: connected regions of the hard classes in the image level's own labels.
- **RDN**: the detector, ranked by objectness. **HDM**: the same boxes, ranked by what the region level brings, which is
  learnt as the patent's equation 6, as whether the merged region helps, or as the gain itself.
- **replace**, **confident**: how regions are merged: the region level's labels inside the boxes, or the surer level's
  in all of the windows that were read round them. **oracle**: each region keeps the better level by the truth, so that
  it says how much a better choice among these could still gain; it goes by the mean IoU where a region lands, so that a
  merge may pass it. **bound**: right where regions land wherever either level is, which no such merge can pass. Both
  are those of the recipe's merge.
"""


KEPT = " †"  #: marks a row that an earlier run measured, see `ablate.earlier_entries`

#: Pictures that `training.evaluation.pictures` writes, and what each shows.
_PICTURES = {
    "results_good.jpg": "The scenes with the highest IoU.",
    "results_bad.jpg": "The scenes with the lowest IoU.",
    "results_gain.jpg": "The scenes where the region level helps most.",
}


def write_page(results: dict[str, Any], out: Path, stored: Path | None = None) -> None:
    """Write the page, with the pictures that lie in `images` beside it. `stored`: the file that holds all figures."""
    parts = [markdown(results, stored)]
    shown = [name for name in _PICTURES if (out.parent / "images" / name).is_file()]
    if shown:
        parts.append(
            "\n## Good and bad frames\n\nRendered night scenes that no recipe trains on, by"
            " `python -m training.evaluation.pictures BUNDLE --out DIR`: the frame, its regions, image level, both"
            " levels, truth.\n"
        )
        parts += [f"\n{_PICTURES[name]}\n\n![{_PICTURES[name]}](images/{name})\n" for name in shown]
    out.write_text("".join(parts), encoding="utf-8")


def markdown(results: dict[str, Any], stored: Path | None = None) -> str:
    """The page's text and tables, of what `training.evaluation.ablate` found."""
    ablation, sets = results["ablation"], results["sets"]
    arguments = " ".join(f"--set {found['name']}" for found in sets)
    parts = [_INTRODUCTION.format(recipe=results["recipe"], sets=arguments)]
    if ablation["note"]:
        parts.append(f"{ablation['note'].strip()}\n")
    if stored is not None:
        parts.append(f"All figures, with those by number of regions to the last digit: `{stored.name}`.\n")
    for found in sets:
        parts += _of_set(found, ablation["pipeline"])
    missing = commands_to_train([row for found in sets for row in found["rows"]], ablation["train"])
    if missing:
        parts.append("## Not trained\n\nThese checkpoints were not there; each row that needs one is left open.\n")
        parts.append(_table(("checkpoint", "command"), ((f"`{p}`", f"`{c}`" if c else "") for p, c in missing.items())))
    return "\n".join(parts)


def commands_to_train(rows: Sequence[dict[str, Any]], train: Mapping[str, str]) -> dict[str, str]:
    """Of rows that are not trained, the missing paths and their commands ("" for none), in the order of the recipe's
    `train`, in which a stage finds what those before it made."""
    missing = {m["path"]: m["command"] for row in rows for m in row.get("not_trained", ())}
    return {path: missing[path] for path in dict.fromkeys([*train, *missing]) if path in missing}


def _of_set(found: dict[str, Any], pipeline: dict[str, Any]) -> list[str]:
    merge, number = pipeline["merge"], pipeline["max_regions"]
    parts = [f"## {found['name']}, {found['frames']} frames\n"]
    header = ("", "mIoU", "against the row before", "over its image level", "replace", "confident", "oracle", "bound")
    parts.append(f"The ladder, with the {merge} merge and {number} regions unless a row says otherwise:\n")
    measured = [row for row in found["rows"] if "not_trained" not in row]
    before = dict(zip((row["name"] for row in measured[1:]), (row["name"] for row in measured), strict=False))
    parts.append(_table(header, (_ladder_row(row, before.get(row["name"], "")) for row in found["rows"])))
    if any("kept" in row for row in measured):
        parts.append(f"{KEPT.strip()} measured by an earlier run; its checkpoint was not there for this one.\n")
    with_boxes = [row for row in measured if "sweep" in row]
    if with_boxes:
        # Rows that differ in their number alone share a line.
        with_boxes = list({json.dumps(row["sweep"]): row for row in reversed(with_boxes)}.values())[::-1]
        numbers = range(len(with_boxes[0]["sweep"][merge]))
        parts.append("By number of regions:\n")
        sweeps = (
            (row["name"], kind, *(f"{v:.2f}" for v in row["sweep"][kind]))
            for row in with_boxes
            for kind in row["sweep"]
        )
        parts.append(_table(("", "merge", *map(str, numbers)), sweeps))
    if "detail" in found:
        detail = found["detail"]
        parts.append(f"By class, image level and both levels ({detail['row']}):\n")
        parts.append(_table(("class", "image level", "both levels", "difference"), map(_pair, detail["by_class"])))
        parts.append("By light level (mean linear luminance, 0 to 1) and by named part:\n")
        rows = ((r["name"], r["span"], str(r["frames"]), *_pair(r)[1:]) for r in detail["by_part"])
        parts.append(_table(("part", "", "frames", "image level", "both levels", "difference"), rows))
    if len(measured) > 1:
        parts.append("Every row by class:\n")
        by_class = zip(found["classes"], *(row["by_class"] for row in measured), strict=True)
        rows = ((name, *("absent" if v is None else f"{v:.1f}" for v in values)) for name, *values in by_class)
        parts.append(_table(("class", *(row["name"] for row in measured)), rows))
    return parts


def _ladder_row(row: dict[str, Any], before: str) -> tuple[str, ...]:
    if "not_trained" in row:
        return (row["name"], "not trained", *[""] * 6)
    change, gain = (str(Difference(**row[key])) if key in row else "" for key in ("difference", "gain"))
    if row.get("against", before) != before:
        change += f" against {row['against']}"
    merges = ["", ""]
    if "sweep" in row:
        merges = [f"{row['sweep'][m][row['regions']]:.2f}" for m in ("replace", "confident")]
    left = [f"{row[key]:.2f}" if key in row else "" for key in ("oracle", "bound")]
    return (row["name"] + KEPT * ("kept" in row), f"{row['miou']:.2f}", change, gain, *merges, *left)


def _pair(row: dict[str, Any]) -> tuple[str, ...]:
    if row["first"] is None:
        return (row["name"], "absent", "absent", "")
    return (row["name"], f"{row['first']:.1f}", f"{row['second']:.1f}", str(Difference(**row["difference"])))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what training.evaluation.ablate --json wrote")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with exit_on_error():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
        write_page(results, arguments.out, arguments.results)


if __name__ == "__main__":
    main()
