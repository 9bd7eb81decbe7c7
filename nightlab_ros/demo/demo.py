# SPDX-License-Identifier: Apache-2.0
"""Run the demo: start the node and a player as processes, record the masks over DDS, and write a report."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nightlab_core.data.frames import FrameSource, open_frames
from nightlab_core.runtime.bundle import default_bundle, load_bundle
from nightlab_core.yaml_files import parse_yaml
from nightlab_replay.progress import ProgressLine
from nightlab_replay.report.curves import read_curves
from nightlab_replay.report.page import write_jpeg
from nightlab_ros.demo.report import Recording, write_report
from nightlab_ros.parameter_server import unknown_parameters
from nightlab_ros.parameters import NodeSettings
from nightlab_ros.playback.mask_recorder import MASK, MaskRecorder, MaskSpool
from nightlab_ros.playback.player import FRAME_ID, PlayerSettings
from nightlab_ros.playback.processes import ChildProcess, ProcessError, isolated_ros, node_process
from nightlab_ros.playback.protocol import PlayerProcess, SentFrame, record_playback, wait_for_warm_up

#: Deadline of a frame as a share of the time until the next one, unless the user sets `deadline_ms`: the rest is for
#: conversion and publishing. Regions that would delay the next frame are left out.
DEADLINE_SHARE = 0.9
#: Pattern of the names of rendered frames. Other files in the folder of the clip are the user's.
RENDERED = "rendered_[0-9][0-9][0-9][0-9]"


@dataclass(frozen=True)
class DemoSettings:
    """Frames that the demo plays, and the folder of its report."""

    player: PlayerSettings = field(default_factory=PlayerSettings)
    out: Path = Path("demo_out")  #: folder of overlays/, demo.json, index.html and the processes' logs
    parameters: Mapping[str, str] = field(default_factory=dict)  #: the node's parameters, as on ROS's command line


def parse_parameters(texts: Sequence[str]) -> dict[str, str]:
    """Return the node's parameters from texts NAME:=VALUE, of which one may hold several. Raises ValueError.

    A parameter ends where the next name begins, so that a value may contain spaces.
    """
    found = [part for text in texts for part in re.split(r"\s+(?=\w+:=)", text.strip())]
    for text in found:
        if not re.match(r"\w+:=", text):
            raise ValueError(f"received the parameter {text!r}; expected NAME:=VALUE")
    return {name: value for name, _, value in (text.partition(":=") for text in found)}


def run_demo(settings: DemoSettings, console: Console) -> list[str]:
    """Play the frames through the node and write the report; returns the problems found with the masks.

    No problem means that masks came back and that each fits its frame. Raises ProcessError if the node or the player
    fails, BundleError, FileNotFoundError or ValueError for wrong settings. No process is left behind.
    """
    out, player = settings.out, settings.player
    if (size := settings.parameters.get("output_size", "input")) != "input":
        raise ValueError(f"output_size: received {size}, expected input: the demo lays masks over frames")
    if unknown := unknown_parameters(settings.parameters, {*NodeSettings.model_fields, "use_sim_time"}):
        raise ValueError("; ".join(unknown))
    out.mkdir(parents=True, exist_ok=True)
    source = player.open()
    name = parse_yaml(settings.parameters.get("bundle", ""), "parameter bundle")  # as ROS reads it, quotes included
    bundle = load_bundle(name or default_bundle())
    height, width = next(iter(source)).image_bgr.shape[:2]
    console.print(f"[bold]NightLab demo[/]: {source.name}, {width}x{height} at {player.rate:g} Hz", soft_wrap=True)
    for problem in source.problems:
        console.print("[yellow]Damaged bag:[/]", escape(problem), soft_wrap=True)
    for note in source.notes:
        console.print(escape(note), soft_wrap=True)
    parameters = node_parameters(settings, (height, width))
    with MaskSpool(out) as spool:
        with (
            isolated_ros(out),
            MaskRecorder(spool, with_regions=True) as recorder,
            node_process(parameters, out / "node.log") as node,
        ):
            if player.input is None:  # while the node starts
                source = write_clip(source, out / "clip", player.rate, console)
                player = PlayerSettings(
                    str(out / "clip"), classes=source.classes.key, glob=f"{RENDERED}.jpg", rate=player.rate
                )
            recording = _record(recorder, node, player, source.num_frames, out, console)
        console.print("Scoring and drawing ...")
        rendered = settings.player.input is None
        curves = read_curves(bundle)
        report = write_report(replace(recording, rendered=rendered), source, bundle.class_set, out, curves)
    console.print(report_table(report))
    for problem in report["problems"]:
        console.print("[bold red]Wrong:[/]", escape(problem), soft_wrap=True)
    for note in report["notes"]:
        console.print("[yellow]Note:[/]", escape(note), soft_wrap=True)
    console.print(f"Page with the overlays: {(out / 'index.html').resolve()}", soft_wrap=True)
    return report["problems"]


def node_parameters(settings: DemoSettings, frame_hw: tuple[int, int]) -> dict[str, str]:
    """Return the node's parameters, as text like on ROS's command line, for frames of this size."""
    deadline_ms = max(1.0, min(10_000.0, DEADLINE_SHARE * 1e3 / settings.player.rate))
    own = {"autostart": "true", "image_size": f"[{frame_hw[1]}, {frame_hw[0]}]", "deadline_ms": f"{deadline_ms:.1f}"}
    return own | dict(settings.parameters)


def write_clip(source: FrameSource, folder: Path, fps: float, console: Console) -> FrameSource:
    """Write the rendered clip as a folder of images and label maps, and return it as a source.

    Rendering while the clip plays would take time from the node's inference.
    """
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for old in (folder / part).glob(f"{RENDERED}.*"):
            old.unlink()
    with ProgressLine(console, "Rendering the night clip", source.num_frames) as progress:
        for index, frame in enumerate(source):
            assert frame.labels is not None  # every rendered frame has labels
            write_jpeg(folder / "images" / f"{frame.name}.jpg", frame.image_bgr, quality=95)
            if not cv2.imwrite(str(folder / "labels" / f"{frame.name}.png"), frame.labels):
                raise OSError(f"cannot write into {folder / 'labels'}; is the disk full?")
            progress.update(index + 1)
    opened = open_frames(folder, classes=source.classes.key, fps=fps, pattern=f"{RENDERED}.jpg")
    return replace(opened, name=source.name)


def playback_state(sent: Sequence[SentFrame], recorder: MaskRecorder) -> str:
    """Return masks, drops, rate and latency so far. A frame counts as dropped once a later frame's mask is here."""
    masks = recorder.received[MASK]
    answered = [frame for frame in sent if frame.stamp_ns in masks]
    if not answered:
        return "no mask yet"
    dropped = sum(frame.index < answered[-1].index for frame in sent) - (len(answered) - 1)
    recent = [frame.stamp_ns for frame in answered[-20:]]
    rate = (len(recent) - 1) / max(1e-9, (recent[-1] - recent[0]) / 1e9) if len(recent) > 1 else 0.0
    latency_ms = np.median([masks[frame.stamp_ns][0].latency_ms for frame in answered])
    return f"masks {len(answered)}  dropped {dropped}  {rate:.1f} Hz  p50 {latency_ms:.0f} ms"


