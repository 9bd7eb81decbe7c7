# SPDX-License-Identifier: Apache-2.0
"""Measure a replay's throughput and memory, and whether reading and inference overlap.

    python -m nightlab_replay.throughput make big_bag --gigabytes 10
    python -m nightlab_replay.throughput run big_bag --bundle my_bundle

`run` times reading with decoding alone, the pipeline alone, and the whole replay, on the same frames. The fastest of
several rounds counts, because other work on the machine only adds time.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rosbags.rosbag2 import WriterError

from nightlab_core.data.bags.write import BagWriter, StorageName
from nightlab_core.data.rendered.night import render_clip
from nightlab_core.data.rendered.shapes import CLASSES
from nightlab_core.labels import ClassSet
from nightlab_core.runtime.bundle import BundleError, default_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.bags import IMAGE_TOPIC, LABEL_TOPIC
from nightlab_replay.execute import replay_spans
from nightlab_replay.provenance import describe_bags, describe_bundle, label_class_set
from nightlab_replay.records import BagInfo, FrameRecord, ReplaySettings
from nightlab_replay.session import missing_spans, start_or_resume, store_results

#: Number of different rendered frames in a large bag.
_PICTURES = 12


def write_large_bag(
    path: Path, gigabytes: float, size_hw: tuple[int, int], storage: StorageName, labelled: bool, console: Console
) -> int:
    """Write a bag of this size in GB (10^9 bytes) from a few rendered frames. Return the number of frames."""
    size_wh = size_hw[::-1]
    frames = [
        (cv2.resize(f.image_bgr, size_wh), cv2.resize(f.labels, size_wh, interpolation=cv2.INTER_NEAREST))
        for f in render_clip(_PICTURES)
    ]
    frame_bytes = sum(part.nbytes for part in frames[0][: 1 + labelled])
    count = max(1, round(gigabytes * 1e9 / frame_bytes))
    with BagWriter(path, storage, CLASSES.key) as bag:
        for index in track(range(count), "Writing", console=console):
            (image, labels), stamp_ns = frames[index % len(frames)], 10**18 + index * 33_333_333
            bag.image(IMAGE_TOPIC, image, stamp_ns, "camera", time_ns=stamp_ns)
            if labelled:
                bag.image(LABEL_TOPIC, labels, stamp_ns, "camera", time_ns=stamp_ns)
    return count


def measure(path: Path, pipeline: Pipeline, max_frames: int | None, rounds: int, console: Console) -> None:
    """Measure `rounds` replays of a bag, and print times and memory."""
    bags = describe_bags([path], None, None, max_frames)
    classes = label_class_set(None, bags, pipeline.bundle.class_set)
    count = bags[0].num_frames
    measured = []
    for number in range(rounds):
        times, memory = _measure_once(bags, pipeline, classes, max_frames)
        measured.append(times)
        console.print(f"round {number + 1}: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))
        console.print(f"  largest memory in each tenth of the replay, MiB: {memory.tenths()}", soft_wrap=True)
    fastest = {name: min(times[name] for times in measured) for name in measured[0]}
    table = Table(title=f"{path.name}: {count} frames, {bags[0].size_bytes / 1e9:.2f} GB", show_header=False)
    for name, seconds in fastest.items():
        table.add_row(name, f"{1e3 * seconds / count:.2f} ms per frame")
    ratio = fastest["replay"] / max(fastest["reading"], fastest["pipeline"])
    table.add_row("replay / slower of the other two", f"{ratio:.3f}")
    console.print(table)


def _measure_once(
    bags: list[BagInfo], pipeline: Pipeline, classes: ClassSet, max_frames: int | None
) -> tuple[dict[str, float], _Memory]:
    """Return the seconds of reading alone, the pipeline alone, and a whole replay, and the memory of the replay."""
    settings = ReplaySettings(**ReplaySettings.class_fields(classes), max_frames=max_frames)
    count, memory = bags[0].num_frames, _Memory()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        bundle = describe_bundle(pipeline.bundle, pipeline.engines.name)
        run = start_or_resume(out, settings, bundle, bags, restart=False)
        spans = missing_spans(out, run)
        with spans[0].source.open() as bag:
            images = [frame.image_bgr for frame in bag.frames(0, min(count, 8)) if frame.image_bgr is not None]
            height, width = images[0].shape[:2]
            pipeline.prepare((height, width))
            reading_s = _seconds(bag.frames(0, count, classes))
        pipeline_s = _seconds(map(pipeline, itertools.islice(itertools.cycle(images), count)))
        del images
        start = time.perf_counter()
        results = replay_spans(spans, pipeline, classes, on_frames=memory.note, prepared={(height, width)})
        store_results(out, run, results)
        replay_s = time.perf_counter() - start
    return {"reading": reading_s, "pipeline": pipeline_s, "replay": replay_s}, memory


def _seconds(items: Iterable[object]) -> float:
    """Return the time that it takes to iterate over all items."""
    start = time.perf_counter()
    deque(items, maxlen=0)
    return time.perf_counter() - start


class _Memory:
    """Resident memory of this process after each frame (Linux)."""

    def __init__(self) -> None:
        self._mib: list[float] = []

    def note(self, records: Sequence[FrameRecord]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._mib.append(pages * resource.getpagesize() / 2**20)

    def tenths(self) -> str:
        return " ".join(f"{part.max():.0f}" for part in np.array_split(np.asarray(self._mib), 10) if part.size)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 1 with a reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="write a large bag")
    maker.add_argument("bag", type=Path)
    maker.add_argument("--gigabytes", type=float, default=1.0)
    maker.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(720, 1280))
    maker.add_argument("--storage", choices=get_args(StorageName), default="mcap")
    maker.add_argument("--labelled", action="store_true")
    runner = commands.add_parser("run", help="measure a replay")
    runner.add_argument("bag", type=Path)
    runner.add_argument("--bundle", type=Path, default=default_bundle())
    runner.add_argument("--frames", type=int)
    runner.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        if args.command == "make":
            count = write_large_bag(args.bag, args.gigabytes, tuple(args.size), args.storage, args.labelled, console)
            console.print(f"{args.bag}: {count} frames", soft_wrap=True)
        else:
            with Engines.open(args.bundle) as engines, Pipeline(engines) as pipeline:
                measure(args.bag, pipeline, args.frames, args.rounds, console)
    except (BundleError, OSError, ValueError, WriterError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
