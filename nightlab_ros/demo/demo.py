# SPDX-License-Identifier: Apache-2.0
"""The whole vehicle path in one command: node and player in processes of their own, real DDS between them, a report.

    python -m nightlab_ros.demo.demo --input drive.mcap --rate 10 --out demo_out

Exit status: 0 when masks came back and each fits its frame; 1, with the reason, otherwise; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import cv2
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightlab_core.data.frames import FrameSource, open_frames
from nightlab_core.runtime.bundle import BundleError, default_bundle, load_bundle
from nightlab_replay.report.page import write_jpeg
from nightlab_ros.demo.report import Recording, write_report
from nightlab_ros.mask_recorder import Monitor
from nightlab_ros.player import FRAME_ID, add_source_arguments, source_from
from nightlab_ros.processes import Child, DemoError, LiveLine, ros_environment

ANSWER_TIMEOUT_S = 240.0
#: Longer than any frame takes: after so much silence what has not come back will not come.
QUIET_S = 3.0


def main(argv: list[str] | None = None) -> int:
    """Command line; the return value is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for overlays, demo.json, index.html")
    parser.add_argument("--param", action="append", default=[], metavar="NAME:=VALUE", help="a parameter of the node")
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(args, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        return 130
    except (DemoError, BundleError, ValueError, OSError) as error:
        console.print("[bold red]The demo failed:[/]", escape(str(error)), soft_wrap=True)
        return 1


def run(args: argparse.Namespace, console: Console) -> int:
    """The demo from beginning to end: start the node, play, listen, report."""
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    source = source_from(args)
    parameters = _parameters(args.param)
    classes = load_bundle(parameters.get("bundle") or default_bundle()).class_set
    height, width = next(iter(source)).image_bgr.shape[:2]
    console.print(f"[bold]NightLab demo[/]: {source.name}, {width}x{height} at {args.rate:g} Hz", soft_wrap=True)
    os.environ.update(ros_environment(out))
    with ExitStack() as stack:
        monitor = Monitor()
        stack.callback(monitor.close)
        settings = {"autostart": "true", "image_size": f"[{width}, {height}]", **parameters}
        ros_args = [word for name, value in settings.items() for word in ("-p", f"{name}:={value}")]
        node = stack.enter_context(Child("nightlab_ros.node", ["--ros-args", *ros_args], out / "node.log"))
        played = _source_words(args)
        if args.input is None:
            source = write_clip(source, out / "clip", args.rate, console)
            played = ["--input", str(out / "clip"), "--classes", source.classes.key]
        words = [*played, "--rate", str(args.rate), "--knock"]
        player = stack.enter_context(Child("nightlab_ros.player", words, out / "player.log", piped=True))
        wait_for_answer(monitor, node, player, console)
        recording = Recording(FRAME_ID, args.rate, args.input is None, player.sent, monitor.masks, monitor.image_level)
        recording = listen(recording, monitor, node, player, source.num_frames, console)
    console.print("Scoring and drawing ...")
    report = write_report(recording, source, classes, out)
    console.print(table(report))
    if not recording.masks:
        console.print(f"The end of {node.log}:\n{node.tail()}", markup=False)
    for problem in report["problems"]:
        console.print("[bold red]Wrong:[/]", escape(problem), soft_wrap=True)
    console.print(f"Page with the overlays: {(out / 'index.html').resolve()}", soft_wrap=True)
    return 1 if report["problems"] else 0


def write_clip(source: FrameSource, folder: Path, fps: float, console: Console) -> FrameSource:
    """Render before anything is played, so that rendering takes no time from the node; what is written is a labelled
    folder of images that any other tool can read too."""
    count = source.num_frames or 0
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).glob("rendered_*"):
            old.unlink()
    with LiveLine(console, "Rendering the night clip", count) as line:
        for index, frame in enumerate(source):
            assert frame.labels is not None  # rendered frames have them all
            write_jpeg(folder / "images" / f"{frame.name}.jpg", frame.image_bgr, quality=95)
            if not cv2.imwrite(str(folder / "labels" / f"{frame.name}.png"), frame.labels):
                raise OSError(f"cannot write into {folder / 'labels'}; is the disk full?")
            line.update(index + 1)
    return replace(open_frames(folder, classes=source.classes.key, fps=fps), name=source.name)


