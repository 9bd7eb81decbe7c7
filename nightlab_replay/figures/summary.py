# SPDX-License-Identifier: Apache-2.0
"""The contents of report.json."""

from __future__ import annotations

from nightlab_replay.figures.statistics import PairedAccuracy
from nightlab_replay.records import JsonModel, Run

REPORT_FORMAT = 1


class Percentiles(JsonModel):
    """Distribution of a time in milliseconds over the frames that have it."""

    frames: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    counts: tuple[int, ...]  #: frames per bin; bins of equal width from 0 to `counts_to`
    counts_to: float


class Reliability(JsonModel):
    """Confidence against accuracy, in bins of equal width. An empty bin is None."""

    confidence: tuple[float | None, ...]  #: mean, 0..1
    correct: tuple[float | None, ...]  #: share of correct pixels, 0..1
    pixels: tuple[int, ...]
    mean_confidence: float | None  #: over all pixels, 0..1
    mean_correct: float | None
    expected_calibration_error: float | None  #: mean of |confidence - correct|, weighted by pixels


class Uncertainty(JsonModel):
    """Mean uncertainty-aware IoU, see `metrics.uncertainty_aware_iou`: pixels below a threshold count as invalid."""

    uiou: float  #: at the best threshold, chosen on these labels
    threshold: float  #: the best threshold of the confidence, 0..1
    average: float  #: over all thresholds
    by_threshold: tuple[float, ...]  #: at equal steps from 0, which gives the mIoU


class LightCalibration(JsonModel):
    """Calibration of the confidence of the frames of one light level. Pairs are (image level, both levels)."""

    name: str
    span: str
    frames: int
    expected_calibration_error: tuple[float | None, float | None]
    uiou: tuple[float | None, float | None]  #: each at the best threshold of this light level


class FrameNumbers(JsonModel):
    """Number of frames by status."""

    expected: int
    ok: int
    dropped: int
    unreadable: int
    missing: int  #: not replayed yet because the run was interrupted
    labelled: int
    reasons: dict[str, int]  #: of frames that are not ok, and of labels that could not be used

    @property
    def losses(self) -> list[str]:
        """Statuses, other than ok, that at least one frame has."""
        return [status for status in ("dropped", "unreadable", "missing") if getattr(self, status)]


class BagFigures(JsonModel):
    """Figures of one bag."""

    name: str
    frames: FrameNumbers
    seconds: float | None
    miou: float | None  #: both levels
    problems: tuple[str, ...]


class LightBehaviour(JsonModel):
    """Figures that need no labels, for one light level: means over frames, None if no frame has the number."""

    name: str
    span: str
    frames: int
    confidence: float | None  #: 0..1
    agreement: float | None
    flicker: float | None
    regions: float | None


class Behaviour(JsonModel):
    """Figures that need no labels. The figures of regions are None for a live run, which does not receive regions."""

    confidence: float | None  #: mean over frames, 0..1
    agreement: float | None  #: share of pixels that both levels label alike
    flicker: float | None  #: share of still pixels whose label changed since the previous frame
    by_light: tuple[LightBehaviour, ...]
    regions_per_frame: tuple[int, ...] | None  #: number of frames with 0, 1, 2 ... hard regions
    refined_per_frame: (
        tuple[int, ...] | None
    )  #: number of frames with 0, 1, 2 ... regions with labels of the region level
    refine_reasons: dict[str, int]  #: number of frames by `Result.refine_reason`
    region_heat: tuple[tuple[float, ...], ...] | None  #: share of frames with a region there, rows from the top


class Timeline(JsonModel):
    """A run over time in few points. A point is the mean over its frames, None if no frame has the number."""

    seconds: tuple[float, ...]  #: since the first frame; bags follow one another
    light_level: tuple[float | None, ...]
    confidence: tuple[float | None, ...]  #: 0..1
    lost: tuple[int, ...]  #: dropped or unreadable frames
    bag_starts: dict[str, float]


class RunSummary(JsonModel):
    """report.json."""

    format: int = REPORT_FORMAT
    complete: bool
    run: Run
    frames: FrameNumbers
    bags: tuple[BagFigures, ...]
    accuracy: PairedAccuracy | None
    reliability: dict[str, Reliability]  #: by method; empty without labels
    uncertainty: dict[str, Uncertainty]  #: by method; empty unless the confidence of every labelled frame is known
    calibration_by_light: tuple[
        LightCalibration, ...
    ]  #: light levels, then the dark ones together; empty without labels
    behaviour: Behaviour
    stages_ms: dict[str, Percentiles]
    latency_ms: Percentiles | None
    age_ms: Percentiles | None
    timeline: Timeline
