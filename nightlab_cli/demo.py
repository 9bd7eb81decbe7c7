# SPDX-License-Identifier: Apache-2.0
"""`nightlab demo`: the whole vehicle path in one command. Needs ROS 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nightlab_cli.errors import Verbose
from nightlab_cli.options import Classes, Frames, Glob, Labels, LabelTopic, PixelBits, Topic, hold_output, new_console
from nightlab_cli.style import new_app

app = new_app()


@app.command()
def demo(
    context: typer.Context,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="SOURCE",
            help="Rosbag, folder of images or video.",
            show_default="a rendered night clip",
        ),
    ] = None,
    labels: Labels = None,
    classes: Classes = None,
    glob: Glob = "*",
    topic: Topic = None,
    label_topic: LabelTopic = None,
    pixel_bits: PixelBits = 0,
    frames: Frames = None,
    rate: Annotated[float, typer.Option("--rate", metavar="HZ", help="Frames per second.")] = 10.0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Folder for overlays, demo.json and index.html.")
    ] = Path("demo_out"),
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME:=VALUE", help="Parameters of the node; can be repeated."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Play frames through the ROS node and report: player and node in processes of their own, DDS between them.

    Without --input a labelled night clip is rendered and played. Exit status: 0 if masks came back and each fits its
    frame, else 1 with the reason.

    Example:

    nightlab demo --input drive.mcap --rate 10 --param refine:=never
    """
    hold_output(context, out)
    from nightlab_ros.demo.demo import DemoSettings, parse_parameters, run_demo
    from nightlab_ros.playback.player import PlayerSettings

    player = PlayerSettings(input, labels, classes, glob, topic, frames, rate, label_topic, pixel_bits)
    if run_demo(DemoSettings(player, out, parse_parameters(param or [])), new_console()):
        raise typer.Exit(1)
