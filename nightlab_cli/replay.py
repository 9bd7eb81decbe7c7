# SPDX-License-Identifier: Apache-2.0
"""`nightlab replay`: recorded bags through a bundle, and a report."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from nightlab_cli.errors import FAILED, INTERRUPTED, CommandError, Verbose
from nightlab_cli.options import (
    Bundle,
    Classes,
    Engine,
    LabelTopic,
    PipelineSetting,
    PixelBits,
    Precision,
    Threads,
    Topic,
    hold_output,
    new_console,
    pipeline_settings,
)
from nightlab_cli.signals import handled
from nightlab_cli.style import new_app
from nightlab_replay.replay import LiveReplay, ReplayMode
from nightlab_replay.replay import replay as replay_bags
from nightlab_replay.session import bags_without_frames

app = new_app()


def _bag_path(text: str) -> Path:
    """Return the path of a bag. Raises BadParameter for an empty text, as of a shell's variable that is not set."""
    if not text:
        raise typer.BadParameter("received an empty path, expected a bag")
    return Path(text)


@app.command()
def replay(
    context: typer.Context,
    bags: Annotated[
        list[Path], typer.Argument(metavar="BAG", parser=_bag_path, help="rosbag2 folders, .mcap, .db3 or .bag files.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the run and its report.")],
    bundle: Bundle = None,
    topic: Topic = None,
    label_topic: LabelTopic = None,
    classes: Classes = None,
    pixel_bits: PixelBits = 0,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", min=1, help="Replay at most N frames of each bag.")
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Replay at the recorded rate; drop frames as the node does.")
    ] = False,
    ros: Annotated[bool, typer.Option("--ros", help="Replay through the live node, with /clock. Needs ROS 2.")] = False,
    speed: Annotated[
        float, typer.Option("--speed", metavar="FACTOR", help="With --realtime or --ros: times the recorded rate.")
    ] = 1.0,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Replay in N processes of this machine.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Replay on a dask cluster that sees the same paths."),
    ] = None,
    engine: Engine = "auto",
    precision: Precision = "auto",
    threads: Threads = 0,
    settings: PipelineSetting = None,
    write_bag: Annotated[
        bool, typer.Option("--write-bag", help="Write masks, confidence and regions into new bags, too.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Delete an earlier run in the folder first.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run recorded bags through a bundle and report accuracy and latency. Needs no ROS, except for --ros.

    Frames with a label map of the same stamp are evaluated. An interrupted replay resumes when the same command runs
    again. Exit status: 0; 1 with the reason, also if no frame of a bag could be read; 130 when interrupted.

    Example:

    nightlab replay night_drive dusk.mcap --bundle my_bundle --out replay_out
    """
    mode: ReplayMode = "live" if ros else "realtime" if realtime else "all"
    if realtime and ros:
        raise ValueError("--realtime cannot be combined with --ros")
    hold_output(context, out)
    with _stop_on_signals() as stop:
        run = replay_bags(
            bags,
            out,
            bundle=bundle,
            topic=topic,
            label_topic=label_topic,
            classes=classes,
            pixel_bits=pixel_bits,
            max_frames=frames,
            mode=mode,
            rate=speed,
            workers=workers or 0,
            scheduler=scheduler,
            engine=engine,
            precision=precision,
            threads=threads,
            pipeline=pipeline_settings(settings),
            write_bag=write_bag,
            restart=restart,
            live=_live_replay() if ros else None,
            console=new_console(),
            stopped=stop.is_set,
        )
    if run.finished is None:
        raise typer.Exit(INTERRUPTED)
    unreadable = bags_without_frames(out, run)
    if unreadable:
        raise CommandError(f"nothing could be read of {', '.join(unreadable)}", FAILED)


def _live_replay() -> LiveReplay:
    from nightlab_ros.live_replay import replay_live

    return replay_live


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT, SIGTERM or SIGHUP sets. A second signal ends the process without a report."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # the terminal may have gone
            os.write(2, b"\nStopping after the current frame ...\n")  # print could interrupt the console's own output

    with handled(handler, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield stop
