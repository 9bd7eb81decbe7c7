# SPDX-License-Identifier: Apache-2.0
"""Check the outputs of the engines where they enter the pipeline. A check takes microseconds or raises EngineError."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nightlab_core.runtime.bundle import EngineKind

#: Boxes may end outside the frame, where they are clipped, but no further than this, as a fraction of the frame.
FARTHEST = 1.0
#: Rounding may take a score of a low-precision network beyond 0..1 by as much.
SCORE_TOLERANCE = 0.01


class EngineError(RuntimeError):
    """An engine's output that cannot be used. The message says what was received and expected, and what to do."""


def checked_maps(
    kind: EngineKind, output: Mapping[str, np.ndarray], shape: tuple[int, int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and confidence of the image or region engine, uint8 (N, H, W).

    They must have this shape, and labels from 0 to `num_classes` - 1, or 255.
    """
    for name in ("labels", "confidence"):
        _check_array(kind, name, output, np.dtype(np.uint8), shape)
    labels = output["labels"]
    # In uint8 255 + 1 is 0, so that one pass finds the largest id other than 255.
    if (highest := int((labels + np.uint8(1)).max(initial=0)) - 1) >= num_classes:
        raise _error(kind, f"label {highest}", f"labels from 0 to {num_classes - 1}, or 255")
    return labels, output["confidence"]


def checked_probabilities(output: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the image engine's probabilities, uint8 (h, w, C). The region engine checks their number C."""
    _check_array("image", "probabilities", output, np.dtype(np.uint8), (1, None, None, None))
    return output["probabilities"][0]


def checked_boxes(output: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hardness engine's boxes, float32 (N, 4) as fractions of the frame, and scores, float32 (N,)."""
    float32 = np.dtype(np.float32)
    _check_array("hardness", "boxes", output, float32, (1, None, 4))
    boxes = output["boxes"][0]
    _check_array("hardness", "scores", output, float32, (1, len(boxes)))
    scores = output["scores"][0]
    for name, values, low, high in (
        ("boxes", boxes, -FARTHEST, 1 + FARTHEST),
        ("scores", scores, -SCORE_TOLERANCE, 1 + SCORE_TOLERANCE),
    ):
        if not (inside := (values >= low) & (values <= high)).all():  # also false for NaN
            raise _error("hardness", f"{name} with {values[~inside][0]:g}", f"finite numbers from {low:g} to {high:g}")
    return boxes, scores


def _check_array(
    kind: EngineKind,
    name: str,
    output: Mapping[str, np.ndarray],
    dtype: np.dtype,
    shape: tuple[int | None, ...],
) -> None:
    array = output.get(name)
    if array is None:
        raise _error(kind, f"outputs {sorted(output)}", f"one named {name!r}")
    sizes_fit = len(array.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not sizes_fit:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise _error(kind, f"{name} {array.dtype} {array.shape}", f"{dtype} ({wanted})")


def _error(kind: EngineKind, received: str, expected: str) -> EngineError:
    return EngineError(
        f"the {kind} network: received {received}, expected {expected}; "
        "export the bundle again, or try another engine or precision"
    )
