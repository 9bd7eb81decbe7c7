# SPDX-License-Identifier: Apache-2.0
"""How well reading and inference overlap, and how much memory a long bag takes.

    python -m nightlab_replay.benchmark make big_bag --gigabytes 10
    python -m nightlab_replay.benchmark run big_bag --bundle my_bundle

`run` times reading with decoding alone, the pipeline alone, and the whole replay, each on the same frames. Of several
rounds the quickest of each counts, as other work on the machine only ever adds.
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
from nightlab_core.labels import CITYSCAPES19
from nightlab_core.runtime.bundle import BundleError, default_bundle
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay import run as rp
from nightlab_replay.bag import IMAGE_TOPIC, LABEL_TOPIC
from nightlab_replay.execute import replay_spans
from nightlab_replay.provenance import bundle_info
from nightlab_replay.records import FrameRecord, ReplaySettings

#: Different pictures in a generated bag; they repeat.
_PICTURES = 10


def make(
    path: Path, gigabytes: float, size_hw: tuple[int, int], storage: StorageName, labelled: bool, console: Console
) -> int:
    """Write a bag of raw rendered frames of so many GB (10^9 bytes); returns the number of frames."""
    size_wh = size_hw[::-1]
    frames = [
        (cv2.resize(f.image_bgr, size_wh), cv2.resize(f.labels, size_wh, interpolation=cv2.INTER_NEAREST))
        for f in render_clip(_PICTURES)
    ]
    frame_bytes = sum(part.nbytes for part in frames[0][: 1 + labelled])
    count = max(1, round(gigabytes * 1e9 / frame_bytes))
    with BagWriter(path, storage, CITYSCAPES19.key) as bag:
        for index in track(range(count), "Writing", console=console):
            (image, labels), stamp_ns = frames[index % len(frames)], 10**18 + index * 33_333_333
            bag.image(IMAGE_TOPIC, image, stamp_ns, "camera", time_ns=stamp_ns)
            if labelled:
                bag.image(LABEL_TOPIC, labels, stamp_ns, "camera", time_ns=stamp_ns)
    return count


def run(path: Path, pipeline: Pipeline, max_frames: int | None, rounds: int, console: Console) -> None:
    """Print the times and the memory."""
    bags = rp.look_at([path], None, None, max_frames)
    classes = rp.judged_classes(None, bags, pipeline.bundle.class_set)
    count = bags[0].num_frames
    settings = ReplaySettings(classes=classes.key, class_names=classes.names, max_frames=max_frames)
    read_s, infer_s, replay_s = [], [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            plan = rp.begin(out, settings, bundle_info(pipeline.bundle, pipeline.engines.name), bags, restart=False)
            spans = rp.missing_spans(out, plan)
            with spans[0].source.open() as bag:
                some = [frame.image_bgr for frame in bag.frames(0, min(count, 8)) if frame.image_bgr is not None]
                height, width = some[0].shape[:2]
                pipeline.prepare((height, width))
                read_s.append(_seconds(bag.frames(0, count, classes)))
            infer_s.append(_seconds(map(pipeline, itertools.islice(itertools.cycle(some), count))))
            del some
            prepared = {(height, width)}
            memory = _Memory()
            begin = time.perf_counter()
            rp.carry_out(out, plan, replay_spans(spans, pipeline, classes, on_frames=memory.note, prepared=prepared))
            replay_s.append(time.perf_counter() - begin)
        times = (("reading", read_s), ("pipeline", infer_s), ("replay", replay_s))
        console.print(f"round {number + 1}: " + ", ".join(f"{name} {seconds[-1]:.1f} s" for name, seconds in times))
        console.print(f"  most memory in each tenth of the replay, MiB: {memory.tenths()}", soft_wrap=True)
    slower = max(min(read_s), min(infer_s))
    table = Table(title=f"{path.name}: {count} frames, {bags[0].size_bytes / 1e9:.2f} GB", show_header=False)
    for name, value in (
        ("reading and decoding alone", f"{1e3 * min(read_s) / count:.2f} ms a frame"),
        ("pipeline alone", f"{1e3 * min(infer_s) / count:.2f} ms a frame"),
        ("replay", f"{1e3 * min(replay_s) / count:.2f} ms a frame"),
        ("replay / slower of the two", f"{min(replay_s) / slower:.3f}"),
    ):
        table.add_row(name, value)
    console.print(table)


def _seconds(work: Iterable[object]) -> float:
    """How long it takes to go through it."""
    begin = time.perf_counter()
    deque(work, maxlen=0)
    return time.perf_counter() - begin


class _Memory:
    """Resident memory of this process after every frame (Linux)."""

    def __init__(self) -> None:
        self._mib: list[float] = []

    def note(self, records: Sequence[FrameRecord]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self._mib.append(pages * resource.getpagesize() / 2**20)

    def tenths(self) -> str:
        return " ".join(f"{part.max():.0f}" for part in np.array_split(np.asarray(self._mib), 10) if part.size)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="write a large bag")
    maker.add_argument("bag", type=Path)
    maker.add_argument("--gigabytes", type=float, default=1.0)
    maker.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(720, 1280))
    maker.add_argument("--storage", choices=get_args(StorageName), default="mcap")
    maker.add_argument("--labelled", action="store_true")
    runner = commands.add_parser("run", help="time a replay")
    runner.add_argument("bag", type=Path)
    runner.add_argument("--bundle", type=Path, default=default_bundle())
    runner.add_argument("--frames", type=int)
    runner.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        if args.command == "make":
            count = make(args.bag, args.gigabytes, tuple(args.size), args.storage, args.labelled, console)
            console.print(f"{args.bag}: {count} frames", soft_wrap=True)
        else:
            with Engines.open(args.bundle) as engines, Pipeline(engines) as pipeline:
                run(args.bag, pipeline, args.frames, args.rounds, console)
    except (BundleError, OSError, ValueError, WriterError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
