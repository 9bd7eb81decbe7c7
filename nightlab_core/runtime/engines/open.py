# SPDX-License-Identifier: Apache-2.0
"""Open the three networks of a bundle on one inference library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, load_bundle
from nightlab_core.runtime.engines.contract import check_contract
from nightlab_core.runtime.engines.engine import (
    LIBRARIES,
    Engine,
    EngineChoice,
    EngineLibrary,
    EngineOptions,
    EngineUnavailable,
    OnnxEngine,
    OnProgress,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Engines:
    """The three engines of a bundle, on one library. Several pipelines may share them: open once, close once.

    Raises BundleError if an engine breaks the contract; the caller then still owns the engines.
    """

    bundle: Bundle
    image: Engine
    hardness: Engine
    region: Engine
    options: EngineOptions = field(default_factory=EngineOptions)
    note: str = ""  #: why a faster library was skipped and what to do about it, or ""

    def __post_init__(self) -> None:
        for kind in ENGINE_KINDS:
            check_contract(kind, getattr(self, kind))

    @classmethod
    def open(
        cls,
        bundle: Bundle | str | Path,
        options: EngineOptions = EngineOptions(),  # noqa: B008 - frozen
        *,
        on_progress: OnProgress = lambda progress: True,
    ) -> Engines:
        """Open the networks of a bundle, or of the bundle in a folder.

        Engine "auto" takes the first library of `LIBRARIES` that can run here: TensorRT if there are a GPU and plans
        that fit (or `options.build` lets them be built), then OpenVINO, then ONNX Runtime. `note` tells why TensorRT
        was skipped. `on_progress` receives the progress of a build.

        Raises BundleError for a bundle that cannot be used, ImportError that names the package to install, and
        BuildStopped. An engine that was asked for by name raises its own errors: TensorRT PlanError, TensorRtError and
        CudaError.
        """
        bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        notes = []
        for name, library in _libraries(options.engine):
            try:
                engines = library.open_bundle(bundle, options, on_progress)
            except EngineUnavailable as error:
                if options.engine == name:
                    raise error.cause from error.cause.__cause__
                notes.append(error.note)
            else:
                break
        log.info("bundle %s runs on %s", bundle.manifest.name, engines["image"].name)
        try:
            note = "\n".join(note for note in notes if note)
            return cls(bundle, engines["image"], engines["hardness"], engines["region"], options, note)
        except BaseException:
            for engine in engines.values():
                engine.close()
            raise

    @property
    def name(self) -> str:
        """The inference library, for example "openvino"."""
        return self.image.name

    @property
    def region_sizes_hw(self) -> tuple[tuple[int, int], ...]:
        """The bundle's sizes of a crop that the region engine takes, in ascending order: a plan has one size only."""
        wanted = self.bundle.manifest.engines.region
        height, width = self.region.inputs["crops"].shape[1:3]  # None: free
        taken = (hw for hw in wanted.sizes_hw if hw == (height or hw[0], width or hw[1]))
        return tuple(taken) or (wanted.input_hw,)

    def prepare(self, frame_hw: tuple[int, int]) -> None:
        """Compile and warm up for frames of this size (height, width) and for every number of regions."""
        files = self.bundle.manifest.engines
        self.image.prepare(frame=(1, *files.image.network_hw(frame_hw), 3))
        self.hardness.prepare(frame=(1, *files.hardness.network_hw(frame_hw), 3))
        for size_hw in self.region_sizes_hw:
            for batch in range(1, files.region.max_batch + 1):
                self.region.prepare(crops=(batch, *size_hw, 3))

    def close(self) -> None:
        """Free the three engines. Closing twice is harmless."""
        for kind in ENGINE_KINDS:
            getattr(self, kind).close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_network(onnx_path: str | Path, options: EngineOptions = EngineOptions()) -> Engine:  # noqa: B008 - frozen
    """Open one ONNX file on a library that reads ONNX files: "auto" is OpenVINO, or ONNX Runtime if that is missing.

    Raises ValueError for a library that reads no ONNX files, ImportError that names the package to install.
    """
    for name, library in _libraries(options.engine):
        if isinstance(library, type) and issubclass(library, OnnxEngine):
            return library(onnx_path, precision=options.precision, threads=options.threads)  # type: ignore[return-value]
        if options.engine == name:
            break
    raise ValueError(f"engine {options.engine!r} opens bundles, not single ONNX files; use another engine")


def _libraries(engine: EngineChoice) -> Iterator[tuple[str, EngineLibrary]]:
    """Yield the libraries to try, with their names, and raise ImportError after the last: none of them could be used.

    A library is imported when its turn comes, so that one installed library is enough.
    """
    missing = []
    for name in LIBRARIES if engine == "auto" else (engine,):
        try:
            library = resolve_name(LIBRARIES[name])
        except ModuleNotFoundError as error:
            package = (error.name or "").split(".")[0]
            if package in ("", "nightlab_core"):
                raise
            missing.append(package)
        else:
            yield name, library
    first, *others = missing or ["openvino"]
    packages = f"{first} (or {', '.join(others)})" if others else first
    raise ImportError(f"engine {engine!r} needs a package that is missing: pip install {packages}")
