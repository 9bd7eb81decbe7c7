# SPDX-License-Identifier: Apache-2.0
"""Find label maps whose ids are valid one by one and yet doubtful.

They are those of a binary mask, may be counted from 1 or in another numbering, or are indices of a palette that is not
the class set's. Images that viewers turn are doubtful, too, as their label maps may have been drawn in the turned view.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from nightlab_core.data.image_header import MAX_EXIF_BYTES, jpeg_orientation
from nightlab_core.data.label_maps import read_label_map
from nightlab_core.labels import IGNORE_ID, ClassSet

#: Label maps of a source that are read for this, spread over all of it.
MOST_SAMPLES = 16
_Item = TypeVar("_Item")


def spread(items: Sequence[_Item], most: int = MOST_SAMPLES) -> list[_Item]:
    """Return at most `most` items, evenly spaced, the first among them."""
    return [items[len(items) * n // most] for n in range(most)] if len(items) > most else list(items)


def doubts_of_files(files: Sequence[Path], classes: ClassSet) -> list[str]:
    """Return what is doubtful about label files. Files that cannot be read are left out; reading them raises."""
    palettes: list[str] = []

    def maps() -> Iterator[np.ndarray]:
        for file in spread(files):
            with contextlib.suppress(OSError, ValueError):
                yield read_label_map(file, classes, palettes)

    return label_doubts(maps(), classes, palettes)


def turned_images(files: Sequence[Path]) -> list[str]:
    """Return a sentence with numbers if images of a folder are to be shown turned or mirrored, which is ignored."""
    examined = spread([file for file in files if file.is_file()])  # a pipe would be waited for
    turned = []
    for file in examined:
        with contextlib.suppress(OSError), file.open("rb") as opened:
            if jpeg_orientation(opened.read(MAX_EXIF_BYTES)) != 1:
                turned.append(file)
    if not turned:
        return []
    return [
        f"{len(turned)} of {len(examined)} images that were examined, such as {turned[0].name}, have an orientation in "
        "EXIF, which is ignored: label maps must show the pixels as they are stored"
    ]


def label_doubts(maps: Iterable[np.ndarray], classes: ClassSet, palettes: list[str]) -> list[str]:
    """Return sentences with numbers if label maps, uint8 (H, W) with the ids as in the file, are doubtful.

    `palettes` is the list that reading `maps` fills with the doubts about their palettes.
    """
    count, ids = 0, set[int]()
    for labels in maps:
        count += 1
        ids.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    doubts = [f"{n} of {count} label maps that were examined have {what}" for what, n in Counter(palettes).items()]
    ids -= set(classes.unlabelled_ids) - {0, IGNORE_ID}
    labelled = sorted(ids - {IGNORE_ID})
    maps_read = f"of {count} label maps that were examined"
    first = f"0 ({classes.names[0]!r})"
    if ids == {0, IGNORE_ID} or (ids == {0, 1} and len(classes) > 2):
        meaning = f"{first} and {f'1 ({classes.names[1]!r})' if 1 in ids else '255 (unlabelled)'}"
        doubts.append(
            f"all pixels {maps_read} have the ids {meaning}, as in a binary mask: check that they are class ids"
        )
    elif labelled and labelled[0] == 1 and 0 not in classes.unlabelled_ids:
        doubts.append(
            f"no pixel {maps_read} has the id {first}; they hold {labelled[0]} to {labelled[-1]}: check that "
            "ids are not counted from 1"
        )
    elif len(labelled) > 1 and set(labelled) <= set(classes.label_ids.values()):
        doubts.append(
            f"all ids {maps_read} ({', '.join(map(str, labelled))}) are also ids of *_labelIds.png, and none is "
            f"{first}: check that they are ids of {classes.key}"
        )
    return doubts
