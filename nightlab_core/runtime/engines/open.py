# SPDX-License-Identifier: Apache-2.0
"""Which library runs a bundle's three networks on this machine."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind
from nightlab_core.runtime.engines.engine import Engine, EngineChoice, engine_maker
from nightlab_core.runtime.engines.tensorrt.build import Precision, build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.compiler import OnProgress
from nightlab_core.runtime.engines.tensorrt.cuda import CudaError, Device, find_device, has_driver
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import (
    PACKAGES,
    Flavour,
    Target,
    TensorRtError,
    installed_flavours,
)
from nightlab_core.runtime.engines.tensorrt.plans import PlanError, PlanHeader, Range, Shape, cache_folder, find_plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engines:
    """Three engines of one library, and a sentence for the user where a faster one could have run, or ""."""

    image: Engine
    hardness: Engine
    region: Engine
    note: str = ""


def open_engines(
    bundle: Bundle,
    *,
    engine: EngineChoice = "auto",
    precision: Literal["auto", "float32"] = "auto",
    threads: int = 0,
    frame_hw: tuple[int, int] | None = None,
    build: bool = False,
    on_progress: OnProgress = lambda progress: True,
) -> Engines:
    """Open a bundle's networks for frames of this size.

    "auto" is TensorRT where there are a GPU and plans that fit. Where there is a GPU but no plan, they are built if
    `build` says so; else the note names the command that does, and the engine is OpenVINO, or ONNX Runtime where that
    is not installed. "tensorrt" raises where "auto" would turn to another: PlanError, TensorRtError, CudaError or
    ImportError. A library that was asked for and is missing is an ImportError that names what to install. BuildStopped
    is raised where `on_progress` says so.
    """
    if engine not in get_args(EngineChoice):
        raise ValueError(f"engine: received {engine!r}, expected one of {', '.join(get_args(EngineChoice))}")
    note = ""
    if engine in ("auto", "tensorrt"):
        half: Precision = "float32" if precision == "float32" else "float16"
        device, reason = find_device()
        if device is not None:
            try:
                return _open_tensorrt(bundle, device, half, frame_hw, build, on_progress)
            except (PlanError, TensorRtError, CudaError, ImportError) as error:
                if engine == "tensorrt":
                    raise
                note = f"there is a GPU, {device}, but TensorRT does not run: {error}"
        elif engine == "tensorrt":
            raise CudaError(f"engine 'tensorrt' needs an NVIDIA GPU and its driver, and none can be used: {reason}")
        elif has_driver():
            note = (
                f"NVIDIA's driver is installed, but TensorRT finds no GPU: {reason}. Bindings newer than the driver "
                "are a usual cause: pip install 'cuda-bindings<13' for a driver of CUDA 12, or update the driver"
            )
    make = engine_maker("auto" if engine == "tensorrt" else engine, precision=precision, threads=threads)
    return _open_each(lambda kind: make(bundle.path(kind)), note)


def build_command(bundle: Bundle, frame_hw: tuple[int, int] | None, precision: Precision = "float16") -> str:
    """The command that builds what is missing for frames of this size; None: of a size that the user has to fill in."""
    size = f"{frame_hw[1]}x{frame_hw[0]}" if frame_hw else "WIDTHxHEIGHT"
    words = ["nightlab-engine", "build", str(bundle.dir), "--image-size", size]
    if precision != "float16":
        words += ["--precision", precision]
    folder = os.environ.get("NIGHTLAB_PLANS")
    return (f"NIGHTLAB_PLANS={shlex.quote(folder)} " if folder else "") + shlex.join(words)


def _open_tensorrt(
    bundle: Bundle,
    device: Device,
    precision: Precision,
    frame_hw: tuple[int, int] | None,
    build: bool,
    on_progress: OnProgress,
) -> Engines:
    flavours = installed_flavours()
    if not flavours:
        raise ImportError("TensorRT is not installed: " + ", or ".join(PACKAGES.values()))
    if frame_hw is None:
        raise PlanError("the camera's size is not known yet, and a plan is made for one: set image_size")
    folder = cache_folder()
    refusals = []
    for flavour in flavours:
        try:
            return _load(bundle, flavour, device, precision, frame_hw, folder)
        except (PlanError, TensorRtError) as error:
            refusals.append(str(error))
    if not build:
        raise PlanError("\n".join(refusals))
    flavour = flavours[0]
    log.info("building TensorRT engines into %s", folder)
    for kind in ENGINE_KINDS:
        shapes = plan_shapes(bundle, kind, frame_hw)
        key = plan_key(bundle, kind, flavour, flavour.target(device), precision, shapes)
        build_plan(bundle, key, flavour, folder, on_progress)
    return _load(bundle, flavour, device, precision, frame_hw, folder)


def _load(
    bundle: Bundle,
    flavour: Flavour,
    device: Device,
    precision: Precision,
    frame_hw: tuple[int, int],
    folder: Path,
) -> Engines:
    here = Target((device.capability,), device.name)

    def open_plan(kind: EngineKind, shapes: Mapping[str, Shape]) -> tuple[PlanHeader, bytes]:
        planned = plan_shapes(bundle, kind, frame_hw)
        ranges: dict[str, Range] = {name: (shape, shape, shape) for name, shape in shapes.items()}
        if kind == "region":  # the number of regions changes from frame to frame: one plan for all
            ranges = planned
        try:
            return find_plan(folder, plan_key(bundle, kind, flavour, here, precision, ranges))
        except PlanError as error:
            if ranges == planned:
                raise PlanError(f"{error}\nBuild it with: {build_command(bundle, frame_hw, precision)}") from error
            raise PlanError(
                f"{error}\nThe camera's size is not image_size, {frame_hw[1]}x{frame_hw[0]}: correct that, and build "
                f"plans for the right one with: {build_command(bundle, None, precision)}"
            ) from error

    def make(kind: EngineKind) -> Engine:
        largest = {name: high for name, (_, _, high) in plan_shapes(bundle, kind, frame_hw).items()}
        try:
            return TensorRtEngine(flavour, partial(open_plan, kind), largest)
        except TensorRtError as error:  # of a plan that is whole and fits
            raise TensorRtError(
                f"{error}\nUpdate NVIDIA's driver if it is older than TensorRT; else build the plans anew: "
                f"nightlab-engine clean --all, then {build_command(bundle, frame_hw, precision)}"
            ) from error

    return _open_each(make)


def _open_each(make: Callable[[EngineKind], Engine], note: str = "") -> Engines:
    """All three, or none: those that were opened are closed when one fails."""
    with ExitStack() as stack:
        engines = {}
        for kind in ENGINE_KINDS:
            engines[kind] = make(kind)
            stack.callback(engines[kind].close)
        stack.pop_all()
    return Engines(**engines, note=note)
