# SPDX-License-Identifier: Apache-2.0
"""The result of a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nightlab_core.runtime.refinement import Outcome

#: Reason why a frame is refined ("always", "night") or not ("day", "never"): the setting, or the light in the frame.
RefineReason = Literal["always", "night", "day", "never"]


@dataclass(frozen=True)
class Result:
    """The result of one frame of H x W pixels. Do not write into the arrays: two of them may share their memory."""

    labels: np.ndarray  #: uint8 (H, W): class ids after the merge; 255: unlabelled or below the confidence threshold
    confidence: np.ndarray  #: uint8 (H, W): 255 x probability of the label, also where the threshold removed it
    image_labels: np.ndarray  #: uint8 (H, W): `labels` of the image level alone
    image_confidence: np.ndarray  #: uint8 (H, W): `confidence` of the image level alone
    boxes_xyxy: np.ndarray  #: float32 (N, 4), N <= 10: hard regions in frame pixels, in descending score
    scores: np.ndarray  #: float32 (N,): hardness, 0..1
    outcomes: np.ndarray  #: uint8 (N,): `Outcome` of each box; those that are read, left out, late or failed were due
    ages: np.ndarray  #: int16 (N,): frames since the merged labels of a box were read, 0: in this one; -1: none merged
    hardness_late: bool  #: True if the deadline came before the boxes were known; then there are none
    refinement_error: str  #: why hard regions could not be found or read, or do not come; empty: no error
    #: Milliseconds of each stage in STAGES, 0 if it did not run. The paths overlap, so that `total` is less than the
    #: sum. `image` includes resizing the labels to the frame, `hardness` the suppression.
    stages_ms: dict[str, float]
    light_level: float  #: mean linear-light luminance of the frame, 0..1
    refine_reason: RefineReason  #: why hard regions were searched for, or not

    @property
    def refined(self) -> np.ndarray:
        """Bool (N,): True if labels of the region engine were merged, of this frame or carried from an earlier one."""
        return self.ages >= 0

    @property
    def refinement_late(self) -> bool:
        """True if the deadline came before any of the hard regions that were wanted was read."""
        wanted = np.isin(self.outcomes, (Outcome.LEFT_OUT, Outcome.LATE)).any()
        return self.hardness_late or bool(wanted and not (self.outcomes == Outcome.READ).any())
