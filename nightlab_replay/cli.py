# SPDX-License-Identifier: Apache-2.0
"""Replay recorded bags through the pipeline: accuracy and latency in one report. Needs no ROS, except for --ros.

    nightlab-replay night_drive/ dusk.mcap --bundle my_bundle --out replay_out
    nightlab-replay compare old_out new_out --no-worse-than 0.5

Frames with a label map of the same stamp (a topic of mono8 ids whose name has the part "label", "labels", "gt" or
"ground_truth") are judged against it. What was interrupted goes on when the same command runs again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from nightlab_core.config import replace
from nightlab_core.labels import CLASS_SETS
from nightlab_core.runtime.bundle import Bundle, BundleError, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings
from nightlab_replay import run as rp
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.progress import ReplayLine
from nightlab_replay.provenance import bundle_info
from nightlab_replay.records import ReplaySettings, Run, first_frame_hw
from nightlab_replay.report.report import write_report

#: Of `PipelineSettings`: what can be set as --set name=value.
_PIPELINE = ", ".join(PipelineSettings.model_fields)


def main(argv: list[str] | None = None) -> int:
    """Command line: 0; 1 with a reason, also if a bag could not be read at all; 130 when interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["compare"]:
        from nightlab_replay.report.compare import main as compare

        return compare(words[1:])
    args = _parser().parse_args(words)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    stop = _stop_on_signals()
    try:
        return _replay(args, console, stop)
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        print(
            f"nightlab-replay: {error}\nFor all that a replay may need: pip install -r requirements/replay.txt",
            file=sys.stderr,
        )
        return 1
    except (BundleError, OSError, RuntimeError, ValueError) as error:
        print(f"nightlab-replay: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightlab-replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder, .mcap or .db3")
    parser.add_argument("--bundle", type=Path, default=default_bundle(), help="default: the one that comes along")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and all that it is made of")
    parser.add_argument("--topic", help="image topic, where a bag has several")
    parser.add_argument("--label-topic", help="label topic, where a bag has several")
    parser.add_argument(
        "--classes", choices=sorted(CLASS_SETS), help="class set of the labels (default: the bag's own)"
    )
    parser.add_argument("--frames", type=int, help="no more than so many frames of each bag")
    parser.add_argument("--restart", action="store_true", help="throw away what --out holds of an earlier replay")
    parser.add_argument("--write-bag", action="store_true", help="write masks, confidence and boxes into new bags, too")
    how = parser.add_argument_group("how to run").add_mutually_exclusive_group()
    how.add_argument("--realtime", action="store_true", help="at the recorded rate, dropping frames as the node does")
    how.add_argument("--ros", action="store_true", help="through the live node, over DDS, with /clock")
    how.add_argument("--workers", type=int, metavar="N", help="in N processes on this machine")
    how.add_argument("--scheduler", metavar="ADDRESS", help="on a dask cluster whose machines see the same paths")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="--realtime, --ros: times the recorded rate (default 1)"
    )
    engine = parser.add_argument_group("engine and pipeline")
    engine.add_argument("--engine", choices=get_args(EngineChoice), default="auto")
    engine.add_argument("--precision", choices=("auto", "float32"), default="auto")
    engine.add_argument("--threads", type=int, default=0, help="threads per engine; 0: its own choice")
    engine.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"of the pipeline, may be repeated: {_PIPELINE}",
    )
    return parser


def _replay(args: argparse.Namespace, console: Console, stop: threading.Event) -> int:
    _check(args)
    bundle = load_bundle(args.bundle)
    bags = rp.look_at(args.bags, args.topic, args.label_topic, args.frames)
    for bag in bags:
        for problem in bag.problems:
            console.print(f"[yellow]{escape(bag.name)}:[/] {escape(problem)}", soft_wrap=True)
    classes = rp.judged_classes(args.classes, bags, bundle.class_set)
    settings = ReplaySettings(
        mode="live" if args.ros else "realtime" if args.realtime else "all",
        engine=args.engine,
        precision=args.precision,
        threads=args.threads,
        pipeline=_pipeline_settings(args.set),
        classes=classes.key,
        class_names=classes.names,
        topic=args.topic,
        label_topic=args.label_topic,
        rate=args.rate,
        max_frames=args.frames,
        keep_masks=args.write_bag,
    )
    with ExitStack() as stack:
        engines = stack.enter_context(Engines.open(bundle, settings.engines(first_frame_hw(bags))))
        pipeline = stack.enter_context(Pipeline(engines, settings.pipeline))
        if engines.note:
            console.print(f"[yellow]{escape(engines.note)}[/]", soft_wrap=True)
        run = rp.begin(args.out, settings, bundle_info(bundle, engines.name), bags, args.restart)
        spans = rp.missing_spans(args.out, run)
        total, left = run.num_frames, sum(s.stop - s.first for s in spans)
        going_on = f", {total - left} of them done before" if total > left else ""
        console.print(
            f"[bold]Replay[/] of {len(bags)} bag{'s' * (len(bags) != 1)}, {total} frames{going_on}: "
            f"{run.bundle.name} on {run.bundle.engine}",
            soft_wrap=True,
        )
        notes: dict[str, str] = {}
        if spans:
            line = stack.enter_context(ReplayLine(console, total, total - left))
            results = stack.enter_context(closing(_results(args, run, spans, bundle, pipeline, line, stop, notes)))
            workers = -1 if args.scheduler else args.workers or 0
            run = rp.carry_out(args.out, run, results, workers, notes)
        elif run.finished is None:
            run = rp.carry_out(args.out, run, [], run.workers)
    return _finish(args, run, console)


