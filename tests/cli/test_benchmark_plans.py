# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark --plans` on plans that are really built, with engines that only count their calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

from command import nightlab
from rich.console import Console

from nightlab_cli import benchmark_plans
from nightlab_cli.benchmark_plans import BATCHES, Bench, report
from nightlab_core.runtime.bundle import load_bundle
from nightlab_core.runtime.engines.tensorrt.cuda import CudaError, Device
from nightlab_core.runtime.engines.tensorrt.libraries import import_library

RUNS = 20


class Gpu:
    """GPU on which every engine takes 3 MB."""

    taken = 0

    def device(self) -> Device:
        return Device("NVIDIA RTX A2000", "8.6", 6 << 30)

    def free_bytes(self) -> int:
        return (6 << 30) - self.taken


class CountingEngine:
    made: list[CountingEngine] = []  # noqa: RUF012 - emptied by the test

    def __init__(
        self, library: Any, open_plan: Any, shapes: Mapping[str, Any], *, cuda: Gpu, cuda_graphs: bool
    ) -> None:
        header, _ = open_plan(shapes)
        self.kind, self.cuda_graphs, self.cuda = header.key.kind, cuda_graphs, cuda
        self.range, self.calls = header.key.shapes, 0
        cuda.taken += 3_000_000
        self.made.append(self)

    def __call__(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            low, _, high = self.range[name]
            assert all(a <= b <= c for a, b, c in zip(low, array.shape, high, strict=True))
        self.calls += 1

    def close(self) -> None:
        self.cuda.taken -= 3_000_000


def test_it_measures_every_network_with_and_without_cuda_graphs(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_plans, "TensorRtEngine", CountingEngine)
    CountingEngine.made.clear()
    bundle, gpu, console = load_bundle(tiny_bundle), Gpu(), Console(record=True, width=120)
    bench = Bench(bundle, import_library("tensorrt_rtx"), gpu, tmp_path, RUNS)  # type: ignore[arg-type]
    report(console, bench, bundle, (64, 96))
    made = CountingEngine.made
    assert {engine.calls for engine in made} == {RUNS + RUNS // 10} and gpu.taken == 0
    assert [(engine.kind, engine.cuda_graphs) for engine in made[:4]] == [
        ("image", False), ("image", True), ("hardness", False), ("hardness", True)
    ]  # fmt: skip
    assert len(made) == 4 + 3 * len(BATCHES)
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    assert sum(row[:1] == [str(batch)] for row in rows for batch in BATCHES) == 3 * len(BATCHES)
    assert all(row[-1] == "3" for row in rows if row[:1] == ["image"])


def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise CudaError("cudaGetDeviceProperties: cudaErrorNoDevice")

    monkeypatch.setattr(benchmark_plans, "Cuda", none)
    done = nightlab("benchmark", "--plans")
    assert done.status == 1
    assert done.err == "nightlab benchmark: cudaGetDeviceProperties: cudaErrorNoDevice\n"


@pytest.mark.parametrize("arguments", [["--library", "onnx"], ["--runs", "0"], ["--runs", "many"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    done = nightlab("benchmark", *arguments)
    assert done.status == 2 and arguments[0] in done.err
