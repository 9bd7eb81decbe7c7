# SPDX-License-Identifier: Apache-2.0
"""How well reading and inference overlap, and how much memory a long bag takes.

    python -m nightlab_ros.replay.benchmark make big_bag --gigabytes 10
    python -m nightlab_ros.replay.benchmark run big_bag --bundle my_bundle

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
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rosbags.rosbag2 import WriterError

from nightlab_core.data.night import render_clip
from nightlab_core.labels import CITYSCAPES19
from nightlab_core.runtime.bundle import BundleError, default_bundle
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_ros.replay import run as rp
from nightlab_ros.replay.bag import IMAGE_TOPIC, LABEL_TOPIC
from nightlab_ros.replay.execute import replay_spans
from nightlab_ros.replay.records import ReplaySettings
from nightlab_ros.replay.write import BagWriter, StorageName

#: Different pictures in a generated bag; they repeat.
_PICTURES = 10


def make(path: Path, gigabytes: float, storage: StorageName, labelled: bool, console: Console) -> int:
    """Write a bag of raw rendered frames, 1280x720, of so many GB (10^9 bytes); returns the number of frames."""
    frames = list(render_clip(_PICTURES))
    frame_bytes = frames[0].image_bgr.nbytes + (frames[0].labels.nbytes if labelled else 0)
    count = max(1, round(gigabytes * 1e9 / frame_bytes))
    with BagWriter(path, storage, CITYSCAPES19.key) as bag:
        for index in track(range(count), "Writing", console=console):
            frame, stamp_ns = frames[index % len(frames)], 10**18 + index * 33_333_333
            bag.image(IMAGE_TOPIC, frame.image_bgr, stamp_ns, "camera", time_ns=stamp_ns)
            if labelled:
                bag.image(LABEL_TOPIC, frame.labels, stamp_ns, "camera", time_ns=stamp_ns)
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
            plan = rp.begin(out, settings, rp.bundle_info(pipeline.bundle, pipeline.engine_name), bags, restart=False)
            spans = rp.missing_spans(out, plan)
            with spans[0].source.open() as bag:
                some = [frame.image_bgr for frame in bag.frames(0, min(count, 16)) if frame.image_bgr is not None]
                pipeline.prepare(some[0].shape[:2])
                read_s.append(
                    _seconds(lambda bag=bag: sum(f.image_bgr is not None for f in bag.frames(0, count, classes)))
                )
            pictures = itertools.islice(itertools.cycle(some), count)
            infer_s.append(
                _seconds(lambda pictures=pictures: [None for picture in pictures if pipeline(picture) is None])
            )
            before = _peak_mib()
            results = replay_spans(spans, pipeline, classes)
            replay_s.append(_seconds(lambda out=out, plan=plan, results=results: rp.carry_out(out, plan, results)))
        console.print(
            f"round {number + 1}: reading {read_s[-1]:.1f} s, pipeline {infer_s[-1]:.1f} s, replay {replay_s[-1]:.1f} s, peak "
            f"memory {before:.0f} -> {_peak_mib():.0f} MiB",
            soft_wrap=True,
        )
    slower = max(min(read_s), min(infer_s))
    table = Table(title=f"{path.name}: {count} frames, {bags[0].size_bytes / 1e9:.2f} GB", show_header=False)
    for name, value in (
        ("reading and decoding alone", f"{1e3 * min(read_s) / count:.2f} ms a frame"),
        ("pipeline alone", f"{1e3 * min(infer_s) / count:.2f} ms a frame"),
        ("replay", f"{1e3 * min(replay_s) / count:.2f} ms a frame"),
        ("replay / slower of the two", f"{min(replay_s) / slower:.3f}"),
        ("peak memory", f"{_peak_mib():.0f} MiB"),
    ):
        table.add_row(name, value)
    console.print(table)


def _seconds(work: object) -> float:
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begin


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="write a large bag")
    maker.add_argument("bag", type=Path)
    maker.add_argument("--gigabytes", type=float, default=1.0)
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
            count = make(args.bag, args.gigabytes, args.storage, args.labelled, console)
            console.print(f"{args.bag}: {count} frames", soft_wrap=True)
        else:
            pipeline = Pipeline.open(args.bundle)
            run(args.bag, pipeline, args.frames, args.rounds, console)
            pipeline.close()
    except (BundleError, OSError, ValueError, WriterError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
