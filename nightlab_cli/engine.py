# SPDX-License-Identifier: Apache-2.0
"""`nightlab engine`: build the TensorRT plans of a bundle ahead of time; list, verify and remove them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from nightlab_cli.errors import FAILED, INTERRUPTED, CommandError, Verbose
from nightlab_cli.options import Bundle, image_size_option
from nightlab_cli.signals import handled
from nightlab_cli.style import new_app
from nightlab_core.runtime.bundle import ENGINE_KINDS, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped
from nightlab_core.runtime.engines.tensorrt.build import (
    GRAPH_VERSION,
    Precision,
    build_command,
    build_plan,
    plan_key,
    plan_shapes,
)
from nightlab_core.runtime.engines.tensorrt.cuda import Device, find_device
from nightlab_core.runtime.engines.tensorrt.libraries import (
    PACKAGES,
    Target,
    TensorRtLibrary,
    TensorRtName,
    import_library,
    installed_libraries,
    platform_name,
)
from nightlab_core.runtime.engines.tensorrt.plans import (
    PlanError,
    PlanHeader,
    PlanKey,
    PlanOwnerError,
    cache_folder,
    find_plan,
    plan_files,
    read_header,
    read_plan,
    remove_plans,
)

MEGABYTE = 1e6
#: Kinds of layers that move numbers without arithmetic: their type is of no interest.
MOVES = {"CAST", "SHUFFLE", "UNSQUEEZE", "SQUEEZE", "SLICE", "CONCATENATION", "GATHER", "FILL", "SHAPE"}

app = new_app(
    no_args_is_help=True,
    help="Build the TensorRT plans of a bundle ahead of time; list, verify and remove them.\n\n"
    "Plans are kept in the folder NIGHTLAB_PLANS, or in nightlab/plans in the user's cache folder. "
    "The node looks for them there.",
)

Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        metavar="8.9",
        help="tensorrt_rtx: compute capability to build for; can be repeated.",
        show_default="that of the GPU, or all",
    ),
]
# Typer calls the parser of the option; the type is opaque to it.
ImageSize = Annotated[Any, image_size_option("the bundle's own")]
EnginePrecision = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the plans.")]
Library = Annotated[
    TensorRtName | None,
    typer.Option(
        "--library", help="Variant of TensorRT.", show_default="tensorrt where it is installed, else tensorrt_rtx"
    ),
]


def choose_library(name: TensorRtName | None = None) -> TensorRtLibrary:
    """Return the TensorRT variant of this name, or the first that is installed. Raises ImportError with a remedy."""
    if name:
        return import_library(name)
    if not (libraries := installed_libraries()):
        raise ImportError("TensorRT is not installed: " + ", or ".join(PACKAGES.values()))
    return libraries[0]


@app.command()
def build(
    bundle: Bundle = None,
    image_size: ImageSize = None,
    precision: EnginePrecision = "float16",
    library: Library = None,
    capability: Capabilities = None,
    verbose: Verbose = False,
) -> None:
    """Build the plans of a bundle's networks. Plans that exist are left as they are; Ctrl-C keeps the finished ones."""
    opened, tensorrt, (device, _) = load_bundle(bundle or default_bundle()), choose_library(library), find_device()
    target = tensorrt.target(device, tuple(capability or ()))
    frame_hw = image_size or opened.manifest.engines.image.input_hw
    folder, console = cache_folder(), _console()
    console.print(f"bundle {opened.manifest.name}, images of {frame_hw[1]}x{frame_hw[0]}, {precision}")
    console.print(f"{tensorrt.name} {tensorrt.version} for {target}")
    table = Table("network", "MB", "s", "float16 layers", "float32 layers", box=None)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    display = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[doing]}"), console=console)

    def show(task: TaskID, progress: BuildProgress) -> bool:
        display.update(task, completed=progress.fraction, doing=progress.step)
        return not interrupted.is_set()

    with _interruptible() as interrupted, display:
        for kind in ENGINE_KINDS:
            task = display.add_task(kind, total=1.0, doing="")
            key = plan_key(opened, kind, tensorrt, target, precision, plan_shapes(opened, kind, frame_hw))
            try:
                header, was_built = build_plan(opened, key, tensorrt, folder, partial(show, task))
            except BuildStopped as stopped:
                raise CommandError("interrupted; the plans that were finished are kept", INTERRUPTED) from stopped
            display.update(task, completed=1.0, doing="built" if was_built else "exists")
            table.add_row(kind, *_figures(header))
    console.print(table)
    console.print(f"in {folder}", soft_wrap=True)


