# SPDX-License-Identifier: Apache-2.0
"""`nightlab bag`: make a labelled bag."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rosbags.rosbag2 import WriterError

from nightlab_cli.errors import CommandError, Verbose
from nightlab_cli.options import Classes, Frames, Glob, Labels, LabelTopic, PixelBits, Topic, new_console
from nightlab_cli.style import new_app
from nightlab_core.data.bags.write import Packing, StorageName
from nightlab_core.data.frames import open_frames
from nightlab_replay.bags import IMAGE_TOPIC, LABEL_TOPIC, write_labelled_bag
from nightlab_replay.progress import ProgressLine

app = new_app()


@app.command()
def bag(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of images, video, or rosbag.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the new bag; must not exist.")],
    labels: Labels = None,
    classes: Classes = None,
    topic: Topic = None,
    label_topic: LabelTopic = None,
    pixel_bits: PixelBits = 0,
    glob: Glob = "*",
    rate: Annotated[float, typer.Option("--rate", metavar="HZ", help="Frames per second of a folder.")] = 10.0,
    frames: Frames = None,
    storage: Annotated[StorageName, typer.Option("--storage", help="Format of the new bag.")] = "mcap",
    compress: Annotated[
        Packing, typer.Option("--compress", help="Write CompressedImage messages instead of Image.")
    ] = "none",
    out_topic: Annotated[
        str, typer.Option("--out-topic", metavar="TOPIC", help="Image topic of the new bag.")
    ] = IMAGE_TOPIC,
    out_label_topic: Annotated[
        str, typer.Option("--out-label-topic", metavar="TOPIC", help="Label topic of the new bag.")
    ] = LABEL_TOPIC,
    verbose: Verbose = False,
) -> None:
    """Make a labelled bag from a folder of images with their label maps, from a video, or from another bag.

    Labels are class ids (mono8) with the stamp of their image. The bag records its class set.

    Example:

    nightlab bag night_drive/images --labels night_drive/labels --out night_bag
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"--rate is {rate}; expected a finite number of frames per second, above 0")
    console = new_console(stderr=True)
    try:
        frame_source = open_frames(
            source,
            labels=labels,
            classes=classes,
            pattern=glob,
            topic=topic,
            label_topic=label_topic,
            max_frames=frames,
            fps=rate,
            pixel_bits=pixel_bits,
        )
        for sentence in (*frame_source.problems, *frame_source.notes):
            console.print(f"{source}: {sentence}", markup=False, soft_wrap=True)
        with ProgressLine(console, "Writing", frame_source.num_frames) as line:
            num_images, num_labels = write_labelled_bag(
                frame_source,
                out,
                storage=storage,
                packing=compress,
                topic=out_topic,
                label_topic=out_label_topic,
                on_frame=line.update,
            )
    except WriterError as error:
        raise CommandError(str(error)) from error
    typer.echo(f"{out}: {num_images} frames, {num_labels} with labels ({frame_source.classes.key})")
