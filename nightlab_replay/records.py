# SPDX-License-Identifier: Apache-2.0
"""What a replay knows: one record a frame, integer counts of every labelled frame, and the run's configuration.

A run is a folder: run.json (`Run`) and chunks/<bag>-<first index>.npz, each a stretch of consecutive frames of one bag
and written whole or not at all. A chunk is the unit of resuming and of distribution. Everything that is summed is an
integer, and merging is putting chunks in order, so that it does not matter who computed which.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nightlab_core.files import atomic_path, write_atomic
from nightlab_core.labels import CLASS_SETS, ClassSet
from nightlab_core.runtime.engines.engine import EngineChoice, EngineOptions
from nightlab_core.runtime.pipeline import PipelineSettings

FORMAT = 1
#: The first axis of every count: the image network alone, and both levels merged.
METHODS = ("image_level", "both_levels")
#: Horizontal bands of the image, from the top (far away) to the bottom (near): so many of equal height.
NUM_BANDS = 4
#: Bins of confidence, of equal width over 0..255.
NUM_BINS = 20
#: What reading a damaged chunk may raise.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class FrameRecord:
    """One image message of a bag. What is not known of a frame is None or empty: a dropped or unreadable one has no
    light level, no stages and no boxes."""

    bag: str  #: `BagInfo.name`
    index: int  #: place among the bag's image messages in the order of recording, from 0
    time_ns: int  #: when it was recorded
    stamp_ns: int  #: the header's stamp; the time of recording where that is zero or unreadable
    frame_id: str = ""
    status: Literal["ok", "dropped", "unreadable"] = "ok"
    reason: str = ""  #: of a frame that is not ok, or of a label map that could not be used; in words
    size_hw: tuple[int, int] | None = None
    light_level: float | None = None  #: mean linear luminance, 0..1
    mean_confidence: float | None = None  #: of both levels, 0..255
    agreement: float | None = None  #: share of pixels to which both levels give the same label, 0..1
    flicker: float | None = None  #: share of the pixels that hardly changed since the previous frame whose label did;
    #: None for the first frame, after one of another size, and where hardly a pixel stayed the same
    stages_ms: dict[str, float] = field(default_factory=dict)  #: by `pipeline.STAGES`; live: empty
    latency_ms: float | None = None  #: real time and live only: from the frame's due time to the mask
    age_ms: float | None = None  #: live only: from the frame's stamp to the mask's receipt
    boxes_xyxy: tuple[
        tuple[float, float, float, float], ...
    ] = ()  #: hard regions, in 0..1 of width and height; live: empty, for they are not listened to
    scores: tuple[float, ...] = ()
    refined: tuple[bool, ...] = ()  #: whether the region engine read the box
    labelled: bool = False  #: True if the counts of this frame are there


@dataclass(frozen=True)
class Counts:
    """Integer counts of N labelled frames by both METHODS; N is 1 for a frame's own."""

    confusion: np.ndarray  #: int64 (N, 2, NUM_BANDS, C, C + 1) as `metrics.confusion_matrix`, by band
    reliability: np.ndarray  #: int64 (N, 2, NUM_BINS, 2): pixels with a known truth, and how many of them were right
    confidence_sum: np.ndarray  #: int64 (N, 2, NUM_BINS): sum of the confidences 0..255 of those pixels

    @classmethod
    def empty(cls, num_classes: int) -> Counts:
        """Of no frame."""
        return cls(
            np.zeros((0, len(METHODS), NUM_BANDS, num_classes, num_classes + 1), np.int64),
            np.zeros((0, len(METHODS), NUM_BINS, 2), np.int64),
            np.zeros((0, len(METHODS), NUM_BINS), np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Counts], num_classes: int) -> Counts:
        """Of the frames of all parts, in their order."""
        parts = [cls.empty(num_classes), *parts]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.confusion)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplaySettings(_Model):
    """What decides the result: a run goes on only with the very same."""

    mode: Literal["all", "realtime", "live"] = "all"  #: every frame; at the recorded rate; through the live node
    engine: EngineChoice = "auto"
    precision: Literal["auto", "float32"] = "auto"
    threads: int = 0
    pipeline: PipelineSettings = PipelineSettings()
    classes: str  #: key of CLASS_SETS in which labels are given and frames are judged, or the bundle's own name
    class_names: tuple[str, ...]
    topic: str | None = None  #: as asked for; `BagInfo` says what was found
    label_topic: str | None = None
    rate: float = 1.0  #: real time and live: so many times the recorded rate
    max_frames: int | None = None  #: of each bag
    chunk_frames: int = 64
    keep_masks: bool = False  #: for a bag of masks

    def engines(self, frame_hw: tuple[int, int] | None) -> EngineOptions:
        """Return the options that open the engines for frames of this size (height, width)."""
        return EngineOptions(engine=self.engine, precision=self.precision, threads=self.threads, frame_hw=frame_hw)

    @property
    def class_set(self) -> ClassSet:
        """The class set of the counts; colours are grey where only the bundle knows them."""
        known = CLASS_SETS.get(self.classes)
        if known is not None and known.names == self.class_names:
            return known
        return ClassSet(self.classes, self.class_names, tuple((128, 128, 128) for _ in self.class_names))


