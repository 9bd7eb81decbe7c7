# SPDX-License-Identifier: Apache-2.0
"""nightlab-engine: build the TensorRT engines of a bundle ahead of time, list, verify and remove them.

Also ``python -m nightlab_cli.engine``. Plans are kept in the folder NIGHTLAB_PLANS, or in nightlab/plans in the
user's cache folder; the node looks for them there.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nightlab_core.runtime.bundle import ENGINE_KINDS, BundleError, default_bundle, load_bundle
from nightlab_core.runtime.engines.engine import BuildProgress, BuildStopped
from nightlab_core.runtime.engines.tensorrt.build import (
    GRAPH_VERSION,
    Precision,
    build_command,
    build_plan,
    plan_key,
    plan_shapes,
)
from nightlab_core.runtime.engines.tensorrt.cuda import CudaError, Device, find_device
from nightlab_core.runtime.engines.tensorrt.libraries import (
    PACKAGES,
    Flavour,
    FlavourName,
    Target,
    TensorRtError,
    import_flavour,
    installed_flavours,
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
#: Kinds of layers that move numbers and reckon nothing: in which type they do is of no interest.
MOVES = {"CAST", "SHUFFLE", "UNSQUEEZE", "SQUEEZE", "SLICE", "CONCATENATION", "GATHER", "FILL", "SHAPE"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console(markup=False)  # a path may hold square brackets
    try:
        return options.run(console, options)
    except (BundleError, PlanError, TensorRtError, CudaError, ImportError) as error:
        print(f"nightlab-engine {options.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"nightlab-engine {options.command}: interrupted", file=sys.stderr)
    except BuildStopped:
        print(f"nightlab-engine {options.command}: interrupted; the plans that were finished are kept", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nightlab-engine", description="TensorRT engines of a bundle, ahead of time.")
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="build the three engines, those that are there already left as they are")
    build.set_defaults(run=_build)
    _add_bundle(build)
    build.add_argument(
        "--capability",
        action="append",
        default=[],
        metavar="8.9",
        help="tensorrt_rtx: a compute capability to build for, may be repeated; default: what suits the GPU, or all",
    )
    commands.add_parser("list", help="show the plans that are there").set_defaults(run=_list)
    verify = commands.add_parser("verify", help="check every plan, and whether this machine would load the bundle's")
    verify.set_defaults(run=_verify)
    _add_bundle(verify)
    clean = commands.add_parser("clean", help="remove the plans that this machine can never load")
    clean.add_argument("--all", action="store_true", help="remove every plan")
    clean.set_defaults(run=_clean)
    return parser


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", type=Path, default=default_bundle(), help="default: the one shipped")
    parser.add_argument(
        "--image-size", type=parse_size_hw, metavar="WIDTHxHEIGHT", help="the camera's; default: the bundle's own size"
    )
    parser.add_argument("--precision", choices=get_args(Precision), default="float16")
    parser.add_argument(
        "--flavour", choices=get_args(FlavourName), help="default: tensorrt where it is installed, else tensorrt_rtx"
    )


def parse_size_hw(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"received {text!r}, expected the camera's size, such as 1280x720")
    return int(match[2]), int(match[1])


def choose_flavour(name: FlavourName | None = None) -> Flavour:
    """The flavour of this name, or the first that is installed. Raises ImportError saying what to install."""
    if name:
        return import_flavour(name)
    if not (flavours := installed_flavours()):
        raise ImportError("TensorRT is not installed: " + ", or ".join(PACKAGES.values()))
    return flavours[0]


def _build(console: Console, options: argparse.Namespace) -> int:
    bundle, flavour, (device, _) = load_bundle(options.bundle), choose_flavour(options.flavour), find_device()
    target = flavour.target(device, tuple(options.capability))
    frame_hw = options.image_size or bundle.manifest.engines.image.input_hw
    folder = cache_folder()
    console.print(f"bundle {bundle.manifest.name}, images of {frame_hw[1]}x{frame_hw[0]}, {options.precision}")
    console.print(f"{flavour.name} {flavour.version} for {target}")
    table = Table("network", "MB", "s", "float16 layers", "float32 layers", box=None)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    display = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[doing]}"), console=console)
    with _interruptible() as interrupted, display:
        for kind in ENGINE_KINDS:
            task = display.add_task(kind, total=1.0, doing="")

            def show(progress: BuildProgress, task=task) -> bool:  # type: ignore[no-untyped-def]
                display.update(task, completed=progress.fraction, doing=progress.step)
                return not interrupted.is_set()

            key = plan_key(bundle, kind, flavour, target, options.precision, plan_shapes(bundle, kind, frame_hw))
            header, was_built = build_plan(bundle, key, flavour, folder, show)
            display.update(task, completed=1.0, doing="built" if was_built else "was there already")
            table.add_row(kind, *_figures(header))
    console.print(table)
    console.print(f"in {folder}", soft_wrap=True)
    return 0


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets: KeyboardInterrupt must not pass through TensorRT's own code."""
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _figures(header: PlanHeader) -> tuple[str, ...]:
    shown = []
    for dtype in ("float16", "float32"):
        layers = {kind: number for kind, number in header.layers.get(dtype, {}).items() if kind not in MOVES}
        shown.append(", ".join(f"{number} {kind.lower()}" for kind, number in layers.items()) or "none")
    return f"{header.plan_bytes / MEGABYTE:.1f}", f"{header.build_seconds:.1f}", *shown


