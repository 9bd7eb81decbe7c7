# SPDX-License-Identifier: Apache-2.0
"""Write the page of results from the figures that `training.evaluation.ablate --json` stored.

python -m training.evaluation.results docs/data/results.json --out docs/results.md
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nightlab_core.files import write_atomic
from training.command import exit_on_error
from training.evaluation.figures import Difference

WIDTH = 120  #: characters of a line
ROWS_BY_CLASS = 7  #: rows of the ladder in one table by class, beside the column of the classes
NUMBERS = (0, 1, 2, 3, 5, 10)  #: numbers of regions that the page shows; the JSON file has all

_INTRODUCTION = """
Mean IoU in percent, from one confusion matrix over all frames of a set. Pixels without a label are left out; classes
without a labelled pixel are absent. Bundles run on the vehicle's engines in float32, at a single scale. Brackets hold
the 95 % interval of the paired bootstrap over frames. Frames of one drive are alike, so the interval is too narrow.
These frames are not those of NightCity or BDD100K: do not compare the figures with published ones.

- **boxes from the prediction**: connected regions of the hard classes in the image level's own labels.
- **RDN**: the detector's boxes, ranked by objectness.
- **HDM**: the same boxes, ranked by the expected effect of the region level. It is trained on one of three targets: the
  patent's equation 6, a binary target that is 1 if the merged region helps, or the gain itself.
- **replace** and **confident**: the two ways to merge. `replace` takes the region level's labels inside the boxes,
  `confident` the label of the more confident level everywhere in the windows that were read.
- **oracle**: each region keeps the level that is better by the ground truth, so that it shows how much a better choice
  among these regions could gain. It compares the levels by their mean IoU in each region, so a merge may exceed it.
- **bound**: a pixel of a region counts as right if either level is right there. No merge of these regions can exceed
  the bound. Oracle and bound use the merge of the recipe.
"""

KEPT = " †"  #: marks a row that an earlier run measured, see `ablate.earlier_entries`

#: Pictures that `training.evaluation.pictures` writes, and what each shows.
_PICTURES = {
    "results_good.jpg": "The scenes with the highest IoU.",
    "results_bad.jpg": "The scenes with the lowest IoU.",
    "results_gain.jpg": "The scenes where the region level helps most.",
}


def write_page(results: dict[str, Any], out: Path, stored: Path | None = None) -> None:
    """Write the page, with the pictures in the folder `images` beside it. `stored`: the file that holds all figures."""
    parts = [markdown(results, stored)]
    shown = [name for name in _PICTURES if (out.parent / "images" / name).is_file()]
    if shown:
        parts.append("\n## Good and bad frames\n\n")
        parts.append(
            _wrapped(
                "Rendered night scenes that no recipe trains on, drawn by `python -m training.evaluation.pictures"
                " BUNDLE --out DIR`. From left to right: the frame with its regions, the image level, both levels, the"
                " ground truth."
            )
        )
        parts += [f"\n{_PICTURES[name]}\n\n![{_PICTURES[name]}](images/{name})\n" for name in shown]
    write_atomic(out, "".join(parts))


def markdown(results: dict[str, Any], stored: Path | None = None) -> str:
    """Return the page's text and tables for the figures of `training.evaluation.ablate`."""
    ablation, sets = results["ablation"], results["sets"]
    arguments = " ".join(f"--set {found['name']}" for found in sets)
    json_file = stored.as_posix() if stored else "JSON"
    command = f"python -m training.evaluation.ablate {results['recipe']} --data DATA {arguments} --json {json_file}"
    page = f"python -m training.evaluation.results {json_file} --out PAGE"
    parts = ["# Results\n", f"Made by these commands:\n\n{_code(command)}{_code(page)}", _INTRODUCTION.lstrip()]
    if ablation["note"]:
        parts.append(_wrapped(ablation["note"].strip()))
    if stored is not None:
        parts.append(f"All figures, for every number of regions and with all digits: `{json_file}`.\n")
    for found in sets:
        parts += _of_set(found, ablation["pipeline"])
    missing = commands_to_train([row for found in sets for row in found["rows"]], ablation["train"])
    if missing:
        parts.append("## Not trained\n\nThese checkpoints were missing, so the rows that need one have no figures.\n")
        parts += [f"`{path}`" + (f":\n\n{_code(command)}" if command else "\n") for path, command in missing.items()]
    return "\n".join(parts)


def commands_to_train(rows: Sequence[dict[str, Any]], train: Mapping[str, str]) -> dict[str, str]:
    """Return the missing paths of rows that are not trained with their commands, "" for none.

    The order is that of the recipe's `train`, in which a stage finds the files of those before it.
    """
    missing = {m["path"]: m["command"] for row in rows for m in row.get("not_trained", ())}
    return {path: missing[path] for path in dict.fromkeys([*train, *missing]) if path in missing}


