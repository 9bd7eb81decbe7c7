# SPDX-License-Identifier: Apache-2.0
"""Two bundles on the same frames: what is refused, what is claimed, and what makes CI fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, headless_browser
from replay_samples import sample_run, write_sample

from nightlab_core.metrics import mean_iou
from nightlab_replay.cli import main as replay_main
from nightlab_replay.comparison import Comparison, compare
from nightlab_replay.pairing import CompareError, pair
from nightlab_replay.records import Counts, RunData
from nightlab_replay.report.compare import FAILED, NOT_COMPARED, PASSED, main
from nightlab_replay.report.verdict import improved

FOLDERS = ("a", "b")


@lru_cache
def drive(seed: int = 0, skill: float = 0.0, dark: float = 0.0, frames: int = 240, slower: float = 1.0) -> RunData:
    """At 2 Hz, so that every light level has its stretches."""
    return sample_run(
        frames, seed=seed, name=f"night-{seed}", skill=skill, skill_in_the_dark=dark, hz=2, slower=slower, lost=False
    )


def with_run(data: RunData, **changes: object) -> RunData:
    return replace(data, run=data.run.model_copy(update=changes))


def test_a_run_is_no_better_than_itself() -> None:
    found = compare(pair(drive(), drive()), FOLDERS, no_worse_than=0)
    assert found.accuracy is not None and found.accuracy.gain is not None
    assert (found.accuracy.gain.difference, found.accuracy.gain.low_95, found.accuracy.gain.high_95) == (0, 0, 0)
    assert found.verdict == "no difference shown" and found.passed
    assert found.sentences[0].startswith("No difference that these frames can show")
    assert "None of the 9 classes compared shows a change." in found.sentences
    assert found.different_settings == {} and found.left_out == {}


def test_better_in_the_dark_is_said_with_its_numbers() -> None:
    first, second = drive(), drive(1, dark=0.03)
    found = compare(pair(first, second), FOLDERS)
    accuracy = found.accuracy
    assert accuracy is not None and accuracy.dark.gain is not None
    assert found.verdict == "better" and accuracy.dark.gain.verdict == "better"
    totals = [mean_iou(d.counts.confusion[:, 1].sum(axis=(0, 1))) for d in (first, second)]
    assert accuracy.miou == tuple(totals)
    assert accuracy.dark.gain.difference > accuracy.gain.difference if accuracy.gain else False
    assert found.sentences[1].startswith("In the dark: better, +")
    assert accuracy.by_light[-1].gain is not None and accuracy.by_light[-1].gain.verdict != "better"


def test_worse_in_the_dark_is_not_hidden_by_a_better_day() -> None:
    found = compare(pair(drive(), drive(1, skill=0.2, dark=-0.22)), FOLDERS, no_worse_than=0.5)
    assert found.verdict == "better"
    assert found.sentences[1].startswith("But in the dark: worse, −")
    (gate,) = found.gates
    assert not gate.passed and "in the dark" in gate.reason


def test_swapping_the_two_turns_the_verdict_round() -> None:
    old, new = drive(), drive(1, dark=0.05)
    there, back = compare(pair(old, new), FOLDERS), compare(pair(new, old), FOLDERS)
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert there.accuracy is not None and back.accuracy is not None
    assert there.accuracy.gain is not None and back.accuracy.gain is not None
    assert there.accuracy.gain.low_95 == pytest.approx(-back.accuracy.gain.high_95, abs=2e-3)
    assert {c.name for c in improved(there.accuracy, "better")} == {c.name for c in improved(back.accuracy, "worse")}
    assert improved(there.accuracy, "better") and not improved(there.accuracy, "worse")


def test_one_class_that_breaks_is_named() -> None:
    first = drive()
    confusion = first.counts.confusion.copy()
    lost = confusion[:, 1, :, 5, 5] // 2  # half of the poles are read as building
    confusion[:, 1, :, 5, 5] -= lost
    confusion[:, 1, :, 5, 2] += lost
    second = replace(first, counts=replace(first.counts, confusion=confusion))
    found = compare(pair(first, second), FOLDERS)
    assert [c.name for c in improved(found.accuracy, "worse")] == ["pole", "building"]
    assert any(s.startswith("Got worse: pole −") for s in found.sentences)


def test_few_frames_bear_out_nothing_and_pass_no_gate() -> None:
    found = compare(pair(drive(frames=5), drive(1, skill=0.2, frames=5)), FOLDERS, no_worse_than=1)
    assert found.verdict == "too few frames"
    assert found.sentences[0].startswith("Too few frames to say whether B is better")
    assert not found.passed and "too few frames" in found.gates[0].reason


def test_only_common_frames_count_and_the_rest_is_counted() -> None:
    first = drive()
    second = drive(1)
    dropped = second.records[:180]
    dropped[7] = replace(dropped[7], status="dropped", labelled=False, stages_ms={})
    rows = np.delete(np.arange(180), 7)
    fewer = RunData(
        second.run, dropped, Counts(*(getattr(second.counts, k)[rows] for k in Counts.__dataclass_fields__))
    )
    found = compare(pair(first, fewer), FOLDERS)
    assert found.left_out == {"segmented by only A": 1, "only in A": 60}
    assert found.pairs == found.labelled_pairs == 179
    assert found.sentences[-1] == "179 frames are compared, 61 are left out: 1 segmented by only A, 60 only in A."
    expected = mean_iou(np.delete(first.counts.confusion[:180, 1], 7, axis=0).sum(axis=(0, 1)))
    assert found.accuracy is not None and found.accuracy.miou[0] == expected


def test_bags_are_matched_by_their_files_not_their_names() -> None:
    run = drive().run
    renamed = run.bags[0].model_copy(update={"name": "copy.mcap"})
    second = with_run(drive(), bags=(renamed,))
    second = replace(second, records=[replace(r, bag="copy.mcap") for r in second.records])
    assert len(pair(drive(), second).records) == 240


def test_a_bag_is_matched_but_once() -> None:
    """Two copies of one recording are two bags; frames would be counted twice otherwise."""
    bag = drive().run.bags[0]
    copy = bag.model_copy(update={"name": "copy.mcap"})
    both = with_run(drive(), bags=(bag, copy))
    copied = [replace(r, bag="copy.mcap") for r in drive().records]
    second = replace(both, records=[*drive().records, *copied], counts=twice(drive().counts))
    pairs = pair(drive(), second)
    assert len(pairs.records) == 240 and pairs.left_out == {"only in B": 240}


def twice(counts: Counts) -> Counts:
    return Counts.concatenate([counts, counts], counts.confusion.shape[3])


def refused(first: RunData, second: RunData) -> str:
    with pytest.raises(CompareError) as error:
        pair(first, second)
    return str(error.value)


def test_what_does_not_belong_together_is_refused() -> None:
    first = drive()
    bag = first.run.bags[0]
    other_file = bag.model_copy(update={"sha256": {"evening.mcap": "99" * 32}})
    assert "no bag is in both" in refused(first, with_run(first, bags=(other_file,)))
    other_topic = bag.model_copy(update={"image_topic": "/rear/image_raw"})
    assert "/rear/image_raw" in refused(first, with_run(first, bags=(other_topic,)))
    settings = first.run.settings.model_copy(update={"classes": "camvid11", "class_names": ("sky", "road")})
    assert "19 classes (cityscapes19), B in 2 (camvid11)" in refused(first, with_run(first, settings=settings))
    unhashed = with_run(first, bags=(bag.model_copy(update={"sha256": {}}),))
    later = replace(unhashed, records=[replace(r, time_ns=r.time_ns + 1) for r in first.records])
    assert "these are not the same bag" in refused(first, later)
    confusion = first.counts.confusion.copy()
    confusion[3, :, 0, 0, 0] += 1
    assert "1 frames have other labels in A than in B, the first is frame 3" in refused(
        first, replace(first, counts=replace(first.counts, confusion=confusion))
    )
    lost = [replace(r, status="dropped", labelled=False) for r in first.records]
    assert "no frame was segmented in both" in refused(first, replace(first, records=lost, counts=Counts.empty(19)))


def test_times_are_compared_only_where_that_is_fair() -> None:
    slower = drive(1, slower=1.3)
    found = compare(pair(drive(), slower), FOLDERS)
    assert found.latency_note == "" and any(s.startswith("B is slower: +") for s in found.sentences)
    assert found.stages_ms["total"].change.difference > 0
    elsewhere = with_run(slower, machine={"cpu": "a faster one"})
    found = compare(pair(drive(), elsewhere), FOLDERS)
    assert found.latency_note == "A and B ran on different machines"
    assert not any(s.startswith("B is slower") for s in found.sentences)
    assert found.different_settings["machine.cpu"] == ("an ordinary one", "a faster one")
    cluster = compare(pair(drive(), with_run(slower, workers=-1)), FOLDERS)
    assert cluster.latency_note == "A and B were replayed in different ways"
    settings = slower.run.settings.model_copy(update={"precision": "float32", "threads": 1, "rate": 2.0})
    found = compare(pair(drive(), with_run(slower, settings=settings)), FOLDERS)
    assert found.latency_note == "A and B were replayed with different settings (precision, threads, rate)"


def test_without_labels_nothing_is_said_about_accuracy() -> None:
    first, second = (sample_run(40, seed=s, labelled=False) for s in (0, 1))
    found = compare(pair(first, second), FOLDERS, fail_below=10, no_worse_than=1)
    assert found.verdict == "no labels" and found.accuracy is None
    assert set(found.behaviour) == {"confidence", "agreement", "flicker"}
    assert [gate.passed for gate in found.gates] == [False, False]


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ([], PASSED),
        (["--fail-below", "40"], PASSED),
        (["--fail-below", "99.5"], FAILED),
        (["--no-worse-than", "5"], PASSED),
        (["--no-worse-than", "0.1"], FAILED),
        (["--fail-below", "40", "--no-worse-than", "0.1"], FAILED),
    ],
)
def test_exit_status_of_the_gates(
    tmp_path: Path, flags: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_sample(tmp_path / n, d) for n, d in (("a", drive()), ("b", drive(1, skill=-0.01)))]
    words = ["compare", *map(str, folders), "--no-pictures", *flags]
    assert replay_main(words) == status
    said = capsys.readouterr().out
    assert "B is worse than A: −" in said and said.count("failed --") == (status == FAILED)
    found = Comparison.model_validate_json((tmp_path / "b" / "compare.json").read_bytes())
    assert found.format == 1 and found.passed == (status == PASSED)
    json.loads((tmp_path / "b" / "compare.json").read_text(), parse_constant=pytest.fail)


def test_what_cannot_be_compared_has_its_own_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_sample(tmp_path / "a", sample_run(6))
    assert main([str(first), str(tmp_path / "none")]) == NOT_COMPARED
    assert "holds no run.json" in capsys.readouterr().err
    data = sample_run(6)
    bag = data.run.bags[0].model_copy(update={"sha256": {"evening.mcap": "99" * 32}})
    second = write_sample(tmp_path / "b", with_run(data, bags=(bag,)))
    assert main([str(first), str(second)]) == NOT_COMPARED
    assert "no bag is in both: A has evening.mcap (000000000000), B has evening.mcap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fail-below", "0.45"], "expected per cent"),
        (["--fail-below", "many"], "expected a number"),
        (["--no-worse-than", "-1"], "expected points of mIoU"),
    ],
)
def test_bad_limits_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["a", "b", *flags])
    assert stopped.value.code == NOT_COMPARED
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_browser() as opened:
        yield opened


def test_a_browser_shows_the_comparison(browser: Browser, tmp_path: Path) -> None:
    folders = [write_sample(tmp_path / n, d) for n, d in (("a", drive()), ("b", drive(1, dark=0.03)))]
    main([*map(str, folders), "--no-pictures", "--fail-below", "99", "--no-worse-than", "1"])
    for width in (1280, 390):
        seen = browser.look(tmp_path / "b" / "compare.html", width)
        assert seen.requests == [] and seen.complaints == []
        assert seen.page_width == seen.window_width == width
        assert seen.unnamed_charts == 0
        text = " ".join(seen.text.split())
        assert (
            "B is better than A: +" in text and "Failed --fail-below 99" in text and "Passed --no-worse-than 1" in text
        )