def _list(console: Console, options: argparse.Namespace) -> int:
    folder = cache_folder()
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
        console.print(f"  {key.flavour} {key.version}, {key.platform}, {key.target}: {usable}", soft_wrap=True)
    return 0


def _verify(console: Console, options: argparse.Namespace) -> int:
    bundle, flavour, (device, reason) = load_bundle(options.bundle), choose_flavour(options.flavour), find_device()
    folder, damaged, missing = cache_folder(), 0, 0
    for path in plan_files(folder):
        try:
            read_plan(path)
            console.print(f"{path.name}: whole", soft_wrap=True)
        except PlanError as error:
            damaged += 1
            console.print(str(error), soft_wrap=True, style="red")
    frame_hw = options.image_size or bundle.manifest.engines.image.input_hw
    here = Target((device.capability,), device.name) if device else flavour.target(device)
    console.print(f"bundle {bundle.manifest.name}, images of {frame_hw[1]}x{frame_hw[0]}, {options.precision}, {here}")
    if device is None:
        console.print(f"whether a GPU takes the plans cannot be told here: {reason}", soft_wrap=True)
    for kind in ENGINE_KINDS:
        key = plan_key(bundle, kind, flavour, here, options.precision, plan_shapes(bundle, kind, frame_hw))
        try:
            header, _ = find_plan(folder, key)
            console.print(f"{kind}: {header.key.file_name}", soft_wrap=True)
        except PlanError as error:
            missing += 1
            console.print(f"{kind}: {error}", soft_wrap=True, style="red")
    if damaged:
        console.print("remove what is damaged with: nightlab-engine clean")
    if missing:
        console.print(f"build with: {build_command(bundle, frame_hw, options.precision)}", soft_wrap=True)
    return 1 if damaged or missing else 0


def _clean(console: Console, options: argparse.Namespace) -> int:
    device, _ = find_device()
    versions = _versions()

    def unwanted(path: Path) -> bool:
        try:
            header, _ = read_plan(path)
        except PlanOwnerError as error:  # root may clean up where another user's node finds its plans
            if not options.all:
                console.print(f"kept: {error}", soft_wrap=True)
            return options.all
        except PlanError:
            return True
        if header.key.flavour not in versions:  # perhaps in another environment: nothing can be said
            return options.all
        return options.all or bool(_useless(header.key, device, versions))

    tell = cache(partial(console.print, "waiting for another process that builds"))  # once
    count, total = 0, 0
    for path, size in remove_plans(cache_folder(), unwanted, tell):
        count, total = count + 1, total + size
        console.print(f"removed {path.name}", soft_wrap=True)
    console.print(f"{count} plans removed, {total / MEGABYTE:.1f} MB")
    return 0


def _versions() -> dict[str, str]:
    return {flavour.name: flavour.version for flavour in installed_flavours()}


def _useless(key: PlanKey, device: Device | None, versions: dict[str, str]) -> str:
    """Why this machine, as it is, can never load a plan; "" if it may. Where there is no GPU, any GPU may be meant."""
    if key.platform != platform_name():
        return f"made for {key.platform}, this is {platform_name()}"
    if versions.get(key.flavour) != key.version:
        return f"made by {key.flavour} {key.version}, installed is {versions.get(key.flavour, 'none')}"
    if key.graph_version != GRAPH_VERSION:
        return f"made from graphs of version {key.graph_version}, this is {GRAPH_VERSION}"
    if device is not None and not key.target.serves(Target((device.capability,), device.name)):
        return f"the GPU here is {device}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