def _of_set(found: dict[str, Any], pipeline: dict[str, Any]) -> Iterator[str]:
    merge, number = pipeline["merge"], pipeline["max_regions"]
    numbered = {row["name"]: str(i) for i, row in enumerate(found["rows"], start=1)}
    measured = [row for row in found["rows"] if "not_trained" not in row]
    yield f"## {found['name']}, {found['frames']} frames\n"
    yield f"The ladder, with the {merge} merge and {number} regions unless a row says otherwise:\n"
    header = ("", "row", "mIoU", "difference", "to row", "over its image level")
    before = dict(zip((row["name"] for row in measured[1:]), (row["name"] for row in measured), strict=False))
    yield _table(header, (_ladder_row(row, numbered, before.get(row["name"], "")) for row in found["rows"]), names=2)
    if any("kept" in row for row in measured):
        yield f"{KEPT.strip()} measured by an earlier run; its checkpoint was missing in this one.\n"
    with_boxes = [row for row in measured if "sweep" in row]
    if with_boxes:
        yield "Both ways to merge, and what a better choice could gain, for the rows with regions:\n"
        merges = ((numbered[row["name"]], *_merged(row)) for row in with_boxes)
        yield _table(("row", "replace", "confident", "oracle", "bound"), merges)
        # Rows that differ in their number of regions alone share a line.
        with_boxes = list({json.dumps(row["sweep"]): row for row in reversed(with_boxes)}.values())[::-1]
        shown = [n for n in NUMBERS if n < len(with_boxes[0]["sweep"][merge])]
        yield "By number of regions:\n"
        sweeps = (
            (numbered[row["name"]], kind, *(f"{row['sweep'][kind][n]:.2f}" for n in shown))
            for row in with_boxes
            for kind in row["sweep"]
        )
        yield _table(("row", "merge", *map(str, shown)), sweeps)
    if "detail" in found:
        detail = found["detail"]
        row = numbered.get(detail["row"], detail["row"])
        yield f"By class, image level and both levels (row {row}):\n"
        yield _table(("class", "image level", "both levels", "difference"), map(_pair, detail["by_class"]))
        yield "By light level (mean linear luminance, 0 to 1) and by named part:\n"
        parts = ((r["name"], r["span"], str(r["frames"]), *_pair(r)[1:]) for r in detail["by_part"])
        yield _table(("part", "", "frames", "image level", "both levels", "difference"), parts)
    if len(measured) > 1:
        yield "Every row by class:\n"
        for first in range(0, len(measured), ROWS_BY_CLASS):
            yield _by_class(found["classes"], measured[first : first + ROWS_BY_CLASS], numbered)


def _by_class(names: Sequence[str], rows: Sequence[dict[str, Any]], numbered: Mapping[str, str]) -> str:
    by_class = zip(names, *(row["by_class"] for row in rows), strict=True)
    cells = ((name, *("absent" if v is None else f"{v:.1f}" for v in values)) for name, *values in by_class)
    return _table(("class", *(f"row {numbered[row['name']]}" for row in rows)), cells)


def _ladder_row(row: dict[str, Any], numbered: Mapping[str, str], before: str) -> tuple[str, ...]:
    number = numbered[row["name"]]
    if "not_trained" in row:
        return (number, row["name"], "not trained", "", "", "")
    change, gain = (str(Difference(**row[key])) if key in row else "" for key in ("difference", "gain"))
    against = row.get("against", before if change else "")
    name = row["name"] + KEPT * ("kept" in row)
    return (number, name, f"{row['miou']:.2f}", change, numbered.get(against, "") if change else "", gain)


def _merged(row: dict[str, Any]) -> tuple[str, ...]:
    merges = (f"{row['sweep'][m][row['regions']]:.2f}" for m in ("replace", "confident"))
    return (*merges, *(f"{row[key]:.2f}" for key in ("oracle", "bound")))


def _pair(row: dict[str, Any]) -> tuple[str, ...]:
    if row["first"] is None:
        return (row["name"], "absent", "absent", "")
    return (row["name"], f"{row['first']:.1f}", f"{row['second']:.1f}", str(Difference(**row["difference"])))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], names: int = 1) -> str:
    """Return a Markdown table whose first `names` columns are aligned left."""
    lines = [header, tuple("---" if i < names else "---:" for i in range(len(header))), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def _code(command: str) -> str:
    """Return an indented block of code; a long command continues on the next lines."""
    lines = textwrap.wrap(command, WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return "    " + " \\\n        ".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file that training.evaluation.ablate --json wrote")
    parser.add_argument("--out", type=Path, required=True, help="Markdown page to write")
    arguments = parser.parse_args()
    with exit_on_error():
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
        write_page(results, arguments.out, arguments.results)


if __name__ == "__main__":
    main()
