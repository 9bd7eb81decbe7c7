# SPDX-License-Identifier: Apache-2.0
"""Define the interface of every inference engine, the options that open one, and the table of libraries.

To add a library, write one module with a class that has `open_bundle` and add one line to `LIBRARIES`. No module of a
library is imported here, so that one installed library is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from nightlab_core.config import Settings
from nightlab_core.runtime.bundle import ENGINE_KINDS, MAX_FURTHER_SIZES, Bundle, EngineKind
from nightlab_core.runtime.hardware import usable_cores

#: Library -> the class whose `open_bundle` opens a bundle's networks (see `EngineLibrary`). "auto" tries them in order.
LIBRARIES: Mapping[str, str] = {
    "tensorrt": "nightlab_core.runtime.engines.tensorrt.engine:TensorRtEngine",
    "openvino": "nightlab_core.runtime.engines.openvino:OpenVinoEngine",
    "onnxruntime": "nightlab_core.runtime.engines.onnxruntime:OnnxRuntimeEngine",
}
if TYPE_CHECKING:
    EngineChoice = str
else:  # a literal type, so that YAML files, command lines and ROS parameters accept these names and no others
    EngineChoice = Literal[("auto", *LIBRARIES)]
Precision = Literal["float32", "bfloat16", "float16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
#: Whether the image level and the lower path of a frame run at the same time or one after the other.
Paths = Literal["at_once", "in_turn"]
PathsChoice = Literal["auto", "at_once", "in_turn"]
#: Sizes of input of which an engine keeps the compiled forms: all sizes of a crop, and those of several cameras.
KEPT_SIZES = 1 + MAX_FURTHER_SIZES


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of one input or output. A size of `None` may change from call to call."""

    dtype: np.dtype
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if size is None else str(size) for size in self.shape)})"

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """Return True if an array of this shape fits."""
        return len(shape) == len(self.shape) and all(
            s is None or s == n for s, n in zip(self.shape, shape, strict=True)
        )


class Engine(Protocol):
    """A network that is ready to run. Any thread may call it; concurrent calls run one at a time.

    An engine that knows the precision it computes in also has `arithmetic`, see `OpenVinoEngine.arithmetic`.
    """

    name: str  #: the inference library, for example "openvino"
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def prepare(self, **shapes: tuple[int, ...]) -> None:
        """Compile and warm up for inputs of these shapes, so that the first real call is as fast as the next."""

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network and return its outputs by name. The caller owns the arrays: no later call overwrites them.

        Raises ValueError for inputs that do not fit `inputs`, and RuntimeError after `close`.
        """

    def close(self) -> None:
        """Free the network's memory. Closing twice is harmless."""


class EngineOptions(Settings):
    """Options that choose an inference library and configure it. They are fixed once the engines are open."""

    engine: Annotated[
        EngineChoice,
        Field(
            description=f"inference library; auto: the first of {', '.join(LIBRARIES)} that can run here; TensorRT "
            "needs the camera's size, a GPU, and plans that were built for them"
        ),
    ] = "auto"
    precision: Annotated[
        PrecisionChoice,
        Field(
            description="arithmetic; auto: the fastest that the library offers here, by measurement; without "
            "measurement float32, and float16 on TensorRT"
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Field(
            ge=0,
            le=1024,
            description="threads per engine; 0: chosen by measurement, at most the cores that the process may use",
        ),
    ] = 0
    region_batch: Annotated[
        int,
        Field(
            ge=0,
            le=64,
            description="regions that one call of the region network reads; 10 and more: all of a frame, as TensorRT "
            "always does; 0: chosen by measurement",
        ),
    ] = 0
    paths: Annotated[
        PathsChoice,
        Field(
            description="at_once runs the image level and the lower path at the same time, in_turn one after the "
            "other; auto: chosen by measurement"
        ),
    ] = "auto"
    calibration_s: Annotated[
        float,
        Field(
            ge=0,
            le=60,
            description="seconds that the measurement of these choices may take when the engines are first prepared; "
            "its result is kept in the user's cache folder; 0: nothing is measured",
        ),
    ] = 2.0
    frame_hw: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
        Field(description="height and width of the camera's frames; TensorRT needs it, since a plan fits one size"),
    ] = None
    build: Annotated[bool, Field(description="build missing TensorRT plans while opening, which takes minutes")] = False


