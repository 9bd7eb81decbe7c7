# SPDX-License-Identifier: Apache-2.0
"""The demo's checks, numbers and page, from recordings made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from class_sets import CAMVID11, CITYSCAPES19

pytest.importorskip("rclpy")

from nightlab_core.benchmark.curve import BY_REGIONS, BY_SCALE, CurvePoint
from nightlab_core.benchmark.timing import Timing
from nightlab_core.data.frames import open_frames
from nightlab_core.runtime.bundle import load_bundle
from nightlab_replay.report.curves import CURVE_NAME, StoredCurves, networks_of, read_curves
from nightlab_ros.demo.demo import DemoSettings, node_parameters, playback_state, report_table
from nightlab_ros.demo.report import Recording, find_problems, rate_of_masks, write_report
from nightlab_ros.playback.mask_recorder import MASK, MaskSpool, ReceivedMask
from nightlab_ros.playback.player import PlayerSettings
from nightlab_ros.playback.protocol import SentFrame

pytestmark = pytest.mark.ros
SIZE_HW = (4, 6)
DIAGNOSTICS = {"dropped": "1", "failed": "0", "image_ms_p50": "5.00", "image_ms_p95": "6.00", "image_ms_p99": "7.50"}
DIAGNOSTICS |= {"bundle": "tiny", "bundle_sha256": "ab" * 32, "engine": "fake", "version": "1.2.3"}
DIAGNOSTICS |= {"refine_reason": "always"}
ROAD, CAR = CITYSCAPES19.id_of("road"), CITYSCAPES19.id_of("car")


Record = Callable[[int, tuple[int, ...]], Recording]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    """Frames 0.1 s apart; the image level sees road everywhere, both levels a car in the right half."""
    with MaskSpool(tmp_path) as spool:

        def mask(frame: SentFrame, labels: np.ndarray, latency_ms: int) -> ReceivedMask:
            received_ns = frame.stamp_ns + latency_ms * 1_000_000
            return ReceivedMask.store(
                spool, labels, stamp_ns=frame.stamp_ns, received_ns=received_ns, frame_id="camera", encoding="mono8"
            )

        def make(count: int, answered: tuple[int, ...]) -> Recording:
            stamps_ns = [10**9 + i * 10**8 for i in range(count)]
            sent = [SentFrame(i, ns, ns, 0.1, f"f{i}", SIZE_HW) for i, ns in enumerate(stamps_ns)]
            road = np.full(SIZE_HW, ROAD, np.uint8)
            both = road.copy()
            both[:, 3:] = CAR
            masks = {stamps_ns[i]: mask(sent[i], both, 10 * (i + 1)) for i in answered}
            image_level = {stamps_ns[i]: mask(sent[i], road, 20) for i in answered}
            return Recording("camera", 10.0, False, sent, masks, image_level, DIAGNOSTICS)

        yield make


def write_source(folder: Path, count: int, labels: np.ndarray | None) -> Path:
    for part in ("images",) if labels is None else ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / "images" / f"f{i}.png"), np.full((*SIZE_HW, 3), 40 * i, np.uint8))
        if labels is not None:
            cv2.imwrite(str(folder / "labels" / f"f{i}.png"), labels)
    return folder if labels is not None else folder / "images"


def test_masks_that_fit_their_frames_are_no_problem(record: Record) -> None:
    assert find_problems(record(3, (0, 2))) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size_hw": (6, 4)}, "is (6, 4), its frame was (4, 6)"),
        ({"frame_id": ""}, "frame_id '', expected 'camera'"),
        ({"encoding": "32SC1"}, "encoding '32SC1'"),
    ],
)
def test_a_mask_that_differs_from_its_frame_is_a_problem(record: Record, change: dict, says: str) -> None:
    one = record(2, (0, 1))
    stamp_ns = one.sent[1].stamp_ns
    one.masks[stamp_ns] = replace(one.masks[stamp_ns], **change)
    (problem,) = find_problems(one)
    assert says in problem and str(stamp_ns) in problem


def test_no_mask_and_a_mask_of_no_frame_are_problems(record: Record) -> None:
    assert find_problems(record(2, ())) == ["no mask came back for 2 frames"]
    strange = record(1, (0,))
    strange.masks[5] = strange.masks[strange.sent[0].stamp_ns]
    assert find_problems(strange) == ["a mask has the stamp 5 ns, which no frame had"]


def test_report_by_hand(record: Record, tmp_path: Path) -> None:
    """Labels: left half road, right half car, the last column unlabelled. Frame 1 has no mask."""
    labels = np.full(SIZE_HW, ROAD, np.uint8)
    labels[:, 3:] = CAR
    labels[:, 5] = 255
    source = open_frames(write_source(tmp_path / "clip", 3, labels))
    report = write_report(record(3, (0, 2)), source, CITYSCAPES19, tmp_path)
    assert (report["sent"], report["received"], report["dropped"], report["problems"]) == (3, 2, 1, [])
    assert report["latency_ms"] == pytest.approx({"p50": 20.0, "p95": 29.0, "p99": 29.8, "max": 30.0})
    assert [f["latency_ms"] for f in report["frames"]] == [10.0, None, 30.0]
    assert report["stages_ms"] == {"image": {"p50": 5.0, "p95": 6.0, "p99": 7.5}}
    accuracy = report["accuracy"]
    assert accuracy["frames"] == 2 and accuracy["miou"]["both_levels"] == 1.0
    # image level: road 12 of 20 pixels, car none
    assert accuracy["iou"]["image_level"]["road"] == pytest.approx(12 / 20)
    assert accuracy["iou"]["image_level"]["car"] == 0.0 and accuracy["iou"]["image_level"]["sky"] is None
    assert accuracy["miou"]["image_level"] == pytest.approx(0.3)
    assert accuracy["gain"]["difference"] == pytest.approx(0.7)
    assert json.loads((tmp_path / "demo.json").read_text())["accuracy"] == accuracy
    overlays = sorted((tmp_path / "overlays").iterdir())
    assert [o.name for o in overlays] == ["00000_f0.jpg", "00002_f2.jpg"]
    assert cv2.imread(str(overlays[0])).shape[1] == 4 * 640
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 and "2 / 3" in page and "+70.00 points" in page
    assert "NightLab 1.2.3 with the bundle tiny (abababababab) on fake, refining: always" in page
    assert 'src="http' not in page and "<link" not in page and "<script" not in page


def test_camvid_labels_are_scored_in_their_own_classes(record: Record, tmp_path: Path) -> None:
    labels = np.full(SIZE_HW, CAMVID11.id_of("road"), np.uint8)
    source = open_frames(write_source(tmp_path / "clip", 1, labels), classes="camvid11")
    accuracy = write_report(record(1, (0,)), source, CITYSCAPES19, tmp_path)["accuracy"]
    assert accuracy["classes"] == "camvid11"
    assert accuracy["miou"] == {"image_level": 1.0, "both_levels": 0.5}


def test_report_without_labels_and_without_masks(record: Record, tmp_path: Path) -> None:
    source = open_frames(write_source(tmp_path / "clip", 2, None))
    report = write_report(record(2, (0, 1)), source, CITYSCAPES19, tmp_path / "unlabelled")
    assert report["accuracy"] is None
    page = (tmp_path / "unlabelled" / "index.html").read_text()
    assert "mIoU" not in page and page.count("data:image/jpeg;base64,") == 6
    nothing = write_report(record(2, ()), source, CITYSCAPES19, tmp_path / "nothing")
    assert nothing["latency_ms"] == {} and nothing["problems"] == ["no mask came back for 2 frames"]
    assert "no mask came back for 2 frames" in (tmp_path / "nothing" / "index.html").read_text()
    assert [str(cell) for cell in report_table(nothing).columns[1].cells][:3] == ["2", "0", "2"]


def test_the_page_shows_which_regions_were_read_left_out_or_late(record: Record, tmp_path: Path) -> None:
    source = open_frames(write_source(tmp_path / "clip", 2, None))
    one = record(2, (0, 1))
    outcomes = (("read", "left_out"), ("late", "not_chosen"))
    for frame, found in zip(one.sent, outcomes, strict=True):
        one.regions[frame.stamp_ns] = [{"box_xyxy": [0.2, 0.0, 3.0, 3.0], "score": 0.5, "outcome": o} for o in found]
    report = write_report(one, source, CITYSCAPES19, tmp_path / "out")
    assert {name: count for name, count in report["regions"].items() if count} == {
        "read": 1,
        "left_out": 1,
        "late": 1,
        "not_chosen": 1,
    }
    assert [region["outcome"] for region in report["frames"][1]["regions"]] == ["late", "not_chosen"]
    page = (tmp_path / "out" / "index.html").read_text()
    for text in ("<b>1</b>regions read", "<b>1</b>regions left out", "<b>10.0 Hz</b>", "1 regions not chosen"):
        assert text in page
    assert report["notes"] == [] and "no region could be read" not in page and "Accuracy against time" not in page
    rows = list(zip(*(column.cells for column in report_table(report).columns), strict=True))
    assert ("regions read", "1", "1 not chosen, 1 left out, 1 late") in rows
    both = cv2.imread(str(tmp_path / "out" / "overlays" / "00000_f0.jpg"))[:, 2 * 640 :]
    yellow = np.abs(both.astype(int) - (0, 200, 255)).max(axis=2) < 60  # the box of what was left out is on top
    assert yellow.mean() > 0.05


@pytest.mark.parametrize(
    ("outcomes", "hardness_late", "is_noted"),
    [
        (["left_out"], "0", True),
        (["late"], "0", True),
        ([], "1", True),  # the boxes were not known in time
        (["left_out", "read"], "1", False),
        (["not_chosen"], "0", False),
        ([], "0", False),
    ],
)
def test_without_time_for_any_region_the_report_says_what_to_do(
    record: Record, tmp_path: Path, outcomes: list[str], hardness_late: str, is_noted: bool
) -> None:
    source = open_frames(write_source(tmp_path / "clip", 1, None))
    one = record(1, (0,))
    one = replace(one, diagnostics={**DIAGNOSTICS, "hardness_late": hardness_late})
    one.regions[one.sent[0].stamp_ns] = [{"box_xyxy": [0, 0, 3, 3], "score": 0.5, "outcome": o} for o in outcomes]
    (note,) = write_report(one, source, CITYSCAPES19, tmp_path / "out")["notes"] or [""]
    assert ("no region could be read within the deadline" in note) == is_noted
    assert ("no region could be read within" in (tmp_path / "out" / "index.html").read_text()) == is_noted


def test_the_bundles_curve_is_on_the_page_with_its_machine(
    record: Record, tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    bundle, source = load_bundle(folder), open_frames(write_source(tmp_path / "clip", 1, None))
    assert read_curves(bundle) is None
    points = tuple(
        CurvePoint(curve, name, miou, Timing(ms, ms, ms, 9), 0.0, None)
        for curve, name, miou, ms in ((BY_SCALE, "1", 0.6, 80.0), (BY_REGIONS, "3", 0.65, 120.0))
    )
    own = StoredCurves(
        cpu="Fast & Co",
        cores="2",
        engine="openvino",
        bundle="tiny",
        networks=networks_of(bundle),
        curves={"camvid/val": points},
    )
    (folder / CURVE_NAME).write_text(own.model_dump_json())
    assert read_curves(bundle) == own
    write_report(record(1, (0,)), source, CITYSCAPES19, tmp_path, read_curves(bundle))
    page = (tmp_path / "index.html").read_text()
    assert "Accuracy against time" in page and "Fast &amp; Co" in page and "mIoU on camvid/val" in page
    assert page.count("<circle") == 2 + 2  # the points, and the legend
    other = own.model_copy(update={"networks": {**own.networks, "region": "0" * 64}})
    for text, reason in ((other.model_dump_json(), "other networks"), ("{", "cannot be read")):
        (folder / CURVE_NAME).write_text(text)
        assert read_curves(bundle) is None and reason in caplog.text


def test_a_frame_has_most_of_the_time_until_the_next_one_unless_the_user_says_otherwise() -> None:
    def parameters(rate: float, **given: str) -> dict[str, str]:
        return node_parameters(DemoSettings(PlayerSettings(rate=rate), parameters=given), (48, 64))

    assert parameters(10.0)["deadline_ms"] == "90.0" and parameters(10.0)["image_size"] == "[64, 48]"
    assert parameters(10.0, deadline_ms="0.0")["deadline_ms"] == "0.0"
    assert parameters(0.01)["deadline_ms"] == "10000.0"  # the parameter's largest value
    assert parameters(5000.0)["deadline_ms"] == "1.0"


def test_the_rate_of_masks_is_over_the_time_of_playing(record: Record) -> None:
    assert rate_of_masks(record(10, (0, 4, 9))) == pytest.approx(3.0)
    assert rate_of_masks(record(0, ())) == 0


def test_overlays_of_an_earlier_run_are_replaced_and_pictures_of_the_user_kept(record: Record, tmp_path: Path) -> None:
    source = open_frames(write_source(tmp_path / "clip", 3, None))
    write_report(record(3, (0, 1, 2)), source, CITYSCAPES19, tmp_path / "out")
    overlays = tmp_path / "out" / "overlays"
    (overlays / "mine.jpg").write_bytes(b"mine")
    earlier = {path.name for path in overlays.iterdir()}
    write_report(record(3, (1,)), source, CITYSCAPES19, tmp_path / "out")
    left = {path.name for path in overlays.iterdir()}
    assert len(earlier) == 4 and len(left) == 2 and left < earlier
    assert (overlays / "mine.jpg").read_bytes() == b"mine"


def test_a_frame_counts_as_dropped_once_a_later_mask_is_here(record: Record) -> None:
    def state(count: int, answered: tuple[int, ...]) -> str:
        one = record(count, answered)
        recorder: Any = SimpleNamespace(received={MASK: {stamp_ns: [mask] for stamp_ns, mask in one.masks.items()}})
        return playback_state(one.sent, recorder)

    assert state(3, ()) == "no mask yet"
    assert state(5, (0, 1)) == "masks 2  dropped 0  10.0 Hz  p50 15 ms"
    assert state(5, (0, 3)) == "masks 2  dropped 2  3.3 Hz  p50 25 ms"
