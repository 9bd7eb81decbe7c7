# SPDX-License-Identifier: Apache-2.0
"""What a run holds: its settings, its inputs, one record per frame and integer counts per labelled frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightlab_core.classes import load_class_set, shipped_keys
from nightlab_core.labels import ClassSet
from nightlab_core.metrics import CONFIDENCE_BINS
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions, PrecisionChoice
from nightlab_core.runtime.settings import PipelineSettings

#: First axis of every count: the image level alone, and both levels merged.
METHODS = ("image_level", "both_levels")
#: Horizontal bands of equal height that an image is divided into, from the top (far) to the bottom (near).
NUM_BANDS = 4
NUM_BINS = CONFIDENCE_BINS


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """One image message of a bag. Unknown values are None or empty: a dropped or unreadable frame has no light level,
    no stage times and no boxes."""

    bag: str  #: `BagInfo.name`
    index: int  #: position among the bag's image messages in the order of recording, from 0
    time_ns: int  #: time of recording
    stamp_ns: int  #: the header's stamp; the time of recording if the stamp is zero or unreadable
    frame_id: str = ""
    status: Literal["ok", "dropped", "unreadable"] = "ok"
    reason: str = ""  #: why the frame is not ok, or why its label map could not be used
    size_hw: tuple[int, int] | None = None
    light_level: float | None = None  #: mean linear luminance, 0..1
    refine_reason: str = ""  #: `Result.refine_reason`; live: empty
    mean_confidence: float | None = None  #: of both levels, 0..255
    agreement: float | None = None  #: share of pixels that both levels label alike, 0..1
    flicker: float | None = None  #: share of still pixels whose label changed since the previous frame, 0..1; None for
    #: a first frame, after a frame of another size, and if hardly a pixel stayed still
    stages_ms: dict[str, float] = field(default_factory=dict)  #: by `pipeline.STAGES`; live: empty
    latency_ms: float | None = None  #: real time and live only: from the frame's due time to its mask
    age_ms: float | None = None  #: live only: from the frame's stamp to the receipt of its mask
    #: hard regions in 0..1 of width and height, with their scores; live: empty
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    scores: tuple[float, ...] = ()
    refined: tuple[bool, ...] = ()  #: `Result.refined`
    ages: tuple[int, ...] = ()  #: `Result.ages`: frames since the merged labels of each box were read; -1: none merged
    labelled: bool = False  #: True if the chunk has counts of this frame


@dataclass(frozen=True)
class FrameCounts:
    """Integer counts of N labelled frames for both METHODS."""

    confusion: np.ndarray  #: int64 (N, 2, NUM_BANDS, C, C + 1), `metrics.confusion_matrix` per band
    reliability: np.ndarray  #: int64 (N, 2, NUM_BINS, 2): labelled pixels, and the correct ones among them
    confidence_sum: np.ndarray  #: int64 (N, 2, NUM_BINS): sum of the confidences 0..255 of the labelled pixels
    #: int64 (N, 2, NUM_BINS, C, 2): labelled pixels by predicted class, and the correct ones among them. All 0 where
    #: the confidence is unknown, and in runs of earlier versions.
    by_confidence: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> FrameCounts:
        """Return the counts of no frame."""
        return cls(
            np.zeros((0, len(METHODS), NUM_BANDS, num_classes, num_classes + 1), np.int64),
            np.zeros((0, len(METHODS), NUM_BINS, 2), np.int64),
            np.zeros((0, len(METHODS), NUM_BINS), np.int64),
            np.zeros((0, len(METHODS), NUM_BINS, num_classes, 2), np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[FrameCounts], num_classes: int) -> FrameCounts:
        """Return the counts of all parts in their order."""
        parts = [cls.empty(num_classes), *parts]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    def select(self, rows: np.ndarray) -> FrameCounts:
        """Return the counts of some frames: `rows` is bool (N,)."""
        return FrameCounts(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.confusion)


class JsonModel(BaseModel):
    """Base of everything that is written as JSON: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplaySettings(JsonModel):
    """Settings that affect the result. A run is resumed only with equal settings."""

    mode: Literal["all", "realtime", "live"] = "all"  #: every frame; at the recorded rate; through the live node
    engine: EngineChoice = "auto"
    precision: PrecisionChoice = "auto"
    threads: int = 0
    pipeline: PipelineSettings = PipelineSettings()
    classes: str  #: key of the class set of labels and counts
    class_names: tuple[str, ...]
    own_classes: ClassSet | None = None  #: that class set if it is not a shipped one
    topic: str | None = None  #: as requested; `BagInfo.image_topic` is the topic that was used
    label_topic: str | None = None
    pixel_bits: int = 0  #: significant bits of 16-bit pixels; 0: measured over each bag's first frames
    rate: float = 1.0  #: real time and live: multiple of the recorded rate
    max_frames: int | None = None  #: of each bag
    chunk_frames: int = 64
    keep_masks: bool = False  #: for a bag of masks

    def engines(self, frame_hw: tuple[int, int] | None) -> EngineOptions:
        """Return the options that open the engines for frames of this size (height, width).

        Nothing is measured where every frame is replayed, so that parts of a run on other machines have equal results.
        """
        return EngineOptions(
            engine=self.engine,
            precision=self.precision,
            threads=self.threads,
            frame_hw=frame_hw,
            calibration_s=0.0 if self.mode == "all" else EngineOptions().calibration_s,
        )

    @staticmethod
    def class_fields(classes: ClassSet) -> dict[str, Any]:
        """Return the values of the fields that describe a class set."""
        own = None if classes.key in shipped_keys() else classes
        return {"classes": classes.key, "class_names": classes.names, "own_classes": own}

    @property
    def class_set(self) -> ClassSet:
        """The class set of the counts. Its colours are grey in runs that do not hold them."""
        known = load_class_set(self.classes) if self.classes in shipped_keys() else self.own_classes
        if known is not None and known.names == self.class_names:
            return known
        grey = tuple((128, 128, 128) for _ in self.class_names)
        return ClassSet(key=self.classes, names=self.class_names, colors_rgb=grey)


