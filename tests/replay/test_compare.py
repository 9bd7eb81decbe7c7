# SPDX-License-Identifier: Apache-2.0
"""Two bundles on the same frames: refused runs, sentences, and gates for CI."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from browser import headless_browser
from command import nightlab
from replay_samples import sample_run, write_sample

from nightlab_core.metrics import mean_iou
from nightlab_core.output import OutputError
from nightlab_replay.figures.comparison import Comparison, classes_with, compare
from nightlab_replay.figures.gates import gates_of
from nightlab_replay.pairing import CompareError, pair_runs
from nightlab_replay.records import FrameCounts, RunData
from nightlab_replay.report.compare import write_comparison

FOLDERS = ("a", "b")


@lru_cache
def drive(seed: int = 0, skill: float = 0.0, dark: float = 0.0, frames: int = 120, slower: float = 1.0) -> RunData:
    """Invent a drive at 1 Hz, slow enough that every light level has several blocks."""
    return sample_run(
        frames, seed=seed, name=f"night-{seed}", skill=skill, skill_in_the_dark=dark, hz=1, slower=slower, lost=False
    )


@lru_cache
def compared(first: tuple[float, ...], second: tuple[float, ...]) -> Comparison:
    """Compare two drives, given by their arguments, without gates."""
    return compare(pair_runs(drive(*first), drive(*second)), FOLDERS)  # type: ignore[arg-type]


def unlabelled(data: RunData) -> RunData:
    records = [replace(r, labelled=False) for r in data.records]
    return replace(data, records=records, counts=FrameCounts.empty(19))


def with_run(data: RunData, **changes: object) -> RunData:
    return replace(data, run=data.run.model_copy(update=changes))


def test_a_run_is_no_better_than_itself() -> None:
    found = compare(pair_runs(drive(), drive()), FOLDERS, no_worse_than=0)
    assert found.accuracy is not None and found.accuracy.gain is not None
    assert (found.accuracy.gain.difference, found.accuracy.gain.low_95, found.accuracy.gain.high_95) == (0, 0, 0)
    assert found.verdict == "no difference shown" and found.passed
    assert found.sentences[0].startswith("No significant difference between A and B")
    assert "None of the 9 compared classes changed significantly." in found.sentences
    assert found.different_settings == {} and found.left_out == {}


def test_an_improvement_in_the_dark_is_reported_with_its_numbers() -> None:
    first, second = drive(), drive(1, dark=0.03)
    found = compared((), (1, 0.0, 0.03))
    accuracy = found.accuracy
    assert accuracy is not None and accuracy.dark.gain is not None
    assert found.verdict == "better" and accuracy.dark.gain.verdict == "better"
    totals = [mean_iou(d.counts.confusion[:, 1].sum(axis=(0, 1))) for d in (first, second)]
    assert accuracy.miou == tuple(totals)
    assert accuracy.dark.gain.difference > accuracy.gain.difference if accuracy.gain else False
    assert found.sentences[1].startswith("In the dark: better, +")
    assert accuracy.by_light[-1].gain is not None and accuracy.by_light[-1].gain.verdict != "better"


def test_worse_in_the_dark_is_not_hidden_by_a_better_day() -> None:
    found = compare(pair_runs(drive(), drive(1, skill=0.2, dark=-0.22)), FOLDERS, no_worse_than=0.5)
    assert found.verdict == "better"
    assert found.sentences[1].startswith("But in the dark: worse, −")
    (gate,) = found.gates
    assert not gate.passed and "in the dark" in gate.reason


def test_swapping_the_runs_reverses_the_verdict() -> None:
    there, back = compared((), (1, 0.0, 0.03)), compared((1, 0.0, 0.03), ())
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert there.accuracy is not None and back.accuracy is not None
    assert there.accuracy.gain is not None and back.accuracy.gain is not None
    assert there.accuracy.gain.low_95 == pytest.approx(-back.accuracy.gain.high_95, abs=2e-3)
    assert {c.name for c in classes_with("better", there.accuracy)} == {
        c.name for c in classes_with("worse", back.accuracy)
    }
    assert classes_with("better", there.accuracy) and not classes_with("worse", there.accuracy)


def test_a_class_that_regresses_is_named() -> None:
    first = drive()
    confusion = first.counts.confusion.copy()
    lost = confusion[:, 1, :, 5, 5] // 2  # half of the poles are predicted as building
    confusion[:, 1, :, 5, 5] -= lost
    confusion[:, 1, :, 5, 2] += lost
    second = replace(first, counts=replace(first.counts, confusion=confusion))
    found = compare(pair_runs(first, second), FOLDERS)
    assert [c.name for c in classes_with("worse", found.accuracy)] == ["pole", "building"]
    assert any(s.startswith("Regressed: pole −") for s in found.sentences)


def test_few_frames_show_nothing_and_pass_no_gate() -> None:
    found = compare(pair_runs(drive(frames=5), drive(1, skill=0.2, frames=5)), FOLDERS, no_worse_than=1)
    assert found.verdict == "too few frames"
    assert found.sentences[0].startswith("Too few frames to tell whether B is better")
    assert not found.passed and "too few frames" in found.gates[0].reason


def test_only_common_frames_are_compared_and_the_others_are_counted() -> None:
    first = drive(frames=60)
    second = drive(1, frames=60)
    dropped = second.records[:45]
    dropped[7] = replace(dropped[7], status="dropped", labelled=False, stages_ms={})
    rows = np.delete(np.arange(45), 7)
    fewer = RunData(
        second.run, dropped, FrameCounts(*(getattr(second.counts, k)[rows] for k in FrameCounts.__dataclass_fields__))
    )
    found = compare(pair_runs(first, fewer), FOLDERS)
    assert found.left_out == {"segmented by only A": 1, "only in A": 15}
    assert found.pairs == found.labelled_pairs == 44
    assert found.sentences[-1] == "44 frames are compared, 16 are left out: 1 segmented by only A, 15 only in A."
    expected = mean_iou(np.delete(first.counts.confusion[:45, 1], 7, axis=0).sum(axis=(0, 1)))
    assert found.accuracy is not None and found.accuracy.miou[0] == expected


def test_bags_are_matched_by_their_files_not_their_names() -> None:
    run = drive().run
    renamed = run.bags[0].model_copy(update={"name": "copy.mcap"})
    second = with_run(drive(), bags=(renamed,))
    second = replace(second, records=[replace(r, bag="copy.mcap") for r in second.records])
    assert len(pair_runs(drive(), second).records) == 120


def test_a_bag_is_matched_only_once() -> None:
    """Two copies of one recording are two bags; frames would be counted twice otherwise."""
    bag = drive().run.bags[0]
    copy = bag.model_copy(update={"name": "copy.mcap"})
    both = with_run(drive(), bags=(bag, copy))
    copied = [replace(r, bag="copy.mcap") for r in drive().records]
    second = replace(both, records=[*drive().records, *copied], counts=twice(drive().counts))
    pairs = pair_runs(drive(), second)
    assert len(pairs.records) == 120 and pairs.left_out == {"only in B": 120}


def twice(counts: FrameCounts) -> FrameCounts:
    return FrameCounts.concatenate([counts, counts], counts.confusion.shape[3])


def refused(first: RunData, second: RunData) -> str:
    with pytest.raises(CompareError) as error:
        pair_runs(first, second)
    return str(error.value)


def test_runs_that_do_not_belong_together_are_refused() -> None:
    first = drive()
    bag = first.run.bags[0]
    other_file = bag.model_copy(update={"sha256": {"evening.mcap": "99" * 32}})
    assert "no bag is in both runs" in refused(first, with_run(first, bags=(other_file,)))
    other_topic = bag.model_copy(update={"image_topic": "/rear/image_raw"})
    assert "/rear/image_raw" in refused(first, with_run(first, bags=(other_topic,)))
    settings = first.run.settings.model_copy(update={"classes": "camvid11", "class_names": ("sky", "road")})
    assert "19 classes (cityscapes19), B has 2 (camvid11)" in refused(first, with_run(first, settings=settings))
    unhashed = with_run(first, bags=(bag.model_copy(update={"sha256": {}}),))
    later = replace(unhashed, records=[replace(r, time_ns=r.time_ns + 1) for r in first.records])
    assert "so the bags differ" in refused(first, later)
    confusion = first.counts.confusion.copy()
    confusion[3, :, 0, 0, 0] += 1
    assert "the labels differ between A and B in 1 of 120 frames, the first is frame 3" in refused(
        first, replace(first, counts=replace(first.counts, confusion=confusion))
    )
    lost = [replace(r, status="dropped", labelled=False) for r in first.records]
    assert "no frame was segmented in both" in refused(
        first, replace(first, records=lost, counts=FrameCounts.empty(19))
    )


def test_times_are_compared_only_under_equal_conditions() -> None:
    first, slower = unlabelled(drive()), unlabelled(drive(1, slower=1.3))
    found = compare(pair_runs(first, slower), FOLDERS)
    assert found.latency_note == "" and any(s.startswith("B is slower: +") for s in found.sentences)
    assert found.stages_ms["total"].change.difference > 0
    elsewhere = with_run(slower, machine={"cpu": "a faster one"})
    found = compare(pair_runs(first, elsewhere), FOLDERS)
    assert found.latency_note == "A and B ran on different machines"
    assert not any(s.startswith("B is slower") for s in found.sentences)
    assert found.different_settings["machine.cpu"] == ("an ordinary one", "a faster one")
    cluster = compare(pair_runs(first, with_run(slower, workers=-1)), FOLDERS)
    assert cluster.latency_note == "A and B were replayed in different modes"
    settings = slower.run.settings.model_copy(update={"precision": "float32", "threads": 1, "rate": 2.0})
    found = compare(pair_runs(first, with_run(slower, settings=settings)), FOLDERS)
    assert found.latency_note == "A and B were replayed with different settings (precision, threads, rate)"


def test_accuracy_is_not_compared_without_labels() -> None:
    first, second = (sample_run(40, seed=s, labelled=False) for s in (0, 1))
    found = compare(pair_runs(first, second), FOLDERS, fail_below=10, no_worse_than=1)
    assert found.verdict == "no labels" and found.accuracy is None
    assert set(found.behaviour) == {"confidence", "agreement", "flicker"}
    assert [gate.passed for gate in found.gates] == [False, False]


@pytest.mark.parametrize(
    ("fail_below", "no_worse_than", "passed"),
    [
        (None, None, []),
        (40, None, [True]),
        (99.5, None, [False]),
        (None, 5, [True]),
        (None, 0.1, [False]),
        (40, 0.1, [True, False]),
    ],
)
def test_gates(fail_below: float | None, no_worse_than: float | None, passed: list[bool]) -> None:
    accuracy = compared((), (1, -0.01)).accuracy
    assert [gate.passed for gate in gates_of(accuracy, fail_below, no_worse_than)] == passed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two small runs; the second is worse."""
    folder = tmp_path_factory.mktemp("compare")
    runs = (sample_run(40, hz=0.5, lost=False), sample_run(40, seed=1, skill=-0.05, hz=0.5, lost=False))
    return write_sample(folder / "a", runs[0]), write_sample(folder / "b", runs[1])