def wait_for_answer(monitor: Monitor, node: Child, player: Child, console: Console) -> None:
    """Until the mask of the player's latest knock is here, then let the clip begin.

    DemoError if a process dies, or if nothing comes for longer than any machine should take; building engines may take
    longer, as long as it gets on.
    """
    begin = news = time.monotonic()
    built: dict[str, str] = {}
    with console.status("Starting the node: it loads its bundle, compiles the engines and takes a first frame ..."):
        while not (player.knocks and monitor.has_answer(player.knocks[-1].stamp_ns)):
            node.check()
            player.check()
            build = {name: value for name, value in list(monitor.diagnostics.items()) if name.startswith("build_")}
            if build != built:
                news, built = time.monotonic(), build
            if time.monotonic() - news > ANSWER_TIMEOUT_S:
                raise DemoError(
                    f"no mask came back within {ANSWER_TIMEOUT_S:g} s. The end of {node.log}:\n{node.tail()}"
                )
            time.sleep(0.02)
    console.print(f"The node answers (waited {time.monotonic() - begin:.1f} s)")
    monitor.forget()
    player.begin()


def listen(
    recording: Recording, monitor: Monitor, node: Child, player: Child, num_frames: int | None, console: Console
) -> Recording:
    """Until every frame was sent and its mask came back, or nothing comes any more. DemoError if a process fails."""
    with LiveLine(console, "Playing", num_frames) as line:
        news, count = time.monotonic(), -1
        while not (
            player.played() and (len(recording.answered) == len(player.sent) or time.monotonic() - news > QUIET_S)
        ):
            node.check()
            if len(player.sent) + len(monitor.masks) != count:
                news, count = time.monotonic(), len(player.sent) + len(monitor.masks)
            line.update(len(player.sent), recording)
            time.sleep(0.05)
        line.update(len(player.sent), recording)
    player.let_go()
    monitor.await_report()
    for knock in player.knocks:  # an answer to one may have come after the clip began
        monitor.masks.pop(knock.stamp_ns, None)
        monitor.image_level.pop(knock.stamp_ns, None)
    return replace(recording, diagnostics=dict(monitor.diagnostics))


def table(report: dict[str, Any]) -> Table:
    """All numbers that matter, in one table."""
    rows = Table(title="\nNightLab demo", title_justify="left", title_style="bold", show_header=False)
    rows.add_column(style="dim")
    rows.add_column(justify="right")
    rows.add_column()
    node = report["node"]
    rows.add_row("frames sent", str(report["sent"]), f"{report['input']} at {report['rate_hz']:g} Hz")
    fits = "each with its frame's size, stamp and frame_id" if not report["problems"] else "see below"
    rows.add_row("masks received", str(report["received"]), fits)
    why = f"{node.get('dropped', '?')} skipped by the node for a newer frame, {node.get('failed', '?')} failed"
    rows.add_row("dropped", str(report["dropped"]), why, end_section=True)
    for title, marks in (("latency, stamp to receipt", report["latency_ms"]), *report["stages_ms"].items()):
        if marks:
            numbers = " / ".join(f"{marks[p]:.1f}" for p in ("p50", "p95", "p99"))
            note = "ms: p50 / p95 / p99" if marks is report["latency_ms"] else ""
            rows.add_row(title if note else f"  {title}", numbers, note)
    rows.add_section()
    accuracy = report["accuracy"]
    if accuracy is None:
        rows.add_row("mIoU", "-", "no labelled frame came back")
        return rows
    note = f"{accuracy['frames']} labelled frames, {accuracy['classes']}"
    rows.add_row("mIoU, image level", f"{100 * accuracy['miou']['image_level']:.2f} %", note)
    gain = accuracy["gain"]
    low, high = 100 * gain["low_95"], 100 * gain["high_95"]
    note = f"{100 * gain['difference']:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"
    rows.add_row("mIoU, both levels", f"{100 * accuracy['miou']['both_levels']:.2f} %", note)
    return rows


def _parameters(given: list[str]) -> dict[str, str]:
    for text in given:
        if ":=" not in text:
            raise ValueError(f"parameter {text!r}; expected name:=value")
    return {name: value for name, _, value in (text.partition(":=") for text in given)}


def _source_words(args: argparse.Namespace) -> list[str]:
    """The arguments of `add_source_arguments` that were given, as words of a command line; the rate apart."""
    names = ("input", "labels", "classes", "glob", "topic", "frames")
    return [word for n in names if getattr(args, n) is not None for word in (f"--{n}", str(getattr(args, n)))]


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt  # so that SIGTERM, too, ends the children


if __name__ == "__main__":
    sys.exit(main())
