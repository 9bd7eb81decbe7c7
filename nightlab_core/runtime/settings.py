# SPDX-License-Identifier: Apache-2.0
"""Define the pipeline's settings: each is a parameter of the node and an option of `--set`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from nightlab_core.config import Settings
from nightlab_core.runtime.light import DAY_ABOVE, NIGHT_BELOW

MAX_REGIONS = 10
#: The memory of `temporal.py` lasts from one multiple of this number of frames to the next.
KEY_FRAMES = 32
Fraction = Annotated[float, Field(ge=0, le=1)]


class PipelineSettings(Settings):
    """Settings that may change between two frames."""

    refine: Annotated[
        Literal["always", "night", "never"],
        Field(
            description="when hard regions are refined: in every frame, in dark frames only, or never; a frame that is "
            "not refined takes the time of the image network alone"
        ),
    ] = "always"
    night_below: Annotated[
        Fraction,
        Field(
            description="with `refine: night`, refining starts when a frame's mean linear luminance, `light_level`, is "
            "lower; it is also on at the start, until a frame is brighter than `day_above`"
        ),
    ] = NIGHT_BELOW
    day_above: Annotated[
        Fraction,
        Field(
            description="with `refine: night`, refining stops when a frame's `light_level` is higher; between the two "
            "thresholds nothing changes, so that it does not switch back and forth at dusk"
        ),
    ] = DAY_ABOVE
    merge: Annotated[
        Literal["auto", "replace", "confident", "window"],
        Field(
            description="replace pastes the boxes of regions; confident keeps, per pixel, the label of the more "
            "confident level; window pastes the pixels around the boxes as well; auto is window for a bundle whose "
            "region network reads the image level's probabilities, else confident"
        ),
    ] = "auto"
    max_regions: Annotated[
        int, Field(ge=0, le=MAX_REGIONS, description="largest number of regions of a frame that are read")
    ] = MAX_REGIONS
    score_threshold: Annotated[Fraction, Field(description="regions with a lower hardness score are not refined")] = 0.0
    confidence_threshold: Annotated[
        Fraction, Field(description="pixels with a lower class probability are published as 255, unlabelled")
    ] = 0.0
    nms_iou: Annotated[
        Fraction, Field(description="of boxes that overlap by more than this IoU, only the best is kept")
    ] = 0.3
    region_margin: Annotated[
        Fraction, Field(description="context around a box on each side, as a fraction of the box's side")
    ] = 0.2
    share_windows: Annotated[
        bool,
        Field(
            description="read boxes whose windows overlap strongly in one crop, if the largest crop holds them at 2.2 "
            "times the image level's resolution: saves time where hard regions lie close together"
        ),
    ] = False
    hardness_every: Annotated[
        int,
        Field(
            ge=1,
            le=KEY_FRAMES,
            description="the hardness network runs in every n-th frame; between, the boxes of its last run are used",
        ),
    ] = 1
    unchanged_below: Annotated[
        float,
        Field(
            ge=0,
            le=255,
            description="a region keeps its labels while its pixels change less than this since it was read: largest "
            "change, in any channel, of the mean colour, 0 to 255, of a cell of 16 x 16 in its window. 0: off",
        ),
    ] = 0.0
    regions_in_turn: Annotated[
        bool,
        Field(
            description="choose the `max_regions` regions to read by hardness times the number of frames since they "
            "were read, so that all get their turn"
        ),
    ] = False
    carry_frames: Annotated[
        int,
        Field(
            ge=0,
            lt=KEY_FRAMES,
            description="number of frames for which a region that is not read again keeps its labels, moved along with "
            "its box; 0: off",
        ),
    ] = 0
    deadline_ms: Annotated[
        float,
        Field(
            ge=0,
            le=10_000,
            description="milliseconds for a frame, without waiting, conversion and publishing: regions that cannot be "
            "read in time are left out. The result then depends on the machine's speed. 0: read all",
        ),
    ] = 0.0

    @field_validator("day_above")
    @classmethod
    def _not_below_night(cls, day_above: float, info: ValidationInfo) -> float:
        if day_above < info.data.get("night_below", 0.0):
            raise ValueError(f"expected at least night_below, which is {info.data['night_below']:g}")
        return day_above