@pytest.mark.parametrize(
    ("flags", "status"), [([], 0), (["--fail-below", 40], 0), (["--fail-below", 40, "--no-worse-than", 0.1], 1)]
)
def test_the_command_prints_the_verdict_and_fails_with_a_gate(
    folders: tuple[Path, Path], tmp_path: Path, flags: list[object], status: int
) -> None:
    done = nightlab("compare", *folders, "--no-pictures", "--out", tmp_path, *flags)
    assert done.status == status, done.err
    assert "B is worse than A: −" in done.out and done.out.count("failed --") == status
    comparison = Comparison.model_validate_json((tmp_path / "compare.json").read_bytes())
    assert comparison.format == 1 and comparison.passed == (status == 0)
    json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["compare.json", "compare.html"])
def test_a_file_of_the_user_is_kept(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        write_comparison(*folders, tmp_path, pictures=False)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


def test_runs_that_cannot_be_compared_have_their_own_exit_status(folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = nightlab("compare", folders[0], tmp_path / "none")
    assert done.status == 2 and "holds no run.json" in done.err
    data = sample_run(6)
    bag = data.run.bags[0].model_copy(update={"sha256": {"evening.mcap": "99" * 32}})
    done = nightlab("compare", folders[0], write_sample(tmp_path / "other", with_run(data, bags=(bag,))))
    assert done.status == 2
    assert "no bag is in both runs: A has evening.mcap (000000000000), B has evening.mcap" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fail-below", 0.45], "expected percent"),
        (["--fail-below", "many"], "--fail-below"),
        (["--no-worse-than", -1], "--no-worse-than"),
    ],
)
def test_limits_outside_their_range_are_refused(flags: list[object], message: str) -> None:
    done = nightlab("compare", "a", "b", *flags)
    assert done.status == 2 and message in done.err


@pytest.mark.slow
def test_a_browser_shows_the_comparison(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_comparison(*folders, tmp_path, fail_below=99, no_worse_than=50, pictures=False)
    with headless_browser() as browser:
        for width in (1280, 390):
            seen = browser.open(tmp_path / "compare.html", width)
            assert seen.requests == [] and seen.errors == []
            assert seen.page_width == seen.window_width == width
            assert seen.unnamed_charts == 0
            text = " ".join(seen.text.split())
            assert "B is worse than A: −" in text
            assert "Failed --fail-below 99" in text and "Passed --no-worse-than 50" in text
