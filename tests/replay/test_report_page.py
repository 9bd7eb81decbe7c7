# SPDX-License-Identifier: Apache-2.0
"""report.json, frames.csv and the page, also in a browser that is offline."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, headless_browser
from replay_samples import sample_run, write_sample

from nightlab_core.metrics import mean_iou
from nightlab_replay.figures.statistics import percent
from nightlab_replay.figures.summary import RunSummary
from nightlab_replay.records import RunData
from nightlab_replay.report.pictures import difference_picture, error_picture, frame_miou, lowest_apart, worst_frames
from nightlab_replay.report.report import write_report
from nightlab_replay.store import StoreError


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sample(tmp_path_factory.mktemp("labelled"), sample_run(90, bags=("evening.mcap", "night.mcap")))
    write_report(folder, pictures=False)
    return folder


def test_the_figures_are_in_report_json(labelled: Path) -> None:
    report = RunSummary.model_validate_json((labelled / "report.json").read_bytes())
    counts = sample_run(90, bags=("evening.mcap", "night.mcap")).counts.confusion
    assert report.format == 1 and report.complete and report.accuracy is not None
    assert report.accuracy.miou[1] == mean_iou(counts[:, 1].sum(axis=(0, 1)))
    assert report.run.bundle.sha256["bundle.yaml"] == "ab" * 32
    assert report.run.bags[1].sha256 and report.run.versions and report.run.machine
    raw = json.loads((labelled / "report.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert raw["accuracy"]["by_class"][16]["iou"] == [None, None]  # no pixel is labelled train


def test_frames_csv_has_one_line_per_frame(labelled: Path) -> None:
    rows = list(csv.DictReader((labelled / "frames.csv").open()))
    data = sample_run(90, bags=("evening.mcap", "night.mcap"))
    assert len(rows) == 180
    scores = frame_miou(data.counts.confusion[:, 1])
    assert [float(r["miou_both_levels"]) for r in rows if r["miou_both_levels"]] == scores.tolist()
    assert {r["status"] for r in rows} == {"ok", "dropped", "unreadable"}
    assert float(rows[3]["total_ms"]) == data.records[3].stages_ms["total"]


class _Tags(HTMLParser):
    VOID = ("meta", "br", "img", "line", "rect", "circle", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID or (tag in ("rect", "circle") and not (self.get_starttag_text() or "").endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(labelled: Path) -> None:
    page = (labelled / "report.html").read_text()
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    assert not re.findall(r"<script|<link|@import|url\(|https?://|src=\"(?!data:)", page)


def test_names_from_bags_cannot_break_the_page(tmp_path: Path) -> None:
    data = sample_run(6, bags=("<script>alert(1)</script>",))
    bag = data.run.bags[0].model_copy(update={"problems": ('<img src="http://x">',)})
    folder = write_sample(tmp_path, RunData(data.run.model_copy(update={"bags": (bag,)}), [], data.counts))
    write_report(folder, pictures=False)
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_browser_shows_the_report(browser: Browser, labelled: Path, width: int, colours: str) -> None:
    seen = browser.open(labelled / "report.html", width, colours)
    report = RunSummary.model_validate_json((labelled / "report.json").read_bytes())
    assert report.accuracy is not None
    assert seen.requests == [] and seen.errors == []
    assert seen.page_width == seen.window_width == width
    assert seen.broken_images == 0 and seen.unnamed_charts == 0
    text = " ".join(seen.text.split())
    for figure in (
        f"{percent(report.accuracy.miou[1])} % mIoU, both levels",
        f"{percent(report.accuracy.miou[0])} % mIoU, image level",
        f"{report.stages_ms['total'].p50:.0f} ms per frame, median",
        f"{report.frames.ok} / {report.frames.expected} frames segmented",
        "very dark",
        "Confusion",
        "evening.mcap",
    ):
        assert figure in text


@pytest.mark.slow
def test_a_browser_shows_a_run_without_labels(browser: Browser, tmp_path: Path) -> None:
    folder = write_sample(tmp_path, sample_run(40, labelled=False))
    report = write_report(folder, pictures=False)
    seen = browser.open(folder / "report.html", 390)
    assert seen.requests == [] and seen.errors == [] and seen.page_width == 390
    text = " ".join(seen.text.split())
    assert f"{percent(report.behaviour.agreement)} % agreement of the levels" in text
    assert f"{percent(report.behaviour.flicker, 2)} % flicker" in text
    assert "No frame has labels" in text and "mIoU, both" not in text and "Confusion" not in text


@pytest.mark.slow
def test_a_browser_shows_a_partial_and_an_empty_run(browser: Browser, tmp_path: Path) -> None:
    partial = write_sample(tmp_path / "partial", sample_run(40, missing=13))
    write_report(partial, pictures=False)
    text = " ".join(browser.open(partial / "report.html", 390).text.split())
    assert "Partial report: 13 of 40 frames are not replayed yet" in text
    nothing = write_sample(tmp_path / "nothing", sample_run(40, missing=40))
    write_report(nothing, pictures=False)
    seen = browser.open(nothing / "report.html", 390)
    assert "40 of 40 frames are not replayed yet" in " ".join(seen.text.split())
    assert seen.errors == [] and seen.page_width == 390


@pytest.mark.slow
def test_the_report_can_be_printed(browser: Browser, labelled: Path, tmp_path: Path) -> None:
    browser.print(labelled / "report.html", tmp_path / "report.pdf")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 12


def test_the_page_says_why_pictures_are_missing(tmp_path: Path) -> None:
    folder = write_sample(tmp_path, sample_run(12))
    write_report(folder)
    assert "the bundle bundles/night-a is missing" in (folder / "report.html").read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run\.json"):
        write_report(tmp_path)


def test_the_worst_frames_are_at_least_five_seconds_apart() -> None:
    data = sample_run(300, lost=False)
    scores = np.arange(300.0)
    chosen = lowest_apart(data.records, scores)
    assert chosen == [0, 50, 100, 150, 200, 250]  # 10 Hz, five seconds
    assert lowest_apart(data.records, np.full(300, np.nan)) == []
    worst = worst_frames(data)
    assert 4 <= len(worst) <= 6 and "mIoU of this frame" in worst[0][1]
    unlabelled = worst_frames(sample_run(120, labelled=False))
    assert "the levels agree on" in unlabelled[0][1]
    alone = [replace(r, agreement=1.0, labelled=False) for r in data.records]
    assert "mean confidence" in worst_frames(replace(sample_run(300, labelled=False), records=alone))[0][1]


def test_an_error_picture_colours_fixed_and_regressed_pixels() -> None:
    image = np.full((1, 5, 3), 200, np.uint8)
    truth, first, second = (np.array([row], np.uint8) for row in ([1, 1, 1, 1, 255], [1, 2, 2, 1, 0], [1, 2, 1, 2, 0]))
    picture = error_picture(image, truth, first, second)[0, :, ::-1].tolist()
    right, wrong, fixed, regressed, unlabelled = picture
    assert right[0] == right[1] == right[2]
    assert (wrong, fixed, regressed) == ([226, 60, 50], [60, 140, 255], [255, 205, 40])
    assert unlabelled[0] < right[0] / 2
    assert difference_picture(image, first, second)[0, 2, ::-1].tolist() == [255, 205, 40]
