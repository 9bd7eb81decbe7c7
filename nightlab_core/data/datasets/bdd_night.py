# SPDX-License-Identifier: Apache-2.0
"""List the night frames among BDD100K's semantic labels, or those of another time of day.

python -m nightlab_core.data.datasets.bdd_night LABELS_JSON... --masks DIR --out LIST [--timeofday daytime]

LABELS_JSON: the 100K images' labels with their attributes: bdd100k_labels_images_train.json and _val.json of 2018, or
det_20/det_train.json and det_val.json. DIR: labels/sem_seg/masks, or seg/labels of the first release. LIST: one line a
frame, "val/81d5165d-fcfc6c67", sorted; `bdd100k_night` looks for it as night.txt in the data set's folder, and
`bdd100k_day` for that of daytime as day.txt.

A frame is listed if it has a mask and its `attributes.timeofday` is "night", or the --timeofday. This is not the
paper's BDD100K-Night, whose list was never published: say so beside every comparison. Thousands of labelled frames are
in no LABELS_JSON; their time of day is not recorded, and they are left out. Some times of day are wrong in the data,
and so are many masks of night frames: https://github.com/sakaridis/MGCDA lists 87 that Sakaridis et al. found correct
(TPAMI 2020).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nightlab_core.data.datasets.bdd import mask_stem
from nightlab_core.data.datasets.paired import DatasetError
from nightlab_core.files import write_atomic


def read_time_of_day(files: Iterable[Path]) -> dict[str, str]:
    """Return image stem -> time of day ("daytime", "night", "dawn/dusk", "undefined") of every frame that has one.

    Raises DatasetError for a file of another format, and for two files that disagree.
    """
    times: dict[str, str] = {}
    for file in files:
        with_time = 0
        for frame in _frames(file):
            try:
                stem, time = Path(frame["name"]).stem, (frame.get("attributes") or {}).get("timeofday")
            except (KeyError, TypeError, AttributeError):
                raise DatasetError(f"{file}: {str(frame)[:80]} is not a frame with a name and attributes") from None
            if time is None:
                continue
            if times.setdefault(stem, time) != time:
                raise DatasetError(f"{file}: {stem} is {time}, but {times[stem]} before; expected one time of day")
            with_time += 1
        if not with_time:
            raise DatasetError(
                f"{file} has no frame with attributes.timeofday; expected the labels of the 100K images:"
                " bdd100k_labels_images_{train,val}.json or det_20/det_{train,val}.json"
            )
    return times


def frames_of(time: str, times: dict[str, str], masks: Iterable[Path]) -> list[str]:
    """Return the masks of a time of day as split/stem, sorted."""
    return sorted(f"{p.parent.name}/{mask_stem(p)}" for p in masks if times.get(mask_stem(p)) == time)


def _frames(file: Path) -> Iterator[Any]:
    """Yield the frames of a Scalabel file one by one: the train split's file is over a gigabyte."""
    try:
        import ijson
    except ImportError:
        raise DatasetError("reading BDD100K's labels needs ijson: pip install -r requirements/train.txt") from None
    try:
        with file.open("rb") as stream:
            first = stream.read(64).lstrip()[:1]
            stream.seek(0)
            yield from ijson.items(stream, "item" if first == b"[" else "frames.item")
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}") from None
    except ijson.JSONError as error:
        raise DatasetError(f"{file} is not whole JSON: {error}") from None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, nargs="+", metavar="LABELS_JSON")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of mask PNGs, by split")
    parser.add_argument("--out", type=Path, required=True, metavar="LIST")
    parser.add_argument("--timeofday", choices=("night", "daytime", "dawn/dusk"), default="night")
    arguments = parser.parse_args()
    masks = sorted(arguments.masks.rglob("[!.]*.png"))
    try:
        if not masks:
            raise DatasetError(f"{arguments.masks} holds no mask; expected {{train,val}}/<stem>.png")
        times = read_time_of_day(arguments.labels)
        names = frames_of(arguments.timeofday, times, masks)
        if not names:
            raise DatasetError(
                f"none of the {len(masks)} masks in {arguments.masks} is a {arguments.timeofday} frame's"
            )
    except DatasetError as error:
        sys.exit(f"error: {error}")
    write_atomic(arguments.out, "".join(f"{name}\n" for name in names))
    unknown = sum(mask_stem(p) not in times for p in masks)
    found = f"{len(names)} {arguments.timeofday} frames of {len(masks)} masks"
    print(f"{arguments.out}: {found}; {unknown} masks have no time of day")


if __name__ == "__main__":
    main()
