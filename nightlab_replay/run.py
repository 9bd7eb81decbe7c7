# SPDX-License-Identifier: Apache-2.0
"""A replay from beginning to end: look at the bags, go on where an earlier one stopped, and write down what comes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.reader import Bag
from nightlab_core.data.bags.storage import bag_files
from nightlab_core.files import write_atomic
from nightlab_core.labels import CLASS_SETS, ClassSet
from nightlab_replay.execute import BagSource, Span, SpanResult
from nightlab_replay.provenance import Hashes, machine, versions
from nightlab_replay.records import (
    BagInfo,
    BundleInfo,
    FrameRecord,
    ReplaySettings,
    Run,
    StoreError,
    TopicInfo,
    chunk_paths,
    load_records,
    read_chunk,
    read_run,
    write_chunk,
    write_run,
)

CHUNKS, MASKS, MASK_BAGS = "chunks", "masks", "bags"
#: Of `BagInfo`: what has to be the same to go on, in words.
_BAG_FIELDS = {
    "size_bytes": "size in bytes",
    "num_frames": "number of frames",
    "image_topic": "image topic",
    "label_topic": "label topic",
}


def look_at(paths: Sequence[Path], topic: str | None, label_topic: str | None, max_frames: int | None) -> list[BagInfo]:
    """Open each bag once. One of which nothing can be read is listed with what is wrong.

    Raises FileNotFoundError, and ValueError where the user has to choose a topic or names a bag twice.
    """
    bags: list[BagInfo] = []
    for path in paths:
        if any(Path(bag.path) == path.resolve() for bag in bags):
            raise ValueError(f"{path} is given twice")
        name = path.resolve().name
        taken = {bag.name for bag in bags}
        while name in taken:
            name += "_"
        stats = {f.name: f.stat() for f in bag_files(path)} if path.exists() else {}
        size_bytes = sum(stat.st_size for stat in stats.values())
        mtimes_ns = {file: stat.st_mtime_ns for file, stat in stats.items()}
        try:
            with Bag(path, topic, label_topic) as bag:
                num_frames = len(bag) if max_frames is None else min(len(bag), max_frames)
                bags.append(
                    BagInfo(
                        name=name,
                        path=str(path.resolve()),
                        storage=bag.kind,
                        size_bytes=size_bytes,
                        mtimes_ns=mtimes_ns,
                        topics={n: TopicInfo(type=t.type, count=t.count) for n, t in sorted(bag.topics.items())},
                        image_topic=bag.image_topic,
                        label_topic=bag.label_topic,
                        label_classes=bag.label_classes,
                        num_frames=num_frames,
                        num_labels=bag.num_labels,
                        frame_hw=_frame_hw(bag, num_frames),
                        problems=tuple(bag.problems),
                    )
                )
        except BagError as error:
            problems = (str(error),)
            bags.append(
                BagInfo(
                    name=name,
                    path=str(path.resolve()),
                    storage="unreadable",
                    size_bytes=size_bytes,
                    mtimes_ns=mtimes_ns,
                    topics={},
                    num_frames=0,
                    problems=problems,
                )
            )
    return bags


def _frame_hw(bag: Bag, num_frames: int) -> tuple[int, int] | None:
    images = (frame.image_bgr for frame in bag.frames(0, num_frames))
    return next(((image.shape[0], image.shape[1]) for image in images if image is not None), None)


def judged_classes(asked: str | None, bags: Sequence[BagInfo], bundle: ClassSet) -> ClassSet:
    """The class set that labels are given in: as asked for, as the bags say, or else the bundle's own.

    Raises ValueError where bags disagree, or name a class set that is not known.
    """
    if asked is not None:
        return CLASS_SETS.get(asked, bundle)
    said = {bag.label_classes: bag.name for bag in bags if bag.label_classes and bag.num_labels}
    if len(said) > 1:
        raise ValueError(
            f"the bags' labels are of different class sets ({', '.join(f'{n}: {c}' for c, n in said.items())}): "
            "replay them into folders of their own"
        )
    for key, name in said.items():
        if key == bundle.key:
            return bundle
        if key not in CLASS_SETS:
            raise ValueError(
                f"{name}: its labels are of the class set {key!r}; known are {', '.join(CLASS_SETS)}: name the "
                "one that fits with --classes"
            )
        return CLASS_SETS[str(key)]
    return bundle


def begin(out: Path, settings: ReplaySettings, bundle: BundleInfo, bags: Sequence[BagInfo], restart: bool) -> Run:
    """A new run in `out`, or the one that is there if it is of the same settings, bundle and bags.

    Raises StoreError that names what differs, unless `restart` lets the old one be thrown away; also where `out` holds
    folders that no replay wrote and that would be overwritten.
    """
    _spare_others(out, settings, bags)
    run = Run(
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings,
        bundle=bundle,
        bags=tuple(bags),
        versions=versions(),
        machine=machine(),
    )
    if restart or not (out / "run.json").exists():
        for folder in (CHUNKS, MASKS):
            shutil.rmtree(out / folder, ignore_errors=True)
        write_run(out, run)
        return run
    old = read_run(out)
    if differences := _differences(old, run):
        raise StoreError(
            f"{out} holds a replay with other settings:\n  " + "\n  ".join(differences) + "\n"
            "Give the same ones to go on with it, another --out, or --restart to throw it away"
        )
    for path in chunk_paths(out):  # one that was damaged on the disk is computed again
        try:
            read_chunk(path)
        except StoreError:
            path.unlink()
    return old.model_copy(update={"bags": run.bags})  # what is wrong with single frames is found anew


def missing_spans(out: Path, run: Run) -> list[Span]:
    """The frames without a record, in spans of at most `chunk_frames`, in order."""
    done: dict[str, set[int]] = {bag.name: set() for bag in run.bags}
    for record in load_records(out, run):
        done[record.bag].add(record.index)
    spans = []
    for bag in run.bags:
        if bag.image_topic is None:
            continue
        source = BagSource(bag.name, bag.path, bag.image_topic, bag.label_topic)
        missing = np.array([i for i in range(bag.num_frames) if i not in done[bag.name]], np.int64)
        chunk = missing // run.settings.chunk_frames
        cuts = np.flatnonzero((np.diff(missing) > 1) | (np.diff(chunk) > 0)) + 1
        for part in np.split(missing, cuts) if missing.size else []:
            spans.append(Span(source, int(part[0]), int(part[-1]) + 1))
    return spans


def whole(spans: Sequence[Span]) -> list[Span]:
    """The same frames in as few spans as can be: what runs in real time is not cut into chunks."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].source == span.source and joined[-1].stop == span.first:
            joined[-1] = replace(joined[-1], stop=span.stop)
        else:
            joined.append(span)
    return joined


