# SPDX-License-Identifier: Apache-2.0
"""`nightlab evaluate`: measure a bundle or a checkpoint on labelled images. Needs torch and the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nightlab_cli.errors import Verbose
from nightlab_cli.options import Engine, Glob, PipelineSetting, PixelBits, Precision, known_classes, pipeline_settings
from nightlab_cli.style import new_app
from nightlab_core.output import check_report

app = new_app()


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Bundle (a folder) or checkpoint (a file).")],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Folder that holds the data sets.")],
    dataset: Annotated[
        list[str], typer.Option("--dataset", metavar="NAME", help="Such as camvid/val; can be repeated.")
    ],
    glob: Glob = "*",
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="SET",
            callback=known_classes,
            help="Class set of the labels in plain folders: a key or a YAML file.",
            show_default="the model's",
        ),
    ] = None,
    pixel_bits: PixelBits = 0,
    partial: Annotated[bool, typer.Option("--partial", help="Accept a data set that lacks frames.")] = False,
    engine: Engine = "auto",
    precision: Precision = "float32",
    settings: PipelineSetting = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale",
            metavar="FACTOR",
            help="Scale of the image level's input; a checkpoint takes several.",
            show_default="1.0",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Checkpoint: read the mirror image, too.")] = False,
    window: Annotated[
        tuple[int, int] | None,
        typer.Option("--window", metavar="HEIGHT WIDTH", help="Checkpoint: slide a window over the frame."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here, too.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the figures into the bundle's manifest.")] = False,
    verbose: Verbose = False,
) -> None:
    """Measure a bundle or a checkpoint on labelled images: mean IoU of the image level and of both levels.

    A bundle runs as in the vehicle. A checkpoint, of a whole NightLab or of an image-level stage, runs in torch.

    Examples:

    \b
    nightlab evaluate BUNDLE --data DATA --dataset camvid/val
    nightlab evaluate runs/lite_image/checkpoint.pt --data DATA \\
        --dataset camvid/val --flip
    """
    if json is not None:
        check_report(json, _is_report)
    from training.evaluation.evaluate import evaluate_model
    from training.sliding import TestTime

    evaluate_model(
        model,
        data,
        dataset,
        pattern=glob,
        partial=partial,
        classes=classes,
        pixel_bits=pixel_bits,
        engine=engine,
        precision=precision,
        settings=pipeline_settings(settings),
        test_time=TestTime(scales=tuple(scale or (1.0,)), flip=flip, window_hw=window),
        record_figures=record,
        json_path=json,
    )


def _is_report(content: Any) -> bool:
    """Return whether the content of a JSON file is that of --json."""
    sets = list(content.values()) if isinstance(content, dict) else []
    return bool(sets) and all(isinstance(figures, dict) and "image_level_miou" in figures for figures in sets)
