# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark --plans`: latency and device memory of TensorRT plans on this GPU.

Compares CUDA graphs with plain calls, and one plan for 1 to 10 regions with one plan for each number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nightlab_core.benchmark.timing import Timing, time_in_turns
from nightlab_core.runtime.bundle import Bundle, EngineKind
from nightlab_core.runtime.engines.tensorrt.build import build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.cuda import Cuda
from nightlab_core.runtime.engines.tensorrt.engine import TensorRtEngine
from nightlab_core.runtime.engines.tensorrt.libraries import TensorRtLibrary
from nightlab_core.runtime.engines.tensorrt.plans import PlanHeader, Range, Shape, read_plan

BATCHES = (1, 2, 4, 7, 10)


def measure(engine: TensorRtEngine, arrays: Mapping[str, np.ndarray], runs: int) -> Timing:
    """Time calls with the same inputs, copies included, after a tenth as many that are not counted."""
    return Timing.of(time_in_turns({"call": lambda: engine(**arrays)}, runs, runs // 10)["call"])


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
        shapes = {name: (batch, *each[1][1:]) for name, each in profile.items()}
        fixed: dict[str, Range] = {name: (shape, shape, shape) for name, shape in shapes.items()}
        for name, planned, cuda_graphs in (
            ("1 to 10", profile, False),
            ("fixed", fixed, False),
            ("fixed", fixed, True),
        ):
            timing, memory = bench.time("region", planned, shapes, cuda_graphs)
            table.add_row(str(batch), name, str(cuda_graphs).lower(), *_shown(timing), f"{memory / 1e6:.0f}")
    console.print(table)


def _shown(timing: Timing) -> tuple[str, str]:
    return f"{timing.median_ms:.2f}", f"{timing.p99_ms:.2f}"


def measure_plans(bundle: Bundle, frame_hw: tuple[int, int], library: TensorRtLibrary, runs: int) -> None:
    """Measure the plans of a bundle on this GPU and print two tables. Raises CudaError if there is no GPU."""
    console, cuda = Console(), Cuda()
    console.print(f"{bundle.manifest.name}, {library.name} {library.version}, {cuda.device()}")
    with tempfile.TemporaryDirectory() as folder:
        report(console, Bench(bundle, library, cuda, Path(folder), runs), bundle, frame_hw)
