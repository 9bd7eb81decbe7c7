# SPDX-License-Identifier: Apache-2.0
"""Measure a bundle's TensorRT engines on the GPU at hand: milliseconds, device memory, and the choices that only a GPU
can settle: CUDA graphs or not, one plan for 1 to 10 regions or one for each number.

    python -m nightlab_cli.benchmark BUNDLE --image-size 1280x720
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from nightlab_cli.engine import choose_flavour, parse_size_hw
from nightlab_core.runtime.bundle import Bundle, BundleError, EngineKind, default_bundle, load_bundle
from nightlab_core.runtime.engines.tensorrt.build import build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda, CudaError
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import Flavour, FlavourName, TensorRtError
from nightlab_core.runtime.engines.tensorrt.plans import PlanError, PlanHeader, Range, Shape, read_plan

BATCHES = (1, 2, 4, 7, 10)


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

    def __init__(self, bundle: Bundle, flavour: Flavour, cuda: Cuda, folder: Path, runs: int) -> None:
        self._bundle, self._flavour, self._cuda, self._folder, self._runs = bundle, flavour, cuda, folder, runs
        self._target = flavour.target(cuda.device())

    def time(
        self, kind: EngineKind, planned: dict[str, Range], asked: Mapping[str, Shape], cuda_graphs: bool
    ) -> tuple[Timing, int]:
        """Timing of calls with the shapes asked, on a plan for the ranges planned, and the device memory it took."""
        key = plan_key(self._bundle, kind, self._flavour, self._target, "float16", planned)
        header, _ = build_plan(self._bundle, key, self._flavour, self._folder)

        def open_plan(shapes: Mapping[str, Shape]) -> tuple[PlanHeader, bytes]:
            return read_plan(self._folder / header.key.file_name)

        free = self._cuda.free_bytes()
        with closing(
            TensorRtEngine(self._flavour, open_plan, asked, cuda=self._cuda, cuda_graphs=cuda_graphs)
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


def _runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"received {text!r}, expected a whole number from 1 on")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m nightlab_cli.benchmark", description="TensorRT's speed here.")
    parser.add_argument("bundle", nargs="?", type=Path, default=default_bundle(), help="default: the one shipped")
    parser.add_argument("--image-size", type=parse_size_hw, default=(720, 1280), metavar="WIDTHxHEIGHT")
    parser.add_argument("--flavour", choices=get_args(FlavourName), help="default: the first that is installed")
    parser.add_argument("--runs", type=_runs, default=500, help="calls to time (default: %(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        cuda = Cuda()
        bundle, flavour = load_bundle(options.bundle), choose_flavour(options.flavour)
        console.print(f"{bundle.manifest.name}, {flavour.name} {flavour.version}, {cuda.device()}")
        with tempfile.TemporaryDirectory() as folder:
            report(console, Bench(bundle, flavour, cuda, Path(folder), options.runs), bundle, options.image_size)
    except (BundleError, PlanError, TensorRtError, CudaError, ImportError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
