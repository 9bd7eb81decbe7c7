# SPDX-License-Identifier: Apache-2.0
"""Replay recorded bags through the pipeline and write a report: the function behind `nightlab replay`. Needs no ROS.

Frames whose bag has a label map of the same stamp are evaluated. An interrupted replay resumes when it is called again
with the same arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.markup import escape

from nightlab_core.runtime.bundle import Bundle, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import EngineChoice, PrecisionChoice
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_replay.bags import write_mask_bags
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.progress import ProgressLine
from nightlab_replay.provenance import describe_bags, describe_bundle, label_class_set
from nightlab_replay.realtime import replay_realtime
from nightlab_replay.records import BagInfo, FrameRecord, ReplaySettings, Run, first_frame_hw
from nightlab_replay.report.report import PAGE, write_report
from nightlab_replay.session import join_spans, missing_spans, start_or_resume, store_results

ReplayMode = Literal["all", "realtime", "live"]


class LiveReplay(Protocol):
    """Replay through the live ROS node. `nightlab_ros.live_replay` implements it and is passed in by the caller."""

    def __call__(
        self,
        spans: Sequence[Span],
        run: Run,
        bundle: Bundle,
        out: Path,
        node: dict[str, str],
        /,
        *,
        keep_masks: bool,
        on_frames: Callable[[Sequence[FrameRecord]], None],
        on_note: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> Generator[SpanResult, None, None]:
        """Yield the result of each span. `node` receives the node's last diagnostics."""


def replay(
    bags: Sequence[Path],
    out: Path,
    *,
    bundle: Path | None = None,
    topic: str | None = None,
    label_topic: str | None = None,
    classes: str | None = None,
    pixel_bits: int = 0,
    max_frames: int | None = None,
    mode: ReplayMode = "all",
    rate: float = 1.0,
    workers: int = 0,
    scheduler: str | None = None,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    threads: int = 0,
    pipeline: PipelineSettings = PipelineSettings(),  # noqa: B008 - frozen
    write_bag: bool = False,
    restart: bool = False,
    live: LiveReplay | None = None,
    console: Console | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Run:
    """Replay the bags and write report.html, report.json and frames.csv into `out`. Return the run.

    Args:
        bags: rosbag2 folders, .mcap, .db3 or ROS 1 .bag files.
        out: folder of the run. An existing run with the same arguments is resumed.
        bundle: folder of the bundle; None takes the bundle that ships with the package.
        topic: image topic, if a bag has several.
        label_topic: label topic, if a bag has several.
        classes: class set of the labels; None takes the bag's own, or else the bundle's.
        pixel_bits: significant bits of 16-bit pixels; 0 measures them over each bag's first frames.
        max_frames: replay at most this many frames of each bag.
        mode: "all" runs every frame as fast as possible, "realtime" runs at the recorded rate and drops frames as the
            node does, "live" runs through the ROS node (`live` is required).
        rate: multiple of the recorded rate, for "realtime" and "live".
        workers: number of local processes, for "all"; 0 uses this process.
        scheduler: address of a dask cluster whose machines see the same paths, for "all".
        engine, precision, threads: options of the engines; 0 threads lets the engine choose.
        pipeline: settings of the pipeline.
        write_bag: also write masks, confidence and regions into new bags.
        restart: delete an existing run in `out` first.
        live: the live replay of `nightlab_ros`.
        console: receives progress and problems; None writes to standard output.
        stopped: returns True to finish the current frame, write the report, and return the incomplete run.

    Raises ValueError for arguments or bags that do not fit, StoreError if `out` holds another run, BundleError,
    OSError, ImportError that names a missing package, and the exceptions of the engine.
    """
    _check(mode, rate, workers, scheduler, max_frames, live)
    console = console or Console(highlight=False)
    opened = load_bundle(bundle or default_bundle())
    found = describe_bags(
        bags,
        topic,
        label_topic,
        max_frames,
        lambda bag: label_class_set(classes, [bag], opened.class_set),
        pixel_bits,
    )
    _print_problems(console, found)
    _print_notes(console, found)
    class_set = label_class_set(classes, found, opened.class_set)
    settings = ReplaySettings(
        mode=mode,
        engine=engine,
        precision=precision,
        threads=threads,
        pipeline=pipeline,
        **ReplaySettings.class_fields(class_set),
        topic=topic,
        label_topic=label_topic,
        pixel_bits=pixel_bits,
        rate=rate,
        max_frames=max_frames,
        keep_masks=write_bag,
    )
    with Engines.open(opened, settings.engines(first_frame_hw(found))) as engines:
        if engines.note:
            console.print(f"[yellow]{escape(engines.note)}[/]", soft_wrap=True)
        run = start_or_resume(out, settings, describe_bundle(opened, engines.name), found, restart)
        if spans := missing_spans(out, run):
            run = _replay_spans(out, run, spans, engines, workers, scheduler, live, console, stopped)
        else:
            _print_title(console, run, 0)
            if run.finished is None:
                run = store_results(out, run, [], run.workers)
    _finish(out, run, console, found)
    return run


def _check(
    mode: str, rate: float, workers: int, scheduler: str | None, max_frames: int | None, live: LiveReplay | None
) -> None:
    if not rate > 0:
        raise ValueError(f"--speed is {rate}; expected a number above 0")
    if rate != 1 and mode == "all":
        raise ValueError("--speed needs --realtime or --ros; without them every frame is replayed as fast as possible")
    if workers < 0:
        raise ValueError(f"--workers is {workers}; expected 1 or more")
    if (workers or scheduler) and mode != "all":
        raise ValueError("--workers and --scheduler cannot be combined with --realtime or --ros")
    if workers and scheduler:
        raise ValueError("--workers cannot be combined with --scheduler")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"--frames is {max_frames}; expected 1 or more")
    if mode == "live" and live is None:
        raise ValueError("mode is 'live', expected the live replay of nightlab_ros in `live`")