def _results(
    args: argparse.Namespace,
    run: Run,
    spans: list[Span],
    bundle: Bundle,
    pipeline: Pipeline,
    line: ReplayLine,
    stop: threading.Event,
    notes: dict[str, str],
) -> Generator[SpanResult, None, None]:
    """The results of all spans, by the way of running that was asked for."""
    settings, keep = run.settings, run.settings.keep_masks
    if settings.mode == "all" and (args.workers or args.scheduler):
        from nightlab_replay.cluster import replay_distributed

        return replay_distributed(
            spans,
            run,
            workers=args.workers or 0,
            scheduler=args.scheduler,
            keep_masks=keep,
            on_frames=line.frames,
            stopped=stop.is_set,
        )
    if settings.mode == "live":
        from nightlab_ros.live_replay import replay_live

        return replay_live(
            rp.whole(spans),
            run,
            bundle,
            args.out,
            notes,
            keep_masks=keep,
            on_frames=line.frames,
            on_note=line.note,
            stopped=stop.is_set,
        )
    if settings.mode == "realtime":
        from nightlab_replay.realtime import replay_realtime

        return replay_realtime(
            rp.whole(spans),
            pipeline,
            settings.class_set,
            rate=settings.rate,
            keep_masks=keep,
            on_frames=line.frames,
            stopped=stop.is_set,
        )
    return replay_spans(
        spans, pipeline, settings.class_set, keep_masks=keep, on_frames=line.frames, stopped=stop.is_set
    )


def _finish(args: argparse.Namespace, run: Run, console: Console) -> int:
    if args.write_bag:
        from nightlab_replay.masks import write_mask_bags

        for path in write_mask_bags(args.out, run):
            console.print(f"Masks: {path}", soft_wrap=True)
    console.print("Writing the report ...")
    write_report(args.out)
    for bag in run.bags:
        for problem in bag.problems:
            console.print(f"[yellow]{escape(bag.name)}:[/] {escape(problem)}", soft_wrap=True)
    console.print(f"Report: {(args.out / 'report.html').resolve()}", soft_wrap=True)
    if run.finished is None:
        console.print("[yellow]Not complete:[/] run the same command again to go on.")
        return 130
    return 1 if any(bag.image_topic is None for bag in run.bags) else 0


def _check(args: argparse.Namespace) -> None:
    if not args.rate > 0:
        raise ValueError(f"--rate is {args.rate}; expected a number above 0")
    if args.rate != 1 and not (args.realtime or args.ros):
        raise ValueError("--rate is for --realtime and --ros; without them every frame is replayed as fast as it goes")
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; expected 1 or more")
    if args.frames is not None and args.frames < 1:
        raise ValueError(f"--frames is {args.frames}; expected 1 or more")


def _pipeline_settings(given: list[str]) -> PipelineSettings:
    """Raises ValueError that names the setting."""
    import yaml

    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in PipelineSettings.model_fields:
            raise ValueError(f"--set {text}: expected NAME=VALUE with a name of {_PIPELINE}")
        number = yaml.safe_load(value)
        values[name] = float(number) if isinstance(number, int) and name not in ("max_regions",) else number
    try:
        return replace(PipelineSettings(), **values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--set {first['loc'][0]}={first['input']}: {first['msg']}") from None


def _stop_on_signals() -> threading.Event:
    """Set by SIGINT or SIGTERM; a second one ends the process without a report."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(2, b"\nStopping after the frame at hand ...\n")  # a console may be in the midst of writing

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return stop


if __name__ == "__main__":
    sys.exit(main())
