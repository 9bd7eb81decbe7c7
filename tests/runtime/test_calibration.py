# SPDX-License-Identifier: Apache-2.0
"""Choices by measurement, with engines whose calls and compilations take a known time of a simulated clock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from fake_engines import FakeEngine, known_boxes, plain_maps
from tiny_bundle import tiny_manifest

from nightlab_core.runtime.bundle import ENGINE_KINDS, Bundle, EngineKind
from nightlab_core.runtime.engines import calibration, engine
from nightlab_core.runtime.engines.calibration import Choice, TunableEngine, calibrate
from nightlab_core.runtime.engines.engine import EngineOptions, Form
from nightlab_core.runtime.engines.open import Engines

FRAME_HW = (64, 96)
BUNDLE = Bundle(Path(), tiny_manifest())
Cost = Callable[[Form, int], float]  # form, batch -> seconds of a call


class SimulatedTime:
    """Seconds that pass in calls of engines only; calls at the same time take turns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now_s

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.now_s += seconds


class TimedEngine(FakeEngine):
    """A tunable engine of known costs."""

    version = "1"

    def __init__(self, kind: EngineKind, time: SimulatedTime, cost: Cost, compile_s: float = 0.0) -> None:
        super().__init__(kind, known_boxes() if kind == "hardness" else plain_maps(1, 100))
        self.form, self.precisions = Form(), ["float32", "bfloat16"]
        self._time, self._cost, self._compile_s = time, cost, compile_s
        self.compiled: list[Form] = []
        self.kept: list[Form] = []

    def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        if self.form not in self.compiled:
            self.compiled.append(self.form)
            self._time.spend(self._compile_s)
        self._time.spend(self._cost(self.form, len(next(iter(arrays.values())))))
        return super().__call__(**arrays)

    def keep_form(self) -> None:
        self.kept.append(self.form)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores, all of which may be used, and an empty cache folder, which is returned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "usable_cores", lambda: 8)
    monkeypatch.setattr(engine, "usable_cores", lambda: 8)
    monkeypatch.setattr(engine.os, "cpu_count", lambda: 8)
    return tmp_path / "nightlab" / "calibration"


def timed(time: SimulatedTime, compile_s: float = 0.0, **costs: Cost) -> dict[EngineKind, TimedEngine]:
    """Three engines; a call of one without a given cost takes 10 ms."""
    return {kind: TimedEngine(kind, time, costs.get(kind, lambda *_: 0.01), compile_s) for kind in ENGINE_KINDS}


def choose(engines: Mapping[EngineKind, TimedEngine], time: SimulatedTime, **options: object) -> Choice:
    return calibrate(engines, BUNDLE, EngineOptions(**options), FRAME_HW, time)  # type: ignore[arg-type]


def faster(value: object, field: str, seconds: float = 0.01) -> Cost:
    """A cost that is `seconds` with this value of the form's field, and twice that without."""
    return lambda form, _: seconds if getattr(form, field) == value else 2 * seconds


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("image", "precision", "bfloat16"),
        ("image", "precision", "float32"),
        ("image", "threads", 4),
        ("image", "threads", 0),
        ("region", "batch", 1),
        ("region", "batch", 4),
        ("region", "batch", 0),
    ],
)
def test_the_faster_form_is_chosen_and_set(kind: EngineKind, field: str, value: object) -> None:
    time = SimulatedTime()
    engines = timed(time, **{kind: faster(value, field)})
    choice = choose(engines, time)
    assert getattr(choice.form, field) == value
    assert all(engine.form == choice.form and engine.kept == [choice.form] for engine in engines.values())
    assert time() <= 2.0 + 3 * 0.02


def test_a_difference_within_the_noise_changes_nothing() -> None:
    time = SimulatedTime()
    engines = timed(time, image=lambda form, _: 0.0100 if form.precision == "float32" else 0.0097)
    choice = choose(engines, time)
    assert choice.form == Form() and choice.paths == "at_once"
    precision = next(c for c in choice.comparisons if c.choice == "precision")
    assert precision.times_ms == {"float32": 10.0, "bfloat16": 9.7}


def test_paths_run_in_turn_where_that_is_faster() -> None:
    time = SimulatedTime()
    running = {"image": False}

    def image(*_: object) -> float:
        running["image"] = True
        return 0.01

    main = threading.current_thread()

    def region(*_: object) -> float:  # three times as slow while another thread may run the image engine
        return 0.01 if threading.current_thread() is main else 0.03

    assert choose(timed(time, image=image, region=region), time).paths == "in_turn"
    assert running["image"]
    assert choose(timed(time, image=image), time, calibration_s=3.0).paths == "at_once"


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "float32", "threads": 3, "region_batch": 2, "paths": "in_turn"},
        {"precision": "bfloat16", "threads": 8, "region_batch": 10, "paths": "at_once"},
    ],
)
def test_options_of_the_user_are_kept_and_not_measured(options: dict[str, object]) -> None:
    time = SimulatedTime()
    engines = timed(time, image=faster("bfloat16", "precision"))
    choice = choose(engines, time, **options)
    batch = 0 if options["region_batch"] == 10 else options["region_batch"]
    assert choice.form == Form(options["precision"], options["threads"], batch)  # type: ignore[arg-type]
    assert choice.paths == options["paths"]
    assert choice.comparisons == () and time() == 0.0


def test_without_time_nothing_is_measured() -> None:
    time = SimulatedTime()
    engines = timed(time, image=faster("bfloat16", "precision"))
    choice = choose(engines, time, calibration_s=0.0)
    assert choice == Choice(form=Form(), paths="at_once") and time() == 0.0
    assert engines["image"].form == Form()


