# SPDX-License-Identifier: Apache-2.0
"""`nightlab export`: from a checkpoint to a bundle. Needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nightlab_cli.errors import CommandError, Verbose
from nightlab_cli.style import new_app
from nightlab_core.output import check_is_new

app = new_app()


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint of a whole NightLab.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the bundle; new or empty.")],
    input: Annotated[
        Path, typer.Option("--input", metavar="SOURCE", help="Folder of real camera images for the parity check.")
    ],
    frames: Annotated[int, typer.Option("--frames", metavar="N", min=1, help="Use N frames.")] = 8,
    deform: Annotated[
        Literal["deform_conv", "grid_sample"],
        typer.Option(
            "--deform",
            help="Operator of deformable convolution. Every inference library takes both.",
        ),
    ] = "deform_conv",
    weights: Annotated[
        Literal["float16", "float32"], typer.Option("--weights", help="Type in which the weights are stored.")
    ] = "float16",
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint to a bundle, and compare every engine with torch on real frames.

    Writes image.onnx, hardness.onnx, region.onnx and bundle.yaml. Exit status 1 if an engine differs from torch.

    Example:

    nightlab export runs/nightlab-lite.pt --out my_bundle --input DATA/camvid/val/images
    """
    from nightlab_core.export.export import export_checkpoint
    from nightlab_core.export.parity import print_parity, read_frames

    check_is_new(out)
    images = read_frames(input, frames)
    if not print_parity(export_checkpoint(checkpoint, out, images, deform=deform, weights=weights)):
        raise CommandError(f"the engines in {out} differ from torch; see the table")