def _console() -> Console:
    return Console(markup=False)  # a path may contain square brackets


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Yield an event that a signal to stop sets: KeyboardInterrupt must not pass through TensorRT's own code."""
    interrupted = threading.Event()
    with handled(lambda *_: interrupted.set(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield interrupted


def _figures(header: PlanHeader) -> tuple[str, ...]:
    shown = []
    for dtype in ("float16", "float32"):
        layers = {kind: number for kind, number in header.layers.get(dtype, {}).items() if kind not in MOVES}
        shown.append(", ".join(f"{number} {kind.lower()}" for kind, number in layers.items()) or "none")
    return f"{header.plan_bytes / MEGABYTE:.1f}", f"{header.build_seconds:.1f}", *shown


@app.command("list")
def list_plans(verbose: Verbose = False) -> None:
    """Show the plans, and whether they can be loaded here."""
    folder, console = cache_folder(), _console()
    device, _ = find_device()
    versions = _versions()
    console.print(f"{len(plan_files(folder))} plans in {folder}", soft_wrap=True)
    for path in plan_files(folder):
        try:
            header = read_header(path)
        except PlanError as error:
            console.print(f"{path.name}: {error}", soft_wrap=True, style="red")
            continue
        key = header.key
        low, high = (shapes[i] for shapes in key.shapes.values() for i in (0, 2))
        shape = f"{low}" if low == high else f"{low} to {high}"
        usable = _useless(key, device, versions) or ("can be loaded here" if device else "there is no GPU here")
        console.print(f"{path.name} {header.plan_bytes / MEGABYTE:.1f} MB, built {header.built}", soft_wrap=True)
        held = f"inputs and outputs {header.io_bytes / MEGABYTE:.1f} MB"
        console.print(f"  {key.kind} {shape}, {held}, {key.precision}, ONNX {key.onnx_sha256[:12]}", soft_wrap=True)
        console.print(f"  {key.library} {key.version}, {key.platform}, {key.target}: {usable}", soft_wrap=True)


@app.command()
def verify(
    bundle: Bundle = None,
    image_size: ImageSize = None,
    precision: EnginePrecision = "float16",
    library: Library = None,
    verbose: Verbose = False,
) -> None:
    """Check every plan, and that this machine can load the bundle's.

    Exit status 1 if a plan is damaged or missing.
    """
    opened, tensorrt, (device, reason) = load_bundle(bundle or default_bundle()), choose_library(library), find_device()
    folder, console, damaged, missing = cache_folder(), _console(), 0, 0
    for path in plan_files(folder):
        try:
            read_plan(path)
            console.print(f"{path.name}: whole", soft_wrap=True)
        except PlanError as error:
            damaged += 1
            console.print(str(error), soft_wrap=True, style="red")
    frame_hw = image_size or opened.manifest.engines.image.input_hw
    here = Target((device.capability,), device.name) if device else tensorrt.target(device)
    console.print(f"bundle {opened.manifest.name}, images of {frame_hw[1]}x{frame_hw[0]}, {precision}, {here}")
    if device is None:
        console.print(f"no GPU here to load the plans: {reason}", soft_wrap=True)
    for kind in ENGINE_KINDS:
        key = plan_key(opened, kind, tensorrt, here, precision, plan_shapes(opened, kind, frame_hw))
        try:
            header, _ = find_plan(folder, key)
            console.print(f"{kind}: {header.key.file_name}", soft_wrap=True)
        except PlanError as error:
            missing += 1
            console.print(f"{kind}: {error}", soft_wrap=True, style="red")
    if damaged:
        console.print("remove damaged plans with: nightlab engine clean")
    if missing:
        console.print(f"build with: {build_command(opened, frame_hw, precision)}", soft_wrap=True)
    if damaged or missing:
        raise typer.Exit(FAILED)


@app.command()
def clean(
    everything: Annotated[bool, typer.Option("--all", help="Remove every plan.")] = False,
    verbose: Verbose = False,
) -> None:
    """Remove plans that are damaged or can never be loaded here."""
    console, (device, _), versions = _console(), find_device(), _versions()

    def unwanted(path: Path) -> bool:
        try:
            header, _ = read_plan(path)
        except PlanOwnerError as error:  # root may clean up where another user's node finds its plans
            if not everything:
                console.print(f"kept: {error}", soft_wrap=True)
            return everything
        except PlanError:
            return True
        if header.key.library not in versions:  # it may be installed in another environment
            return everything
        return everything or bool(_useless(header.key, device, versions))

    tell = cache(partial(console.print, "waiting for another process that builds"))  # once
    count, total = 0, 0
    for path, size in remove_plans(cache_folder(), unwanted, tell):
        count, total = count + 1, total + size
        console.print(f"removed {path.name}", soft_wrap=True)
    console.print(f"{count} plans removed, {total / MEGABYTE:.1f} MB")


def _versions() -> dict[str, str]:
    return {library.name: library.version for library in installed_libraries()}


def _useless(key: PlanKey, device: Device | None, versions: dict[str, str]) -> str:
    """Return why this machine can never load a plan, or "". Without a GPU, plans for any GPU count as loadable."""
    if key.platform != platform_name():
        return f"made for {key.platform}, this is {platform_name()}"
    if versions.get(key.library) != key.version:
        return f"made by {key.library} {key.version}, installed is {versions.get(key.library, 'none')}"
    if key.graph_version != GRAPH_VERSION:
        return f"made from graphs of version {key.graph_version}, this is {GRAPH_VERSION}"
    if device is not None and not key.target.serves(Target((device.capability,), device.name)):
        return f"the GPU here is {device}"
    return ""