class BundleInfo(JsonModel):
    """The bundle of a run."""

    path: str
    name: str
    sha256: dict[str, str]  #: by file, including bundle.yaml
    manifest: dict[str, Any]
    engine: str  #: name of the inference library, as `Engines.name`


class TopicInfo(JsonModel):
    """A topic of a bag."""

    type: str
    count: int


class BagInfo(JsonModel):
    """One bag and its problems."""

    name: str  #: unique in the run: the name of the file or folder
    path: str
    storage: str  #: "sqlite3", "mcap" or "rosbag1", followed by ", damaged" if the bag had to be salvaged
    size_bytes: int
    mtimes_ns: dict[str, int] = {}  #: modification time by file; empty if unknown
    sha256: dict[str, str] = {}  #: by file; empty until the run is complete
    topics: dict[str, TopicInfo]
    image_topic: str | None = None  #: None if nothing could be read
    label_topic: str | None = None
    label_classes: str | None = None  #: class set that the bag names for its labels
    num_frames: int  #: image messages to replay
    num_labels: int = 0
    frame_hw: tuple[int, int] | None = None  #: of the first readable image
    problems: tuple[str, ...] = ()  #: problems of single frames are in their records
    notes: tuple[str, ...] = ()  #: facts found about pixels and label maps; no faults


def first_frame_hw(bags: Sequence[BagInfo]) -> tuple[int, int] | None:
    """Return (H, W) of the first readable image of all bags. TensorRT plans are looked up by it."""
    return next((bag.frame_hw for bag in bags if bag.frame_hw is not None), None)


class Run(JsonModel):
    """run.json."""

    format: Literal[1] = 1
    started: str  #: ISO 8601 in UTC
    finished: str | None = None  #: None while frames are missing
    settings: ReplaySettings
    bundle: BundleInfo
    bags: tuple[BagInfo, ...]
    versions: dict[str, str]
    machine: dict[str, str]
    wall_s: float = 0.0  #: summed over all sessions
    workers: int = 0  #: processes on this machine; 0: a single process; -1: a cluster of any size
    node: dict[str, str] = {}  #: live only: the node's last diagnostics

    @property
    def num_frames(self) -> int:
        """Number of frames to replay, of all bags."""
        return sum(bag.num_frames for bag in self.bags)


@dataclass(frozen=True)
class RunData:
    """A complete or partial run: `records` by bag, in the order of `run.bags`, and index; `counts` of the labelled
    records in the same order."""

    run: Run
    records: list[FrameRecord]
    counts: FrameCounts

    @property
    def labelled(self) -> list[FrameRecord]:
        """The record of each row of `counts`."""
        return [r for r in self.records if r.labelled]

    @property
    def complete(self) -> bool:
        """True if every frame of every bag has a record."""
        return len(self.records) == self.run.num_frames
