# SPDX-License-Identifier: Apache-2.0
"""Check label maps against their image and class set."""

from __future__ import annotations

import cv2
import numpy as np

from nightlab_core.labels import CAMVID11, CLASS_SETS, IGNORE_ID, ClassSet

#: CamVid's files give void the id 11.
CAMVID_VOID = 11


def checked_labels(labels: np.ndarray | None, image_bgr: np.ndarray, classes: ClassSet, name: str) -> np.ndarray | None:
    """Return a label map, uint8 (H, W), with CamVid's void replaced by 255; None for None.

    Raises ValueError, with `name`, if it does not fit its image or holds ids that the class set does not have.
    """
    if labels is None:
        return None
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"labels {name} are {labels.dtype} {labels.shape}; expected class ids, uint8 (H, W), not colours"
        )
    if labels.shape != image_bgr.shape[:2]:
        raise ValueError(
            f"labels {name} are {labels.shape}, their image is {image_bgr.shape[:2]}; expected the same (H, W)"
        )
    if classes is CAMVID11:
        labels = np.where(labels == CAMVID_VOID, np.uint8(IGNORE_ID), labels)
    # a histogram finds the ids 20 times as fast as np.unique does
    present = np.flatnonzero(cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]))
    unknown = np.setdiff1d(present, [*range(len(classes)), IGNORE_ID])
    if unknown.size:
        raise ValueError(
            f"labels {name} hold the ids {unknown.tolist()}; {classes.key} has 0-{len(classes) - 1} and {IGNORE_ID}: "
            f"name the right class set (one of {', '.join(CLASS_SETS)})"
        )
    return labels
