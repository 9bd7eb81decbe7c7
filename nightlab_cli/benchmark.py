# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark`: measure the TensorRT engines of a bundle on this GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from nightlab_cli.engine import Library, choose_library
from nightlab_cli.errors import Verbose
from nightlab_cli.options import Bundle as BundleOption
from nightlab_cli.options import image_size_option
from nightlab_cli.style import new_app
from nightlab_core.runtime.bundle import Bundle, EngineKind, default_bundle, load_bundle
from nightlab_core.runtime.engines.tensorrt.build import build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtLibrary
from nightlab_core.runtime.engines.tensorrt.plans import PlanHeader, Range, Shape, read_plan

BATCHES = (1, 2, 4, 7, 10)
FRAME_HW = (720, 1280)

app = new_app()


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, copies included."""

    median_ms: float
    p99_ms: float


def measure(engine: TensorRtEngine, arrays: Mapping[str, np.ndarray], runs: int) -> Timing:
    """Time calls with the same inputs, after a tenth as many that are not counted."""
    times_ms = []
    for turn in range(-(runs // 10), runs):
        start = perf_counter()
        engine(**arrays)
        if turn >= 0:
            times_ms.append(1e3 * (perf_counter() - start))
    return Timing(*(float(mark) for mark in np.percentile(times_ms, (50, 99))))


class Bench:
    """Plans in a folder of their own, and engines on them, one after the other."""

    def __init__(self, bundle: Bundle, library: TensorRtLibrary, cuda: Cuda, folder: Path, runs: int) -> None:
        self._bundle, self._library, self._cuda, self._folder, self._runs = bundle, library, cuda, folder, runs
        self._target = library.target(cuda.device())

    def time(
        self, kind: EngineKind, planned: dict[str, Range], asked: Mapping[str, Shape], cuda_graphs: bool
    ) -> tuple[Timing, int]:
        """Timing of calls with the shapes asked, on a plan for the ranges planned, and the device memory it took."""
        key = plan_key(self._bundle, kind, self._library, self._target, "float16", planned)
        header, _ = build_plan(self._bundle, key, self._library, self._folder)

        def open_plan(shapes: Mapping[str, Shape]) -> tuple[PlanHeader, bytes]:
            return read_plan(self._folder / header.key.file_name)

        free = self._cuda.free_bytes()
        with closing(
            TensorRtEngine(self._library, open_plan, asked, cuda=self._cuda, cuda_graphs=cuda_graphs)
        ) as engine:
            random = np.random.default_rng(0)
            arrays = {name: random.integers(0, 256, shape, np.uint8) for name, shape in asked.items()}
            timing = measure(engine, arrays, self._runs)
            return timing, free - self._cuda.free_bytes()


def report(console: Console, bench: Bench, bundle: Bundle, frame_hw: tuple[int, int]) -> None:
    """Measure everything and print two tables."""
    table = Table("network", "CUDA graph", "median ms", "p99 ms", "device MB", box=None)
    for kind in ("image", "hardness"):
        planned = plan_shapes(bundle, kind, frame_hw)
        for cuda_graphs in (False, True):
            timing, memory = bench.time(kind, planned, {"frame": planned["frame"][2]}, cuda_graphs)
            table.add_row(kind, str(cuda_graphs).lower(), *_shown(timing), f"{memory / 1e6:.0f}")
    console.print(table)
    table = Table("regions", "plan", "CUDA graph", "median ms", "p99 ms", "device MB", box=None)
    profile = plan_shapes(bundle, "region", frame_hw)
    for batch in BATCHES:
        shape = (batch, *profile["crops"][0][1:])
        fixed: dict[str, Range] = {"crops": (shape, shape, shape)}
        for name, planned, cuda_graphs in (
            ("1 to 10", profile, False),
            ("fixed", fixed, False),
            ("fixed", fixed, True),
        ):
            timing, memory = bench.time("region", planned, {"crops": shape}, cuda_graphs)
            table.add_row(str(batch), name, str(cuda_graphs).lower(), *_shown(timing), f"{memory / 1e6:.0f}")
    console.print(table)


def _shown(timing: Timing) -> tuple[str, str]:
    return f"{timing.median_ms:.2f}", f"{timing.p99_ms:.2f}"


@app.command()
def benchmark(
    bundle: BundleOption = None,
    image_size: Annotated[Any, image_size_option("1280x720")] = None,
    library: Library = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Number of calls to time.")] = 500,
    verbose: Verbose = False,
) -> None:
    """Measure the TensorRT engines of a bundle on this GPU: milliseconds and device memory.

    Compares CUDA graphs with plain calls, and one plan for 1 to 10 regions with one plan for each number.
    """
    console, cuda = Console(), Cuda()
    opened, tensorrt = load_bundle(bundle or default_bundle()), choose_library(library)
    console.print(f"{opened.manifest.name}, {tensorrt.name} {tensorrt.version}, {cuda.device()}")
    with tempfile.TemporaryDirectory() as folder:
        report(console, Bench(opened, tensorrt, cuda, Path(folder), runs), opened, image_size or FRAME_HW)
