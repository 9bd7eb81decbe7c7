# SPDX-License-Identifier: Apache-2.0
"""Choose by measurement how engines run on this machine. Start at `calibrate`.

It knows no inference library: it times calls of engines that offer several forms (see `TunableEngine`). A clock bounds
it, and its result is kept in the user's cache folder, by machine, library and bundle.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from nightlab_core.config import Settings
from nightlab_core.files import user_cache_folder, write_atomic
from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind
from nightlab_core.runtime.engines.engine import Engine, EngineOptions, Form, Paths, Precision
from nightlab_core.runtime.hardware import cpu_model, usable_cores

log = logging.getLogger(__name__)

Option = TypeVar("Option")
#: Another form is chosen only if its time is below this share of the default's: less is noise.
WORTHWHILE = 0.95
#: Calls of each form. The fastest counts, since other work on the machine only slows calls down.
ROUNDS = 3
#: Regions of a frame, of which the calls of the region engine are compared.
REGIONS = 4
#: Sizes of static batches of the region network that are compared with one call of any size.
REGION_BATCHES = (1, REGIONS)
CACHE_FORMAT = 1


@runtime_checkable
class TunableEngine(Protocol):
    """An engine that runs its network in several forms, whose results differ by rounding only."""

    form: Form  #: assign another one to run so from the next call on
    precisions: Sequence[Precision]  #: that the library offers here for `EngineOptions.precision`; the default is first
    version: str  #: of the library

    def keep_form(self) -> None:
        """Free everything that was compiled for other forms."""


class Comparison(Settings):
    """Milliseconds of the options of one choice."""

    choice: str
    times_ms: dict[str, float]  #: by option, the default first
    left_out: tuple[str, ...] = ()  #: options for which no time was left

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.times_ms.items())
        late = f"no time for {', '.join(self.left_out)}" if self.left_out else ""
        return f"{self.choice}: " + ", ".join(filter(None, (times, late)))


class Choice(Settings):
    """How the engines of a bundle run."""

    form: Form | None  #: None: the engines have one form only
    paths: Paths
    comparisons: tuple[Comparison, ...] = ()  #: that led to it

    def __str__(self) -> str:
        paths = "both paths at once" if self.paths == "at_once" else "the lower path after the image level"
        return f"{self.form}, {paths}" if self.form else paths


def default_choice(engines: Mapping[EngineKind, Engine], bundle: Bundle, options: EngineOptions) -> Choice:
    """Return the choice without measurement: the options, and defaults for those that are open."""
    paths: Paths = "at_once" if options.paths == "auto" else options.paths
    form = Form.of(options, bundle.manifest.engines.region.max_batch)
    return Choice(form=form if isinstance(engines["image"], TunableEngine) else None, paths=paths)


def calibrate(
    engines: Mapping[EngineKind, Engine],
    bundle: Bundle,
    options: EngineOptions,
    frame_hw: tuple[int, int],
    clock: Callable[[], float] = perf_counter,
) -> Choice:
    """Choose how the engines run, put them into that form, and log it in one line.

    An option that the user gave is not measured. Measuring takes at most `options.calibration_s`, beside preparing the
    default, which is necessary anyway. The result is read from the cache if it was measured before.
    """
    default = default_choice(engines, bundle, options)
    if not options.calibration_s:
        _assign(engines, default.form)
        return default
    path, problem = _cache_file(engines, bundle, options, frame_hw)
    choice = _read(path) if path else None
    if choice:
        _assign(engines, choice.form)
        log.info("calibration: %s; measured before, see %s", choice, path)
        return choice
    choice = _Calibrator(engines, bundle, options, frame_hw, clock).choose(default)
    for engine in engines.values():
        if isinstance(engine, TunableEngine):
            engine.keep_form()
    problem = _write(path, choice) if path else problem
    kept = f"kept in {path}" if not problem else f"not kept, so that it is measured at each start: {problem}"
    log.info("calibration: %s; %s; %s", choice, "; ".join(map(str, choice.comparisons)) or "no options", kept)
    return choice


class _Calibrator:
    """Compare the options of each choice in turn, each with what was chosen before."""

    def __init__(
        self,
        engines: Mapping[EngineKind, Engine],
        bundle: Bundle,
        options: EngineOptions,
        frame_hw: tuple[int, int],
        clock: Callable[[], float],
    ) -> None:
        self._engines, self._options, self._clock = engines, options, clock
        files = bundle.manifest.engines
        random = np.random.default_rng(0)
        regions = min(REGIONS, files.region.max_batch)
        shapes: dict[EngineKind, dict[str, tuple[int, ...]]] = {
            "image": {"frame": (1, *files.image.network_hw(frame_hw), 3)},
            "hardness": {"frame": (1, *files.hardness.network_hw(frame_hw), 3)},
            "region": files.region.input_shapes(regions, files.region.input_hw, len(bundle.class_set)),
        }
        self._arrays = {
            kind: {name: random.integers(0, 256, shape, np.uint8) for name, shape in inputs.items()}
            for kind, inputs in shapes.items()
        }
        self._max_batch = files.region.max_batch
        self._end_s = clock() + options.calibration_s
        self._prepare_s: dict[str, float] = {}  # by what a first call prepares: the longest one of a default
        self._comparisons: list[Comparison] = []

    def choose(self, default: Choice) -> Choice:
        """Return the choice after all comparisons. The engines are left in its form."""
        form, paths = default.form, default.paths
        if form:
            form = self._best_form(form)
        if self._options.paths == "auto":
            paths = self._best_paths()
        return Choice(form=form, paths=paths, comparisons=tuple(self._comparisons))

    def _best_form(self, form: Form) -> Form:
        image, options = self._engines["image"], self._options
        assert isinstance(image, TunableEngine)
        _assign(self._engines, form)
        if options.precision == "auto":
            precisions = {str(name): replace(form, precision=name) for name in image.precisions}
            form = self._fastest("precision", "image", precisions)
        cores = form.threads or usable_cores()
        if not options.threads and cores >= 4:
            threads = {str(n): replace(form, threads=n) for n in (form.threads, cores // 2)}
            form = self._fastest("threads", "image", threads)
        if not options.region_batch:
            sizes = (0, *(n for n in REGION_BATCHES if n < self._max_batch))
            form = self._fastest("region batch", "region", {str(n or "all"): replace(form, batch=n) for n in sizes})
        return form

    def _fastest(self, name: str, kind: EngineKind, forms: Mapping[str, Form]) -> Form:
        """Compare forms by calls of one engine. Leave the engines in the best, and return it."""

        def call(form: Form) -> None:
            _assign(self._engines, form)
            self._call(kind)

        best = forms[self._compare(name, kind, {option: partial(call, form) for option, form in forms.items()})]
        _assign(self._engines, best)
        return best

    def _best_paths(self) -> Paths:
        def lower_path() -> None:
            self._call("hardness")
            self._call("region")

        def at_once() -> None:
            ended = pool.submit(lower_path)
            self._call("image")
            ended.result()

        def in_turn() -> None:
            self._call("image")
            lower_path()

        calls: dict[Paths, Callable[[], None]] = {"at_once": at_once, "in_turn": in_turn}
        with ThreadPoolExecutor(1) as pool:
            return self._compare("paths", "paths", calls)

    def _call(self, kind: EngineKind) -> None:
        self._engines[kind](**self._arrays[kind])

    def _compare(self, name: str, prepared: str, calls: Mapping[Option, Callable[[], object]]) -> Option:
        """Time the calls in turns, in the time that is left. Note the figures, and return the best option.

        The first option is the default. It stays unless another one is clearly faster. `prepared` names what the first
        call of an option compiles.
        """
        default, *others = calls
        if not others:
            return default
        start_s = self._clock()
        calls[default]()
        first_s = self._clock() - start_s
        self._end_s += first_s  # the default is prepared in any case
        self._prepare_s[prepared] = max(first_s, self._prepare_s.get(prepared, 0.0))
        kept, left_out = {default: calls[default]}, []
        for option in others:
            # One round of timing follows, which must fit as well.
            if self._left_s() < self._prepare_s[prepared] + first_s * (len(kept) + 1):
                left_out.append(str(option))
                continue
            calls[option]()
            kept[option] = calls[option]
        best_s = self._time(kept)
        times_ms = {str(option): round(1e3 * seconds, 2) for option, seconds in best_s.items()}
        self._comparisons.append(Comparison(choice=name, times_ms=times_ms, left_out=tuple(left_out)))
        best = min(best_s, key=best_s.__getitem__, default=default)
        is_faster = best != default and best_s[best] < WORTHWHILE * best_s[default]
        return best if is_faster else default

    def _time(self, calls: Mapping[Option, Callable[[], object]]) -> dict[Option, float]:
        """Return the seconds of the fastest call of each; nothing for one alone or without time."""
        best_s: dict[Option, float] = {}
        round_s = 0.0
        for _ in range(ROUNDS if len(calls) > 1 else 0):
            if self._left_s() < round_s:
                break
            begin_s = self._clock()
            for option, call in calls.items():
                start_s = self._clock()
                call()
                best_s[option] = min(self._clock() - start_s, best_s.get(option, math.inf))
            round_s = self._clock() - begin_s
        return best_s

    def _left_s(self) -> float:
        return self._end_s - self._clock()


def _assign(engines: Mapping[EngineKind, Engine], form: Form | None) -> None:
    for engine in engines.values():
        if form and isinstance(engine, TunableEngine):
            engine.form = form


def _cache_file(
    engines: Mapping[EngineKind, Engine], bundle: Bundle, options: EngineOptions, frame_hw: tuple[int, int]
) -> tuple[Path | None, str]:
    """Return the file of this machine, library, bundle and these options; or None and the reason."""
    image, files = engines["image"], bundle.manifest.engines
    key = (
        CACHE_FORMAT, cpu_model(), usable_cores(), image.name, getattr(image, "version", ""),
        [getattr(files, kind).sha256 for kind in ENGINE_KINDS], files.image.network_hw(frame_hw),
        options.model_dump(exclude={"engine", "frame_hw", "build"}),
    )  # fmt: skip
    try:
        folder = user_cache_folder() / "calibration"
    except RuntimeError as error:
        return None, str(error)
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json", ""


def _read(path: Path) -> Choice | None:
    """Return the choice in a file; None if there is none or it cannot be used, so that it is measured again."""
    try:
        return Choice.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("calibration: %s cannot be used, so it is measured again: %s", path, str(error).splitlines()[0])
        return None


def _write(path: Path, choice: Choice) -> str:
    """Write the choice. Return "", or why that failed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, choice.model_dump_json(indent=2) + "\n")
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return ""