def carry_out(
    out: Path,
    run: Run,
    results: Iterable[SpanResult],
    workers: int = 0,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Run:
    """Write down results as they come; returns the run as it then stands, complete or not.

    `notes` is what the live node said, filled in while the results come.
    """
    begun = time.monotonic()
    # at the recorded rate it would take a core from what is being timed
    hashes = Hashes(run.bags) if run.settings.mode == "all" else None
    try:
        for result in results:
            for index, packed in result.masks.items():
                write_masks(out, result.records[0].bag, index, packed)
            if result.records:
                write_chunk(out, result.records, result.counts)
    finally:
        run = run.model_copy(update={"wall_s": run.wall_s + time.monotonic() - begun, "workers": workers})
        records = load_records(out, run)
        complete = len(records) == run.num_frames
        sha256 = {}
        if complete:
            sha256 = (hashes or Hashes(run.bags)).wait()
        elif hashes is not None:
            hashes.cancel()
        bags = tuple(
            bag.model_copy(
                update={
                    "sha256": sha256.get(bag.name, {}),
                    "problems": _distinct([*bag.problems, *problems_of([r for r in records if r.bag == bag.name])]),
                }
            )
            for bag in run.bags
        )
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds") if complete else None
        run = run.model_copy(update={"bags": bags, "finished": finished, "node": {**run.node, **notes}})
        write_run(out, run)
    return run


def problems_of(records: Sequence[FrameRecord]) -> list[str]:
    """What is wrong with a bag's frames as a whole, in words."""
    found = []
    unreadable = [r for r in records if r.status == "unreadable"]
    if unreadable:
        found.append(
            f"{len(unreadable)} frames could not be read, the first ({unreadable[0].index}): {unreadable[0].reason}"
        )
    readable = [r for r in records if r.status != "unreadable"]
    stamps = [r.stamp_ns for r in readable if r.status == "ok"]
    backwards = sum(b < a for a, b in pairwise(stamps))
    if backwards:
        found.append(f"{backwards} times a frame's stamp lies before that of the frame recorded before it")
    repeated = len(stamps) - len(set(stamps))
    if repeated:
        found.append(f"{repeated} frames repeat the stamp of another")
    sizes = sorted({r.size_hw for r in readable if r.size_hw})
    if len(sizes) > 1:
        found.append(f"frames are of {len(sizes)} sizes: {', '.join(f'{w}x{h}' for h, w in sizes)}")
    unusable = [r for r in readable if r.status == "ok" and r.reason]
    if unusable:
        found.append(f"{len(unusable)} label maps could not be used, the first: {unusable[0].reason}")
    return found


def write_masks(out: Path, bag: str, index: int, packed: bytes) -> None:
    """Keep a frame's masks until the bag of masks is written."""
    path = masks_path(out, bag, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, packed)


def masks_path(out: Path, bag: str, index: int) -> Path:
    """Where a frame's masks are kept."""
    return out / MASKS / bag / f"{index:08d}.png"


def _spare_others(out: Path, settings: ReplaySettings, bags: Sequence[BagInfo]) -> None:
    """Raise StoreError for what a replay into `out` would delete though it is not a replay's."""
    if settings.keep_masks:
        for bag in bags:
            if Path(bag.path) == (out / MASK_BAGS / bag.name).resolve():
                raise StoreError(f"the bag of masks would take the place of {bag.path}: give another --out")
    folders = (CHUNKS, MASKS, MASK_BAGS) if settings.keep_masks else (CHUNKS, MASKS)
    found = [folder for folder in folders if (out / folder).exists()]
    if found and not (out / "run.json").exists():
        raise StoreError(f"{out} holds {' and '.join(found)}, which no replay wrote: give another --out")


def _differences(old: Run, new: Run) -> list[str]:
    found = []
    was, now = (run.settings.model_dump(mode="json") for run in (old, new))
    for name in was:
        if was[name] != now[name]:
            found.append(f"{name}: {was[name]} there, {now[name]} here")
    if old.bundle.sha256 != new.bundle.sha256:
        found.append(f"bundle: {old.bundle.name} of other files there, {new.bundle.name} here")
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
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            found.append(f"{text}: {was} there, {now} here")
    # a hash would tell for certain, but it takes a reading of the whole bag
    written = [f for f in sorted({*old.mtimes_ns, *new.mtimes_ns}) if old.mtimes_ns.get(f) != new.mtimes_ns.get(f)]
    if not found and old.mtimes_ns and written:
        found.append(f"written anew since: {', '.join(written)}")
    return found


def _distinct(problems: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problems))
