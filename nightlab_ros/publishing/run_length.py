# SPDX-License-Identifier: Apache-2.0
"""Masks for Autoware's segmentation_pointcloud_fusion: its classes, in its run-length form. Imports no ROS.

The fusion removes the points of a lidar on certain classes. It reads a sensor_msgs/Image whose data is a sequence of
runs, and checks neither the encoding nor the length, so that any other data makes it write outside the mask.
"""

from __future__ import annotations

import numpy as np

from nightlab_core.classes import load_class_set
from nightlab_core.labels import ClassSet, class_mapping

#: Key of the class set whose ids are those of Autoware.
CLASSES = "autoware16"
#: Encoding of the messages. It is none of ROS's, so that nothing takes the data for pixels.
ENCODING = "rle8"
#: A run: the id of its pixels, and their number. Numbers are int in Autoware, which runs on little endian only.
RUN = np.dtype([("id", "u1"), ("length", "<i4")])
#: Autoware's id of everything else.
UNKNOWN_ID = 0


def autoware_ids(classes: ClassSet, autoware: ClassSet) -> tuple[np.ndarray, list[str]]:
    """Return a table, uint8 (256,): id of a mask's class -> Autoware's id; and the classes that have none.

    These and unlabelled become `UNKNOWN_ID`. Raises ValueError if `autoware` has other classes than the shipped
    `CLASSES`, or nothing in common with `classes`.
    """
    if autoware.names != (expected := load_class_set(CLASSES).names):
        raise ValueError(
            f"received the class set {autoware.key}, whose classes are {', '.join(autoware.names)}; expected those of "
            f"{CLASSES} in their order, which are Autoware's ids: {', '.join(expected)}"
        )
    table, unmapped = np.full(256, UNKNOWN_ID, np.uint8), []
    for own, (name, ids) in enumerate(zip(classes.names, class_mapping(classes, autoware), strict=True)):
        if ids:
            table[own] = ids[0]
        else:
            unmapped.append(name)
    return table, unmapped


def encode_runs(labels: np.ndarray) -> np.ndarray:
    """Encode a label map, uint8 (H, W), as runs of equal ids in rows from the top left: `RUN` (N,).

    A run may go on in the next row. The lengths add up to H x W.
    """
    ids = labels.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    runs = np.empty(len(starts), RUN)
    runs["id"], runs["length"] = ids[starts], np.diff(starts, append=ids.size)
    return runs