@pytest.mark.parametrize("compile_s", [0.3, 0.6, 0.9, 5.0])
@pytest.mark.parametrize("call_s", [0.01, 0.2, 3.0])
def test_measuring_keeps_to_its_time_beside_the_default_form(compile_s: float, call_s: float) -> None:
    time = SimulatedTime()
    engines = timed(time, compile_s, **dict.fromkeys(ENGINE_KINDS, lambda *_: call_s))
    choice = choose(engines, time)
    # First calls of the default: image twice, region once, and both paths once.
    necessary_s = 3 * compile_s + (2 + 1 + 3) * call_s
    assert time() <= necessary_s + 2.0
    assert choice.form == Form()
    if compile_s == 5.0:
        assert {option for c in choice.comparisons for option in c.left_out} >= {"bfloat16", "4", "1"}


def test_the_result_is_kept_and_read_again(machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    time = SimulatedTime()
    first = choose(timed(time, image=faster("bfloat16", "precision")), time)
    (file,) = machine.iterdir()
    (line,) = caplog.messages
    assert "bfloat16" in line and "precision: float32 20.0 ms, bfloat16 10.0 ms" in line and str(file) in line
    spent_s = time()
    engines = timed(time)
    assert choose(engines, time) == first and time() == spent_s
    assert all(engine.form == first.form for engine in engines.values())
    assert "measured before" in caplog.messages[1]


def test_another_library_version_or_option_is_measured_again(machine: Path) -> None:
    time = SimulatedTime()
    for number, version in enumerate("123", start=1):
        engines = timed(time)
        engines["image"].version = version  # type: ignore[misc]
        choose(engines, time)
        assert len(list(machine.iterdir())) == number
    choose(timed(time), time, threads=2)
    assert len(list(machine.iterdir())) == 4


@pytest.mark.parametrize("content", ["", "{}", '{"form": null}', '{"paths": "sideways"}'])
def test_a_damaged_file_is_measured_again_and_replaced(
    machine: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    time = SimulatedTime()
    first = choose(timed(time), time)
    (file,) = machine.iterdir()
    file.write_text(content)
    assert choose(timed(time), time) == first
    assert "measured again" in caplog.text
    assert Choice.model_validate_json(file.read_text()) == first


def test_a_cache_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    time = SimulatedTime()
    for _ in range(2):
        assert choose(timed(time, image=faster("bfloat16", "precision")), time).form == Form("bfloat16")
    assert sum("measured at each start" in message for message in caplog.messages) == 2


def test_a_user_without_a_home_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    time = SimulatedTime()
    choose(timed(time), time)
    assert "measured at each start: Could not determine home directory." in caplog.text


def test_engines_without_forms_have_only_their_paths_measured() -> None:
    engines = {
        kind: FakeEngine(kind, known_boxes() if kind == "hardness" else plain_maps(1, 1)) for kind in ENGINE_KINDS
    }
    assert not isinstance(engines["image"], TunableEngine)
    choice = calibrate(engines, BUNDLE, EngineOptions(), FRAME_HW, SimulatedTime())  # type: ignore[arg-type]
    assert choice.form is None and [c.choice for c in choice.comparisons] == ["paths"]
    assert str(choice) == "both paths at once"


def test_threads_follow_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "usable_cores", lambda: 3)
    assert Form.of(EngineOptions()).threads == 3
    assert Form.of(EngineOptions(threads=5)).threads == 5
    monkeypatch.setattr(engine, "usable_cores", lambda: 8)
    assert Form.of(EngineOptions()).threads == 0  # the library's own number


@pytest.mark.parametrize(
    ("size", "batch", "pieces"),
    [(0, 7, [7]), (1, 3, [1, 1, 1]), (4, 4, [4]), (4, 10, [4, 4, 1, 1]), (4, 3, [1, 1, 1]), (2, 0, [0])],
)
def test_a_batch_is_read_in_pieces(size: int, batch: int, pieces: list[int]) -> None:
    assert Form(batch=size).pieces(batch) == pieces


class TestEngines:
    """What `Engines` does with a choice."""

    def engines(self, **options: object) -> tuple[Engines, dict[EngineKind, TimedEngine]]:
        by_kind = timed(SimulatedTime())
        return Engines(BUNDLE, **by_kind, options=EngineOptions(**options)), by_kind  # type: ignore[arg-type]

    def test_the_choice_is_made_once_for_all_sizes_and_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        choice = Choice(form=Form("bfloat16"), paths="in_turn")
        monkeypatch.setattr(
            "nightlab_core.runtime.engines.open.calibrate", lambda *arguments: made.append(arguments[-1]) or choice
        )
        engines, _ = self.engines()
        assert engines.choice == Choice(form=Form(), paths="at_once")
        for frame_hw in ((64, 96), (96, 96), (64, 96)):
            engines.prepare(frame_hw)
        assert made == [(64, 96)] and engines.choice == choice

    def test_sizes_that_alternate_are_prepared_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        engines, by_kind = self.engines(calibration_s=0.0)
        sizes_hw = [(64, 96), (96, 64), (128, 128)]
        for frame_hw in sizes_hw * 3:
            engines.prepare(frame_hw)
        assert len(by_kind["image"].prepared) == len(by_kind["hardness"].prepared) == 3
        assert [m for m in caplog.messages if m.startswith("preparing")] == [
            f"preparing the engines for frames of {w}x{h}" for h, w in sizes_hw
        ]