class BundleInfo(_Model):
    """The bundle that ran."""

    path: str
    name: str
    sha256: dict[str, str]  #: by file, bundle.yaml among them
    manifest: dict[str, Any]
    engine: str  #: inference library, e.g. "openvino", as `Engines.name`


class TopicInfo(_Model):
    """A topic of a bag."""

    type: str
    count: int


class BagInfo(_Model):
    """One bag, and what was found wrong with it."""

    name: str  #: unique in the run: the file's or folder's name
    path: str
    storage: str  #: "sqlite3", "mcap" or "rosbag1"; ", damaged" where it had to be salvaged
    size_bytes: int
    mtimes_ns: dict[str, int] = {}  #: when each file was last written; empty: not known, as in runs of earlier versions
    sha256: dict[str, str] = {}  #: by file; empty until the run is complete
    topics: dict[str, TopicInfo]
    image_topic: str | None = None  #: None where nothing could be read
    label_topic: str | None = None
    label_classes: str | None = None  #: the class set that the bag names for its labels
    num_frames: int  #: image messages that will be replayed
    num_labels: int = 0
    frame_hw: tuple[int, int] | None = None  #: of the first image that can be read
    problems: tuple[str, ...] = ()  #: in words; what is wrong with single frames is in their records


def first_frame_hw(bags: Sequence[BagInfo]) -> tuple[int, int] | None:
    """(H, W) of the first image of all bags, which TensorRT's plans are looked up by."""
    return next((bag.frame_hw for bag in bags if bag.frame_hw is not None), None)


class Run(_Model):
    """run.json."""

    format: Literal[1] = 1
    started: str  #: ISO 8601 in UTC
    finished: str | None = None  #: None while frames are missing: interrupted, or still at work
    settings: ReplaySettings
    bundle: BundleInfo
    bags: tuple[BagInfo, ...]
    versions: dict[str, str]
    machine: dict[str, str]
    wall_s: float = 0.0  #: summed over all sittings
    workers: int = 0  #: processes on this machine; 0: the one process; -1: a cluster, of whatever size
    node: dict[str, str] = {}  #: live only: the node's own last diagnostics

    @property
    def num_frames(self) -> int:
        """Of all bags, as many as will be replayed."""
        return sum(bag.num_frames for bag in self.bags)


