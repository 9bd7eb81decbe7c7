# SPDX-License-Identifier: Apache-2.0
"""Start or resume a run in a folder, list its missing frames, and store results as they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from nightlab_core.files import write_atomic
from nightlab_replay.execute import BagSource, Span, SpanResult
from nightlab_replay.provenance import BagHashes, machine, versions
from nightlab_replay.records import BagInfo, BundleInfo, FrameRecord, ReplaySettings, Run
from nightlab_replay.store import StoreError, chunk_paths, load_records, read_chunk, read_run, write_chunk, write_run

CHUNKS, MASKS, MASK_BAGS = "chunks", "masks", "bags"
#: Fields of `BagInfo` that must be equal to resume a run, as messages name them.
_BAG_FIELDS = {
    "size_bytes": "size in bytes",
    "num_frames": "number of frames",
    "image_topic": "image topic",
    "label_topic": "label topic",
}


def start_or_resume(
    out: Path, settings: ReplaySettings, bundle: BundleInfo, bags: Sequence[BagInfo], restart: bool
) -> Run:
    """Return a new run in `out`, or the existing one if its settings, bundle and bags are the same.

    Raises StoreError that lists the differences, unless `restart` allows deleting the existing run. Raises StoreError,
    too, if `out` contains folders that this tool did not create and would overwrite.
    """
    _check_folder(out, settings, bags)
    run = Run(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings,
        bundle=bundle,
        bags=tuple(bags),
        versions=versions(),
        machine=machine(),
    )
    if restart or not (out / "run.json").exists():
        _remove_run(out)
        write_run(out, run)
        return run
    old = read_run(out)
    if differences := _differences(old, run):
        raise StoreError(
            f"{out} holds a replay with other settings:\n  " + "\n  ".join(differences) + "\n"
            "Use the same settings to resume it, another --out, or --restart to delete it"
        )
    for path in chunk_paths(out):  # a damaged chunk is computed again
        try:
            read_chunk(path)
        except StoreError:
            path.unlink()
    return old.model_copy(update={"bags": run.bags})  # without the problems of single frames, which are found again


def _remove_run(out: Path) -> None:
    """Delete the chunks and masks of an earlier run, and no other file."""
    for path in (*chunk_paths(out), *(out / MASKS).glob(f"*/{'[0-9]' * 8}.png")):
        path.unlink()


def missing_spans(out: Path, run: Run) -> list[Span]:
    """List the frames without a record, in order, in spans of at most `chunk_frames`."""
    done: dict[str, set[int]] = {bag.name: set() for bag in run.bags}
    for record in load_records(out, run):
        done[record.bag].add(record.index)
    spans = []
    for bag in run.bags:
        if bag.image_topic is None:
            continue
        source = BagSource(bag.name, bag.path, bag.image_topic, bag.label_topic, run.settings.pixel_bits)
        missing = np.array([i for i in range(bag.num_frames) if i not in done[bag.name]], np.int64)
        chunk = missing // run.settings.chunk_frames
        cuts = np.flatnonzero((np.diff(missing) > 1) | (np.diff(chunk) > 0)) + 1
        for part in np.split(missing, cuts) if missing.size else []:
            spans.append(Span(source, int(part[0]), int(part[-1]) + 1))
    return spans


def bags_without_frames(out: Path, run: Run) -> list[str]:
    """Return the names of the bags none of whose frames could be read."""
    readable = {record.bag for record in load_records(out, run) if record.status != "unreadable"}
    return [bag.name for bag in run.bags if bag.name not in readable]


def join_spans(spans: Sequence[Span]) -> list[Span]:
    """Join adjacent spans. A replay in real time is not divided into chunks."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].source == span.source and joined[-1].stop == span.first:
            joined[-1] = replace(joined[-1], stop=span.stop)
        else:
            joined.append(span)
    return joined


