# SPDX-License-Identifier: Apache-2.0
"""The options that several commands share: one name and one meaning each. Defaults are in the commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from pydantic import ValidationError
from rich.console import Console

from nightlab_core.classes import load_class_set, shipped_keys
from nightlab_core.config import Settings
from nightlab_core.data.pixel_depth import PixelDepth
from nightlab_core.output import output_folder
from nightlab_core.runtime.engines.engine import EngineChoice, PrecisionChoice
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_core.yaml_files import ConfigError

#: Width of what is printed into a file or a pipe, in characters.
PIPE_WIDTH = 110
SETTINGS = ", ".join(PipelineSettings.model_fields)


def known_classes(name: str | None) -> str | None:
    """Check the key, or the YAML file, of a class set. Raises BadParameter."""
    if name is not None:
        try:
            load_class_set(name)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
    return name


def possible_pixel_bits(bits: int) -> int:
    """Check a number of significant bits. Raises BadParameter."""
    try:
        PixelDepth(bits)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return bits


def parse_size_hw(text: str) -> tuple[int, int]:
    """Return (height, width) from WIDTHxHEIGHT. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in match.groups():
        raise typer.BadParameter(f"received '{text}', expected the size of the camera's images, such as 1280x720")
    return int(match[2]), int(match[1])


Model = TypeVar("Model", bound=Settings)


def pipeline_settings(given: Sequence[str] | None) -> PipelineSettings:
    """Return the settings of a pipeline from texts NAME=VALUE. Raises ValueError that names the setting."""
    return settings_of_texts(PipelineSettings, given or ())


def settings_of_texts(cls: type[Model], given: Sequence[str]) -> Model:
    """Return settings from texts NAME=VALUE; the field's type decides how a value is read.

    Raises ValueError that names the setting.
    """
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in cls.model_fields:
            raise ValueError(f"--set {text}: expected NAME=VALUE with a name of {', '.join(cls.model_fields)}")
        values[name] = value.strip()
    try:
        return cls.model_validate_strings(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--set {first['loc'][0]}={first['input']}: {first['msg']}") from None


def new_console(stderr: bool = False) -> Console:
    """Return a console as wide as the terminal, or `PIPE_WIDTH` characters wide in a file or a pipe."""
    console = Console(highlight=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, stderr=stderr, width=PIPE_WIDTH)


def image_size_option(default: str) -> Any:
    """Return the option --image-size, whose value is (height, width), with the default that its help shows."""
    return typer.Option(
        "--image-size",
        metavar="WIDTHxHEIGHT",
        parser=parse_size_hw,
        help="Size of the camera's images.",
        show_default=default,
    )


def repeated_option(name: str, choice: Any, text: str) -> Any:
    """Return an option that takes one of the values of a literal type and can be repeated; by default "auto"."""
    choices = get_args(choice)
    shown = f"<{'|'.join(choices)}>"  # as Typer shows a literal type, which it does not take in a list

    def parse(given: str) -> str:
        if given not in choices:
            raise typer.BadParameter(f"received '{given}', expected one of {', '.join(choices)}")
        return given

    return typer.Option(name, metavar=shown, parser=parse, help=f"{text}; can be repeated.", show_default="auto")


def hold_output(context: typer.Context, folder: Path) -> None:
    """Hold the folder of a command's output until the command ends. Raises OutputError if it is not the command's."""
    assert context.info_name is not None
    context.with_resource(output_folder(folder, context.info_name))


Bundle = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FOLDER", help="Bundle to use.", show_default="the shipped bundle"),
]
Classes = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="SET",
        callback=known_classes,
        help=f"Class set of the labels: {', '.join(shipped_keys())}, or a YAML file.",
        show_default="the bag's own, else by the path",
    ),
]
Engine = Annotated[
    EngineChoice,
    typer.Option("--engine", help="Library that runs the networks."),
]
Frames = Annotated[int | None, typer.Option("--frames", metavar="N", min=1, help="Use at most N frames.")]
Glob = Annotated[str, typer.Option("--glob", metavar="PATTERN", help="Names of the images of a folder.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="FOLDER",
        help="Label maps of a folder of images: PNG of class ids.",
        show_default="labels beside the images",
    ),
]
PipelineSetting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help=f"Setting of the pipeline; can be repeated. Names: {SETTINGS}."),
]
PixelBits = Annotated[
    int,
    typer.Option(
        "--pixel-bits",
        metavar="N",
        callback=possible_pixel_bits,
        help="Significant bits of 16-bit pixels, 8 to 16; 0: measured over the first frames.",
    ),
]
Precision = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Arithmetic; auto: float32, float16 on TensorRT, measured in real time."),
]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=0, help="Threads of each engine; 0: the library's choice.")
]
LabelTopic = Annotated[
    str | None, typer.Option("--label-topic", metavar="TOPIC", help="Label topic of a bag that has several.")
]
Topic = Annotated[str | None, typer.Option("--topic", metavar="TOPIC", help="Image topic of a bag that has several.")]