@dataclass(frozen=True)
class Form:
    """A way to run a network, which changes its results by rounding only."""

    precision: Precision = "float32"
    threads: int = 0  #: 0: the library's own number
    batch: int = 0  #: inputs of a free batch in one call of the network, the rest one by one; 0: all

    @classmethod
    def of(cls, options: EngineOptions, max_batch: int = 1) -> Form:
        """Return the options as they are, and defaults for those that are left to measurement.

        The library's own number of threads stands only where the process may use all cores of the machine.
        """
        cores = usable_cores()
        return cls(
            precision="float32" if options.precision == "auto" else options.precision,
            threads=options.threads or (0 if cores == os.cpu_count() else cores),
            batch=options.region_batch if options.region_batch < max_batch else 0,
        )

    def __str__(self) -> str:
        threads = f"{self.threads} threads" if self.threads else "the library's threads"
        batch = f"regions in calls of {self.batch}" if self.batch else "all regions in one call"
        return f"{self.precision}, {threads}, {batch}"

    def pieces(self, batch: int) -> list[int]:
        """Return the sizes of the calls for a batch."""
        if not self.batch or not batch:
            return [batch]
        return [self.batch] * (batch // self.batch) + [1] * (batch % self.batch)


@dataclass(frozen=True)
class BuildProgress:
    """Progress of the build of one network's engine."""

    kind: EngineKind
    fraction: float  #: 0..1 of this network
    step: str  #: the library's name for the current step

    def __str__(self) -> str:
        return f"{self.kind} {self.fraction:.0%}, {self.step}"


#: Receives the progress of a build many times a second, in the thread that asked for the build. Returning False stops
#: the build, which then raises BuildStopped.
OnProgress = Callable[[BuildProgress], bool]


class BuildStopped(Exception):
    """The caller stopped the build of an engine."""


class EngineUnavailable(Exception):
    """A library cannot run a bundle on this machine.

    `cause` is the error for a user who asked for this library. `note` tells a user of "auto" why the library was
    skipped and what to do; "" if that is not worth a message.
    """

    def __init__(self, cause: Exception, note: str) -> None:
        super().__init__(str(cause))
        self.cause, self.note = cause, note


class EngineLibrary(Protocol):
    """An inference library: an entry of `LIBRARIES`."""

    def open_bundle(self, bundle: Bundle, options: EngineOptions, on_progress: OnProgress) -> dict[EngineKind, Engine]:
        """Open the three networks of a bundle, or none of them.

        Raises EngineUnavailable, and BuildStopped if `on_progress` returned False.
        """


class OnnxEngine:
    """Base of the engines that read a bundle's ONNX files as they are."""

    def __init__(self, onnx_path: str | Path, form: Form = Form()) -> None:
        """Open one network. Raises EngineUnavailable if it cannot run in this form here."""
        raise NotImplementedError

    @classmethod
    def open_bundle(cls, bundle: Bundle, options: EngineOptions, on_progress: OnProgress) -> dict[EngineKind, Engine]:
        """See `EngineLibrary`."""
        form = Form.of(options, bundle.manifest.engines.region.max_batch)
        return open_each(lambda kind: cls(bundle.path(kind), form))  # type: ignore[arg-type,return-value]


def check_precision(name: str, precision: str, offered: Sequence[str]) -> None:
    """Raise EngineUnavailable unless the library `name` offers this precision."""
    if precision not in offered:
        text = f"precision: received {precision}, but {name} offers {', '.join(offered)} here; use one of these or auto"
        raise EngineUnavailable(ValueError(text), text)


def run_in_pieces(
    arrays: Mapping[str, np.ndarray],
    sizes: Sequence[int],
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Run consecutive pieces of a batch, of these sizes, and join their outputs along the first axis."""
    if len(sizes) == 1:
        return run(arrays)
    ends = list(accumulate(sizes))
    parts = [run({n: a[end - size : end] for n, a in arrays.items()}) for size, end in zip(sizes, ends, strict=True)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def open_each(open_one: Callable[[EngineKind], Engine]) -> dict[EngineKind, Engine]:
    """Open the engine of each kind. If one fails, close those that are open and raise its error."""
    engines: dict[EngineKind, Engine] = {}
    with ExitStack() as stack:
        for kind in ENGINE_KINDS:
            engines[kind] = open_one(kind)
            stack.callback(engines[kind].close)
        stack.pop_all()
    return engines


def check_inputs(
    source: object, inputs: Mapping[str, TensorSpec], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the same arrays, each C-contiguous.

    Raises ValueError that names `source`, the arrays received and the arrays expected, unless all fit `inputs`.
    """
    if set(arrays) != set(inputs):
        raise ValueError(f"{source}: received inputs {sorted(arrays)}, expected {sorted(inputs)}")
    for name, array in arrays.items():
        spec = inputs[name]
        if array.dtype != spec.dtype or not spec.accepts_shape(array.shape):
            received = TensorSpec(array.dtype, array.shape)
            raise ValueError(f"{source}: input {name!r} received {received}, expected {spec}")
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