@dataclass(frozen=True)
class RunData:
    """A run as far as it has come: `records` by bag, in the order of `run.bags`, and index; `counts` of the labelled
    ones among them, in the same order."""

    run: Run
    records: list[FrameRecord]
    counts: Counts

    @property
    def labelled(self) -> list[FrameRecord]:
        """The record of each row of `counts`."""
        return [r for r in self.records if r.labelled]

    @property
    def complete(self) -> bool:
        """True if every frame of every bag has its record."""
        return len(self.records) == self.run.num_frames


class StoreError(ValueError):
    """A run's folder that cannot be used; says why and what to do."""


def write_run(folder: Path, run: Run) -> None:
    """Write run.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "run.json", run.model_dump_json(indent=1) + "\n")


def read_run(folder: Path) -> Run:
    """Raises StoreError if there is none, or none of this format."""
    path = folder / "run.json"
    try:
        return Run.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no run.json; expected a folder that nightlab-replay wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise StoreError(
            f"{path}: {where}: {first['msg']}; it was written by another version or cut short: "
            "replay into a new folder, or give --restart"
        ) from error


def write_chunk(folder: Path, records: Sequence[FrameRecord], counts: Counts) -> None:
    """Write consecutive frames of one bag; `counts` has a row for each labelled one. Raises ValueError otherwise."""
    if len(counts) != sum(r.labelled for r in records):
        raise ValueError(f"{len(counts)} rows of counts for {sum(r.labelled for r in records)} labelled frames")
    text = json.dumps([asdict(r) for r in records], separators=(",", ":")).encode()
    with atomic_path(chunk_path(folder, records[0].bag, records[0].index)) as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            records=np.frombuffer(text, np.uint8),
            confusion=counts.confusion.astype(np.uint32),
            reliability=counts.reliability.astype(np.uint32),
            confidence_sum=counts.confidence_sum,
        )


def chunk_path(folder: Path, bag: str, first_index: int) -> Path:
    """Where the chunk that begins with this frame lies."""
    return folder / "chunks" / f"{bag}-{first_index:08d}.npz"


def chunk_paths(folder: Path) -> list[Path]:
    """Every chunk there is, in order of name."""
    return sorted((folder / "chunks").glob("*.npz"))


def read_chunk(path: Path) -> tuple[list[FrameRecord], Counts]:
    """Raises StoreError for a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            records = [_record(values) for values in json.loads(arrays["records"].tobytes())]
            counts = Counts(*(arrays[name].astype(np.int64) for name in Counts.__dataclass_fields__))
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return records, counts


def load_records(folder: Path, run: Run) -> list[FrameRecord]:
    """As `load_run`, without the counts, which take most of the memory: 24 kB a frame of 19 classes."""
    records: list[FrameRecord] = []
    order = {bag.name: place for place, bag in enumerate(run.bags)}
    for path in chunk_paths(folder):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                records += [_record(values) for values in json.loads(arrays["records"].tobytes())]
        except _DAMAGED as error:
            raise _damaged(path, error) from error
    return sorted((r for r in records if r.bag in order), key=lambda r: (order[r.bag], r.index))


def load_run(folder: Path) -> RunData:
    """All that report and comparison use. A run that is not complete loads as far as it has come. Raises StoreError."""
    run = read_run(folder)
    order = {bag.name: place for place, bag in enumerate(run.bags)}
    chunks = [chunk for chunk in map(read_chunk, chunk_paths(folder)) if chunk[0] and chunk[0][0].bag in order]
    chunks.sort(key=lambda chunk: (order[chunk[0][0].bag], chunk[0][0].index))
    counts = Counts.concatenate([c for _, c in chunks], len(run.settings.class_names))
    return RunData(run, [r for records, _ in chunks for r in records], counts)


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path} cannot be read ({error}): run the same command again to replace it")


def _record(values: dict[str, Any]) -> FrameRecord:
    for key in ("size_hw", "scores", "refined"):
        values[key] = None if values[key] is None else tuple(values[key])
    values["boxes_xyxy"] = tuple(map(tuple, values["boxes_xyxy"]))
    return FrameRecord(**values)