def _print_title(console: Console, run: Run, done: int) -> None:
    before = f", {done} of them done before" if done else ""
    console.print(
        f"[bold]Replay[/] of {len(run.bags)} bag{'s' * (len(run.bags) != 1)}, {run.num_frames} frames{before}: "
        f"{run.bundle.name} on {run.bundle.engine}",
        soft_wrap=True,
    )


def _replay_spans(
    out: Path,
    run: Run,
    spans: list[Span],
    engines: Engines,
    workers: int,
    scheduler: str | None,
    live: LiveReplay | None,
    console: Console,
    stopped: Callable[[], bool],
) -> Run:
    """Replay the spans that a run misses, with a progress line, and store the results. Return the run as stored."""
    done = run.num_frames - sum(map(len, spans))
    _print_title(console, run, done)
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline(engines, run.settings.pipeline))
        line = stack.enter_context(ProgressLine(console, "Replaying", run.num_frames, done))
        node: dict[str, str] = {}
        common: dict[str, Any] = {
            "keep_masks": run.settings.keep_masks,
            "on_frames": _counter(line, done),
            "stopped": stopped,
        }
        if live is not None and run.settings.mode == "live":
            results = live(join_spans(spans), run, engines.bundle, out, node, on_note=line.show_state, **common)
        else:
            results = _results(run, spans, pipeline, workers, scheduler, common)
        stack.enter_context(closing(results))
        return store_results(out, run, results, -1 if scheduler else workers, node)


def _counter(line: ProgressLine, done: int) -> Callable[[Sequence[FrameRecord]], None]:
    """Return the function that adds finished frames to the progress line."""
    statuses: Counter[str] = Counter()

    def add(records: Sequence[FrameRecord]) -> None:
        statuses.update(record.status for record in records)
        lost = (f"{statuses[status]} {status}" for status in ("dropped", "unreadable") if statuses[status])
        line.update(done + sum(statuses.values()), "  ".join(lost))

    return add


def _results(
    run: Run,
    spans: list[Span],
    pipeline: Pipeline,
    workers: int,
    scheduler: str | None,
    common: dict[str, Any],
) -> Generator[SpanResult, None, None]:
    """Return the generator of the results in every mode but "live"."""
    if workers or scheduler:
        from nightlab_replay.cluster import replay_distributed

        return replay_distributed(spans, run, workers=workers, scheduler=scheduler, **common)
    class_set = run.settings.class_set
    if run.settings.mode == "realtime":
        return replay_realtime(join_spans(spans), pipeline, class_set, rate=run.settings.rate, **common)
    return replay_spans(spans, pipeline, class_set, **common)


def _finish(out: Path, run: Run, console: Console, known: Sequence[BagInfo]) -> None:
    """Write masks and report, and print the problems that are not those of `known`, which were printed before."""
    if run.settings.keep_masks:
        for path in write_mask_bags(out, run):
            console.print(f"Masks: {path}", soft_wrap=True)
    console.print("Writing the report ...")
    write_report(out)
    _print_problems(console, run.bags, known)
    console.print(f"Report: {(out / PAGE).resolve()}", soft_wrap=True)
    if run.finished is None:
        console.print("[yellow]Incomplete:[/] run the same command again to resume.")


def _print_problems(console: Console, bags: Sequence[BagInfo], known: Sequence[BagInfo] = ()) -> None:
    printed = {(bag.name, problem) for bag in known for problem in bag.problems}
    for bag in bags:
        for problem in bag.problems:
            if (bag.name, problem) not in printed:
                begins = Path(problem.partition(":")[0].partition(" ")[0])  # errors of a bag begin with its path
                name = "" if begins.name == bag.name else f"[yellow]{escape(bag.name)}:[/] "
                console.print(name + escape(problem), soft_wrap=True)


def _print_notes(console: Console, bags: Sequence[BagInfo]) -> None:
    for bag in bags:
        for note in bag.notes:
            console.print(f"{escape(bag.name)}: {escape(note)}", soft_wrap=True)