def report_table(report: Mapping[str, Any]) -> Table:
    """Return the numbers of demo.json that matter most, as a table."""
    rows = Table(title="\nNightLab demo", title_justify="left", title_style="bold", show_header=False)
    rows.add_column(style="dim")
    rows.add_column(justify="right")
    rows.add_column()
    node = report["node"]
    rows.add_row("frames sent", str(report["sent"]), f"{report['input']} at {report['rate_hz']:g} Hz")
    fits = "see below" if report["problems"] else "each with its frame's size, stamp and frame_id"
    rows.add_row("masks received", str(report["received"]), fits)
    note = f"{node.get('dropped', '?')} skipped by the node for a newer frame, {node.get('failed', '?')} failed"
    rows.add_row("dropped", str(report["dropped"]), note)
    rows.add_row("rate of masks", f"{report['masks_hz']:.1f} Hz", "over the time of playing", end_section=True)
    others = {name.replace("_", " "): count for name, count in report["regions"].items() if count and name != "read"}
    note = ", ".join(f"{count} {name}" for name, count in others.items())
    rows.add_row("regions read", str(report["regions"]["read"]), note, end_section=True)
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


def _record(
    recorder: MaskRecorder,
    node: ChildProcess,
    settings: PlayerSettings,
    num_frames: int | None,
    out: Path,
    console: Console,
) -> Recording:
    """Play the frames through the node and return everything that was sent and received."""
    arguments = [*settings.arguments(), "--warm-up"]
    with PlayerProcess("nightlab_ros.playback.player", arguments, out / "player.log") as player:
        start_s = time.monotonic()
        with console.status("Starting the node: it loads its bundle, compiles the engines and takes a first frame ..."):
            if not wait_for_warm_up(recorder, node, player):
                raise ProcessError(f"the player sent no frame. {player.log_tail()}")
        console.print(f"The node answers (waited {time.monotonic() - start_s:.1f} s)")
        with ProgressLine(console, "Playing", num_frames) as progress:
            record_playback(
                recorder,
                node,
                player,
                on_progress=lambda: progress.update(len(player.sent), playback_state(player.sent, recorder)),
            )
        recording = Recording.collect(recorder, player, FRAME_ID, settings.rate)
    if not recording.masks:
        console.print(node.log_tail(), markup=False)
    return recording
