# SPDX-License-Identifier: Apache-2.0
"""Open the three networks of a bundle on one inference library."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind, load_bundle
from nightlab_core.runtime.engines.calibration import Choice, calibrate, default_choice
from nightlab_core.runtime.engines.contract import check_contract
from nightlab_core.runtime.engines.engine import (
    KEPT_SIZES,
    LIBRARIES,
    Engine,
    EngineChoice,
    EngineLibrary,
    EngineOptions,
    EngineUnavailable,
    Form,
    OnnxEngine,
    OnProgress,
)

log = logging.getLogger(__name__)


class PreparedSizes:
    """The frame sizes for which some engines are prepared."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  #: several cameras may prepare at the same time
        self._sizes_hw: list[tuple[int, int]] = []

    def is_recent(self, frame_hw: tuple[int, int]) -> bool:
        """Return True if engines still hold what was compiled for frames of this size."""
        if frame_hw not in self._sizes_hw:
            return False
        self.add(frame_hw)
        return True

    def add(self, frame_hw: tuple[int, int]) -> None:
        """Note that engines are prepared for frames of this size, which is now the latest."""
        self._sizes_hw = [*(size for size in self._sizes_hw if size != frame_hw), frame_hw][-KEPT_SIZES:]


class Preparation:
    """How engines run, and the frame sizes for which they are prepared: the image level does not wait for the rest."""

    def __init__(self) -> None:
        self.choice: Choice | None = None  #: None until there are engines
        self.is_calibrated = False  #: True as soon as a size was prepared
        self.image, self.lower_path = PreparedSizes(), PreparedSizes()


@dataclass(frozen=True, eq=False)
class Engines:
    """The three engines of a bundle, on one library. Several pipelines may share them: open once, close once.

    Raises BundleError if an engine breaks the contract; the caller then still owns the engines.
    """

    bundle: Bundle
    image: Engine
    hardness: Engine
    region: Engine
    options: EngineOptions = EngineOptions(calibration_s=0.0)  # noqa: RUF009 - frozen
    note: str = ""  #: why a faster library was skipped and what to do about it, or ""
    preparation: Preparation = field(default_factory=Preparation)  #: copies of this object share it

    def __post_init__(self) -> None:
        for kind in ENGINE_KINDS:
            check_contract(kind, getattr(self, kind), context=self.bundle.manifest.engines.region.context)
        if self.preparation.choice is None:
            self.preparation.choice = default_choice(self.by_kind, self.bundle, self.options)

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
        engines, notes = _first_available(bundle, options, on_progress)
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
        """The bundle's sizes of a crop that the region engine takes, in ascending order."""
        wanted = self.bundle.manifest.engines.region
        height, width = self.region.inputs["crops"].shape[1:3]  # None: free
        taken = (hw for hw in wanted.sizes_hw if hw == (height or hw[0], width or hw[1]))
        return tuple(taken) or (wanted.input_hw,)

    @property
    def choice(self) -> Choice:
        """How the engines run: until the first `prepare`, as the options say, with defaults for those that are open."""
        assert self.preparation.choice is not None
        return self.preparation.choice

    @property
    def by_kind(self) -> dict[EngineKind, Engine]:
        """The three engines by their kind."""
        return {kind: getattr(self, kind) for kind in ENGINE_KINDS}

    def is_prepared(self, frame_hw: tuple[int, int]) -> bool:
        """Return True if the image engine is prepared for this size, which is among the last few."""
        self.preparation.lower_path.is_recent(frame_hw)  # which keeps the same sizes
        return self.preparation.image.is_recent(frame_hw)

    def prepare(self, frame_hw: tuple[int, int]) -> None:
        """Compile and warm up for frames of this size (height, width) and for every number of regions.

        The first call chooses by measurement how the engines run, see `calibrate`.
        """
        self.prepare_lower_path(frame_hw)
        self.prepare_image(frame_hw)

    def prepare_image(self, frame_hw: tuple[int, int]) -> None:
        """Compile and warm up the image engine for frames of this size."""
        with self.preparation.image.lock:
            if not self.preparation.image.is_recent(frame_hw):
                self.preparation.image.add(frame_hw)  # also if it fails: a call of the engine will fail again
                self.image.prepare(frame=(1, *self.bundle.manifest.engines.image.network_hw(frame_hw), 3))

    def prepare_lower_path(self, frame_hw: tuple[int, int]) -> None:
        """Compile and warm up the hardness and region engines. The first call chooses how all engines run."""
        with self.preparation.lower_path.lock:
            if self.preparation.lower_path.is_recent(frame_hw):
                return
            log.info("preparing the engines for frames of %dx%d", *frame_hw[::-1])
            self.preparation.lower_path.add(frame_hw)
            if not self.preparation.is_calibrated:
                self.preparation.is_calibrated = True
                self.preparation.choice = calibrate(self.by_kind, self.bundle, self.options, frame_hw)
            files = self.bundle.manifest.engines
            self.hardness.prepare(frame=(1, *files.hardness.network_hw(frame_hw), 3))
            for size_hw in self.region_sizes_hw:
                for batch in range(1, files.region.max_batch + 1):
                    self.region.prepare(**files.region.input_shapes(batch, size_hw, len(self.bundle.class_set)))

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

    Raises ValueError for a library that reads no ONNX files or does not offer the precision, ImportError that names the
    package to install.
    """
    for name, library in _libraries(options.engine):
        if isinstance(library, type) and issubclass(library, OnnxEngine):
            try:
                return library(onnx_path, Form.of(options))  # type: ignore[return-value]
            except EngineUnavailable as error:
                raise error.cause from None
        if options.engine == name:
            break
    raise ValueError(f"engine {options.engine!r} opens bundles, not single ONNX files; use another engine")


def _first_available(
    bundle: Bundle, options: EngineOptions, on_progress: OnProgress
) -> tuple[dict[EngineKind, Engine], list[str]]:
    """Open a bundle on the first library that can run it. Return its engines and the notes of those before it.

    Raises ImportError if a library is missing and no other one can run it, else the cause of the last one.
    """
    notes: list[str] = []
    cause: Exception | None = None
    try:
        for _, library in _libraries(options.engine):
            try:
                return library.open_bundle(bundle, options, on_progress), notes
            except EngineUnavailable as error:
                cause = error.cause
                notes.append(error.note)
    except ImportError as error:
        raise ImportError("\n".join(filter(None, (*notes, str(error))))) from error
    assert cause is not None  # every library was tried
    raise cause from cause.__cause__


def _libraries(engine: EngineChoice) -> Iterator[tuple[str, EngineLibrary]]:
    """Yield the libraries to try, with their names. Raise ImportError after the last if one is missing.

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
    if not missing:
        return
    first, *others = missing
    packages = f"{first} (or {', '.join(others)})" if others else first
    raise ImportError(f"engine {engine!r} needs a package that is missing: pip install {packages}")
