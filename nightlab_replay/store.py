# SPDX-License-Identifier: Apache-2.0
"""Write and read the files of a run: run.json and the chunks, which hold the records and counts of its frames.

A run is a folder with run.json (`Run`) and chunks/<bag>-<first index>.npz. A chunk holds consecutive frames of one bag
and is written whole or not at all; resuming and distribution work chunk by chunk. All counts are integers and merging
only sorts chunks, so the result does not depend on which process computed which chunk.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from nightlab_core.files import atomic_path, write_atomic
from nightlab_replay.records import FrameCounts, FrameRecord, JsonModel, Run, RunData

#: Exceptions that reading a damaged chunk may raise.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


class StoreError(ValueError):
    """A run's folder that cannot be used. The message says why and what to do."""


def write_run(folder: Path, run: Run) -> None:
    """Write run.json atomically. The folder is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", run)


def write_json(path: Path, model: JsonModel) -> None:
    """Write a model as JSON, atomically."""
    write_atomic(path, model.model_dump_json(indent=1) + "\n")


def read_run(folder: Path) -> Run:
    """Read run.json. Raises StoreError if it is missing or has another format."""
    path = folder / "run.json"
    try:
        return Run.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{folder} holds no run.json; expected the output folder of nightlab replay") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise StoreError(
            f"{path}: {where}: {first['msg']}; another version wrote it, or it was cut short: "
            "replay into a new folder, or pass --restart"
        ) from error


def write_chunk(folder: Path, records: Sequence[FrameRecord], counts: FrameCounts) -> None:
    """Write consecutive frames of one bag. Raises ValueError unless `counts` has one row per labelled frame."""
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
            by_confidence=counts.by_confidence.astype(np.uint32),
        )


def chunk_path(folder: Path, bag: str, first_index: int) -> Path:
    """Return the path of the chunk that begins with this frame."""
    return folder / "chunks" / f"{bag}-{first_index:08d}.npz"


def chunk_paths(folder: Path) -> list[Path]:
    """List the paths of all chunks, sorted by name. Other files in their folder are the user's."""
    return sorted((folder / "chunks").glob(f"*-{'[0-9]' * 8}.npz"))


def read_chunk(path: Path) -> tuple[list[FrameRecord], FrameCounts]:
    """Read a chunk. Raises StoreError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            records = _records(arrays)
            counts = _counts(arrays)
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    return records, counts


def load_records(folder: Path, run: Run) -> list[FrameRecord]:
    """Load the records without the counts, which take most of the memory: 36 kB per frame for 19 classes."""
    records: list[FrameRecord] = []
    order = {bag.name: place for place, bag in enumerate(run.bags)}
    for path in chunk_paths(folder):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                records += _records(arrays)
        except _DAMAGED as error:
            raise _damaged(path, error) from error
    return sorted((r for r in records if r.bag in order), key=lambda r: (order[r.bag], r.index))


def load_run(folder: Path) -> RunData:
    """Load a complete or partial run. Raises StoreError."""
    run = read_run(folder)
    order = {bag.name: place for place, bag in enumerate(run.bags)}
    chunks = [chunk for chunk in map(read_chunk, chunk_paths(folder)) if chunk[0] and chunk[0][0].bag in order]
    chunks.sort(key=lambda chunk: (order[chunk[0][0].bag], chunk[0][0].index))
    counts = FrameCounts.concatenate([c for _, c in chunks], len(run.settings.class_names))
    return RunData(run, [r for records, _ in chunks for r in records], counts)


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(f"{path} cannot be read ({error}): run the same command again to replace it")


def _counts(arrays: Any) -> FrameCounts:
    found = {name: arrays[name].astype(np.int64) for name in FrameCounts.__dataclass_fields__ if name in arrays}
    if "by_confidence" not in found:  # a run of an earlier version
        frames, classes = len(found["confusion"]), found["confusion"].shape[3]
        found["by_confidence"] = np.zeros((frames, *FrameCounts.empty(classes).by_confidence.shape[1:]), np.int64)
    return FrameCounts(**found)


def _records(arrays: Any) -> list[FrameRecord]:
    return [_record(values) for values in json.loads(arrays["records"].tobytes())]


def _record(values: dict[str, Any]) -> FrameRecord:
    for key in ("size_hw", "scores", "refined", "ages"):
        if values.get(key) is not None:
            values[key] = tuple(values[key])
    values["boxes_xyxy"] = tuple(map(tuple, values["boxes_xyxy"]))
    return FrameRecord(**values)