def store_results(
    out: Path,
    run: Run,
    results: Iterable[SpanResult],
    workers: int = 0,
    node: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Write results as they arrive. Return the run as it is then, complete or not, also in run.json.

    `node` holds the live node's diagnostics, which the caller may fill while results arrive.
    """
    start = time.monotonic()
    # at the recorded rate, hashing would take a core from the pipeline that is timed
    hashes = BagHashes(run.bags) if run.settings.mode == "all" else None
    try:
        for result in results:
            for index, packed in result.masks.items():
                _write_masks(out, result.records[0].bag, index, packed)
            if result.records:
                write_chunk(out, result.records, result.counts)
    finally:
        run = run.model_copy(update={"wall_s": run.wall_s + time.monotonic() - start, "workers": workers})
        run = _with_state(out, run, hashes, node)
        write_run(out, run)
    return run


def _with_state(out: Path, run: Run, hashes: BagHashes | None, node: Mapping[str, str]) -> Run:
    """Return the run with hashes and time of completion, if it is complete, and with the problems of its frames."""
    records = load_records(out, run)
    complete = len(records) == run.num_frames
    sha256 = {}
    if complete:
        sha256 = (hashes or BagHashes(run.bags)).wait()
    elif hashes is not None:
        hashes.cancel()
    bags = []
    for bag in run.bags:
        problems = dict.fromkeys([*bag.problems, *frame_problems([r for r in records if r.bag == bag.name])])
        bags.append(bag.model_copy(update={"sha256": sha256.get(bag.name, {}), "problems": tuple(problems)}))
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds") if complete else None
    return run.model_copy(update={"bags": tuple(bags), "finished": finished, "node": {**run.node, **node}})


def frame_problems(records: Sequence[FrameRecord]) -> list[str]:
    """Describe the problems of a bag's frames, one sentence for each kind."""
    found = []
    unreadable = [r for r in records if r.status == "unreadable"]
    if unreadable:
        first = unreadable[0]
        found.append(f"frames that could not be read: {len(unreadable)}; the first is {first.index}: {first.reason}")
    readable = [r for r in records if r.status != "unreadable"]
    stamps = [r.stamp_ns for r in readable if r.status == "ok"]
    backwards = sum(b < a for a, b in pairwise(stamps))
    if backwards:
        found.append(f"frames with an earlier stamp than the frame recorded before them: {backwards}")
    repeated = len(stamps) - len(set(stamps))
    if repeated:
        found.append(f"frames with the same stamp as another frame: {repeated}")
    sizes = sorted({r.size_hw for r in readable if r.size_hw})
    if len(sizes) > 1:
        found.append(f"frames have {len(sizes)} sizes: {', '.join(f'{w}x{h}' for h, w in sizes)}")
    unusable = [r for r in readable if r.status == "ok" and r.reason]
    if unusable:
        found.append(f"label maps that could not be used: {len(unusable)}; the first: {unusable[0].reason}")
    return found


def masks_path(out: Path, bag: str, index: int) -> Path:
    """Return the path of a frame's packed masks, which are kept until the bag of masks is written."""
    return out / MASKS / bag / f"{index:08d}.png"


def mask_bag_files(bag: str) -> tuple[str, ...]:
    """Return the names of the files in a bag of masks, whose folder had a dot before its name while it was written."""
    return "metadata.yaml", f".{bag}.mcap"


def _write_masks(out: Path, bag: str, index: int, packed: bytes) -> None:
    path = masks_path(out, bag, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, packed)


def _check_folder(out: Path, settings: ReplaySettings, bags: Sequence[BagInfo]) -> None:
    """Raise StoreError if `out` contains folders that this tool did not create, or a bag that it would replace."""
    for bag in bags if settings.keep_masks else ():
        folder = out / MASK_BAGS / bag.name
        if folder.exists() and not {path.name for path in folder.iterdir()} <= set(mask_bag_files(bag.name)):
            raise StoreError(
                f"{folder} holds files that no replay wrote, and the bag of masks would replace them: use another --out"
            )
    folders = (CHUNKS, MASKS, MASK_BAGS) if settings.keep_masks else (CHUNKS, MASKS)
    found = [folder for folder in folders if (out / folder).exists()]
    if found and not (out / "run.json").exists():
        raise StoreError(f"{out} contains {' and '.join(found)}, which no replay created: use another --out")


def _differences(old: Run, new: Run) -> list[str]:
    found = []
    before, now = (run.settings.model_dump(mode="json") for run in (old, new))
    for name in before:
        if before[name] != now[name]:
            found.append(f"{name}: {before[name]} there, {now[name]} here")
    if old.bundle.sha256 != new.bundle.sha256:
        found.append(f"bundle: {old.bundle.name} with other files there, {new.bundle.name} here")
    if old.bundle.engine != new.bundle.engine:
        found.append(f"engine: {old.bundle.engine} there, {new.bundle.engine} here")
    there, here = ({bag.name: bag for bag in r.bags} for r in (old, new))
    if list(there) != list(here):
        found.append(f"bags: {', '.join(there)} there, {', '.join(here)} here")
    else:
        for name in there:
            found += [f"bag {name}: {text}" for text in _bag_differences(there[name], here[name])]
    return found


def _bag_differences(old: BagInfo, new: BagInfo) -> list[str]:
    found = []
    for field, text in _BAG_FIELDS.items():
        before, now = getattr(old, field), getattr(new, field)
        if before != now:
            found.append(f"{text}: {before} there, {now} here")
    # a hash would be certain, but computing it takes reading the whole bag
    changed = [f for f in sorted({*old.mtimes_ns, *new.mtimes_ns}) if old.mtimes_ns.get(f) != new.mtimes_ns.get(f)]
    if not found and old.mtimes_ns and changed:
        found.append(f"modified since: {', '.join(changed)}")
    return found
