# SPDX-License-Identifier: Apache-2.0
"""Match the label maps of a bag to its images by their stamps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

#: A label map belongs to the only image within this time of its stamp if no image has that stamp; a third of the
#: images' interval if that is less.
TOLERANCE_NS = 25_000_000


@dataclass(frozen=True)
class LabelPairs:
    """Numbers of label maps by what became of them; `places` has, for each matched image's index, that of its map."""

    places: dict[int, int]
    tolerance_ns: int
    exact: int
    near: int
    unmatched: int
    ambiguous: int

    def sentence(self, topic: str) -> str:
        """Return the numbers in words, or "" if every label map has the stamp of one image."""
        if not (self.near or self.unmatched or self.ambiguous):
            return ""
        total = self.exact + self.near + self.unmatched + self.ambiguous
        return (
            f"{topic}: of {total} label maps {self.exact} have the stamp of an image, {self.near} were matched to one "
            f"within {self.tolerance_ns / 1e6:.3g} ms, {self.unmatched} match no image and {self.ambiguous} more than "
            "one; the last two are not used"
        )


def pair_labels(images_ns: np.ndarray, labels_ns: np.ndarray) -> LabelPairs:
    """Match label maps to images by stamps in ns, int64 (N,) and (M,), both in the order of recording.

    A stamp that several images or label maps have is matched in this order if there are as many of both. Negative
    stamps match nothing.
    """
    images, labels = _places(images_ns), _places(labels_ns)
    places: dict[int, int] = {}
    ambiguous: list[int] = []
    for stamp in images.keys() & labels.keys():
        if len(images[stamp]) == len(labels[stamp]):
            places.update(zip(images[stamp], labels[stamp], strict=True))
        else:
            ambiguous += labels[stamp]
    exact, tolerance_ns = len(places), _tolerance_ns(images_ns)
    left = [(stamp, place) for stamp, found in labels.items() if stamp not in images for place in found]
    free = np.sort([stamp for stamp in images if stamp not in labels]).astype(np.int64)
    wanted = np.sort([stamp for stamp, _ in left]).astype(np.int64)
    unmatched = 0
    for stamp, place in left:
        near = _within(free, stamp, tolerance_ns)
        others = sum(len(_within(wanted, image, tolerance_ns)) > 1 for image in near)
        if len(near) == 1 and not others and len(images[int(near[0])]) == 1:
            places[images[int(near[0])][0]] = place
        elif len(near):
            ambiguous.append(place)
        else:
            unmatched += 1
    return LabelPairs(places, tolerance_ns, exact, len(places) - exact, unmatched, len(ambiguous))


def _places(stamps_ns: np.ndarray) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for place, stamp in enumerate(stamps_ns.tolist()):
        if stamp >= 0:
            found[stamp].append(place)
    return dict(found)


def _tolerance_ns(images_ns: np.ndarray) -> int:
    intervals = np.diff(np.unique(images_ns[images_ns >= 0]))
    return min(TOLERANCE_NS, int(np.median(intervals)) // 3) if len(intervals) else TOLERANCE_NS


def _within(sorted_ns: np.ndarray, stamp_ns: int, tolerance_ns: int) -> np.ndarray:
    first, stop = np.searchsorted(sorted_ns, [stamp_ns - tolerance_ns, stamp_ns + tolerance_ns + 1])
    return sorted_ns[first:stop]
