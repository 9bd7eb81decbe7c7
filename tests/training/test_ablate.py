# SPDX-License-Identifier: Apache-2.0
"""The ladder: each row is what the pipeline would do, each network runs once, and what is not trained is said."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from tiny_bundle import write_tiny_bundle

pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CAMVID11, CITYSCAPES19
from pipelines import open_pipeline

from nightlab_core.benchmark.curve import with_scale
from nightlab_core.config import replace
from nightlab_core.data.datasets.paired import Sample
from nightlab_core.data.hard_regions import hard_regions, predicted_regions
from nightlab_core.labels import ClassSet, to_class_set
from nightlab_core.metrics import confusion_matrix, mean_iou
from nightlab_core.runtime.engines.engine import EngineOptions
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import PipelineSettings
from nightlab_core.yaml_files import ConfigError
from training.evaluation.ablate import ablate, earlier_entries, main, print_ladder
from training.evaluation.ladder import Ablation, Counts, Ladder, Networks, Row
from training.evaluation.results import commands_to_train, markdown, write_page
from training.gains import MERGES
from training.recipes import load_recipe, read_recipe
from training.stages.segmenter import SegmenterRecipe

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """The tiny bundle as a path in a recipe."""
    return str(write_tiny_bundle(tmp_path / "bundle"))


def _ablation(bundle: str, **changes: Any) -> Ablation:
    both: dict[str, Any] = {"image": bundle, "region": bundle}
    rows = (
        Row(name="plain", image="runs/none.pt"),
        Row(name="image", image=bundle),
        Row(name="prediction", **both, boxes="prediction"),
        Row(name="detector", **both, boxes="detector", detector=bundle),
    )
    train = {"runs/none.pt": "python -m training.stages.segmenter none.yaml"}
    return Ablation(**{"rows": rows, "hard_classes": ("pole", "sky"), "train": train, **changes})


def _networks(rows: Sequence[Row]) -> Networks:
    return Networks(rows, ("pole", "sky"))


def _count(row: Row, ablation: Ablation, sample: Sample, classes: ClassSet) -> Counts:
    with Ladder(_networks([row]), ablation, classes) as ladder:
        return ladder.count(sample, [row])[0]


def _samples(number: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(0, 256, (64, 96, 3), np.uint8), rng.integers(0, 19, (64, 96), np.uint8), f"f{i}")
        for i in range(number)
    ]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("number", [2, 10])
def test_a_row_equals_the_pipeline_with_the_same_settings(bundle: str, merge: Any, number: int) -> None:
    settings = PipelineSettings(merge=merge, max_regions=number)
    ablation = _ablation(bundle, pipeline=settings)
    row, sample = ablation.rows[3], _samples(1)[0]
    counts = _count(row, ablation, sample, CITYSCAPES19)
    with open_pipeline(bundle, precision="float32", settings=settings) as pipeline:
        result = pipeline(sample.image_bgr)
    np.testing.assert_array_equal(counts.image, confusion_matrix(sample.labels, result.image_labels, 19))
    assert counts.sweep is not None and counts.oracle is not None and counts.bound is not None
    expected = confusion_matrix(sample.labels, result.labels, 19)
    np.testing.assert_array_equal(counts.sweep[MERGES.index(merge), number], expected)
    np.testing.assert_array_equal(counts.sweep[:, 0], [counts.image] * len(MERGES))  # no region changes nothing
    most = np.diagonal(counts.bound)
    for matrix in (counts.image, counts.sweep[MERGES.index(merge), number], counts.oracle):
        assert (np.diagonal(matrix) <= most).all()


def test_boxes_below_a_rows_threshold_are_not_refined(bundle: str) -> None:
    row = replace(_ablation(bundle).rows[3], score_threshold=0.85)
    ablation, sample = _ablation(bundle, rows=(row,)), _samples(1)[0]
    counts = _count(row, ablation, sample, CITYSCAPES19)
    assert counts.sweep is not None  # of scores of about 0.9, 0.7 and 0.4 one is left
    assert (counts.sweep[:, 1] != counts.sweep[:, 0]).any() and (counts.sweep[:, 10] == counts.sweep[:, 1]).all()


def test_a_bundle_has_one_ranking_of_boxes(bundle: str) -> None:
    with pytest.raises(ValueError, match=r"is a bundle, whose engine has one ranking; objectness needs its checkpoint"):
        _networks([replace(_ablation(bundle).rows[3], boxes="objectness")])


def test_labels_are_evaluated_in_the_sets_own_classes(bundle: str) -> None:
    ablation, sample = _ablation(bundle), _samples(1)[0]
    row = ablation.rows[3]
    fine = _count(row, ablation, sample, CITYSCAPES19)
    in_camvid = Sample(sample.image_bgr, to_class_set(sample.labels, CITYSCAPES19, CAMVID11), sample.name)
    coarse = _count(row, ablation, in_camvid, CAMVID11)
    ids = to_class_set(np.arange(19, dtype=np.uint8)[None], CITYSCAPES19, CAMVID11)[0]
    assert fine.sweep is not None and coarse.sweep is not None
    for a, b in ((fine.image, coarse.image), (fine.sweep[0, 10], coarse.sweep[0, 10])):
        merged = np.zeros((11, 12), np.int64)
        np.add.at(merged, (ids[:, None], np.append(ids, 11)[None]), a)
        np.testing.assert_array_equal(merged, b)


def _count_calls(engine: Any, kind: str, calls: Counter[str]) -> None:
    """Count the frames, or crops, that an engine reads."""
    plain = type(engine)

    class Counting(plain):  # type: ignore[valid-type,misc]
        def __call__(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
            calls[kind] += len(next(iter(arrays.values())))
            return plain.__call__(self, **arrays)

    engine.__class__ = Counting


def test_each_network_runs_once_per_frame(bundle: str) -> None:
    both: dict[str, Any] = {"image": bundle, "region": bundle, "boxes": "detector", "detector": bundle}
    rows = (Row(name="a", image=bundle), Row(name="b", **both), Row(name="c", **both))
    ablation = _ablation(bundle, rows=rows)
    networks, calls = _networks(rows), Counter[str]()
    for (kind, *_), network in networks.cached.items():
        _count_calls(network.engine.engine, kind, calls)  # type: ignore[attr-defined]
    found = ablate(ablation, networks, _samples(2), CITYSCAPES19, "mine")
    assert calls == {"image": 2, "hardness": 2, "region": 2 * 3}  # of the four boxes, one is suppressed
    assert found["rows"][1]["miou"] == found["rows"][2]["miou"]
    assert found["rows"][2]["difference"] == {"points": 0, "low": None, "high": None}  # two frames


def test_table_figures_and_page_agree(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    ablation = _ablation(bundle)
    networks = _networks(ablation.rows[1:])
    found = ablate(ablation, networks, _samples(3), CITYSCAPES19, "mine")
    plain, image, prediction, detector = found["rows"]
    assert plain == {
        "name": "plain",
        "not_trained": [{"path": "runs/none.pt", "command": "python -m training.stages.segmenter none.yaml"}],
    }
    assert "difference" not in image and prediction["against"] == "image" and detector["against"] == "prediction"
    assert detector["sweep"]["confident"][10] == detector["miou"] and detector["sweep"]["replace"][0] == image["miou"]
    assert detector["bound"] >= detector["oracle"]

    print_ladder(found, ablation)
    shown = capsys.readouterr().out
    assert "not trained: runs/none.pt: python -m training.stages.segmenter none.yaml" in shown
    whole = {"recipe": "x.yaml", "ablation": ablation.model_dump(mode="json"), "sets": [found]}
    page = markdown(json.loads(json.dumps(whole, allow_nan=False)))
    assert page == markdown(whole)
    noted = {**whole, "ablation": {**whole["ablation"], "note": "Few steps."}}  # type: ignore[dict-item]
    assert "\nFew steps.\n" in markdown(noted) and "Few steps." not in page
    assert f"| detector | {detector['miou']:.2f} | " in page and "| plain | not trained |" in page
    assert "`runs/none.pt`:\n\n    python -m training.stages.segmenter none.yaml\n" in page
    for line in page.splitlines():  # no ragged table
        assert not line.startswith("|") or line.endswith("|")


def test_commands_are_listed_in_the_order_of_their_dependencies() -> None:
    rows = [
        {"name": "hdm", "not_trained": [{"path": "hdm.pt", "command": "learn"}, {"path": "odd.pt", "command": ""}]},
        {"name": "there", "miou": 1.0},
        {"name": "image", "not_trained": [{"path": "image.pt", "command": "train"}]},
    ]
    train = {"image.pt": "train", "made.pt": "of another row", "hdm.pt": "learn"}
    assert list(commands_to_train(rows, train).items()) == [("image.pt", "train"), ("hdm.pt", "learn"), ("odd.pt", "")]


def test_a_row_without_its_files_keeps_earlier_results(bundle: str, tmp_path: Path) -> None:
    there = _ablation(bundle, rows=(Row(name="plain", image=bundle), *_ablation(bundle).rows[1:]))
    before = ablate(there, _networks(there.rows), _samples(2), CITYSCAPES19, "mine")
    stored = tmp_path / "results.json"
    stored.write_text(json.dumps({"sets": [before]}))
    gone = _ablation(bundle)
    kept = earlier_entries(stored, "mine", 2, CITYSCAPES19)
    found = ablate(gone, _networks(gone.rows[1:]), _samples(2), CITYSCAPES19, "mine", kept)
    plain, image, prediction, _ = found["rows"]
    assert plain == {**before["rows"][0], "kept": True}
    assert "against" not in image and "kept" not in image  # with an earlier run's frames nothing can be paired
    assert prediction == before["rows"][2]
    page = markdown({"recipe": "x.yaml", "ablation": gone.model_dump(mode="json"), "sets": [found]})
    assert "| plain † | " in page and "† measured by an earlier run" in page and "| image † |" not in page
    assert earlier_entries(stored, "other", 2, CITYSCAPES19) == {}
    with pytest.raises(ValueError, match=r"mine had 2 frames of 19 classes, now 3 of 19"):
        earlier_entries(stored, "mine", 3, CITYSCAPES19)
    stored.write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json is not a file that training\.evaluation\.ablate --json wrote"):
        earlier_entries(stored, "mine", 2, CITYSCAPES19)


def test_a_file_of_the_user_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.json").write_text('{"my": "notes"}')
    arguments = ["ablate", "missing.yaml", "--data", ".", "--set", "x", "--json", str(tmp_path / "mine.json")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        main()
    assert "no earlier report of this command" in capsys.readouterr().err
    assert json.loads((tmp_path / "mine.json").read_text()) == {"my": "notes"}


def test_the_page_shows_the_pictures_that_exist(bundle: str, tmp_path: Path) -> None:
    ablation = _ablation(bundle)
    found = ablate(ablation, _networks(ablation.rows[1:]), _samples(2), CITYSCAPES19, "mine")
    whole = {"recipe": "x.yaml", "ablation": ablation.model_dump(mode="json"), "sets": [found]}
    write_page(whole, tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == markdown(whole)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "results_bad.jpg").touch()
    write_page(whole, tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert page.startswith(markdown(whole)) and "(images/results_bad.jpg)" in page and "results_good" not in page


def test_a_row_may_be_compared_with_an_earlier_one(bundle: str) -> None:
    rows = _ablation(bundle).rows
    ablation = _ablation(bundle, rows=(*rows[:3], replace(rows[3], against="image")))
    found = ablate(ablation, _networks(rows[1:]), _samples(2), CITYSCAPES19, "mine")
    assert found["rows"][3]["against"] == "image" and found["rows"][3]["difference"] == found["rows"][3]["gain"]
    page = markdown({"recipe": "x.yaml", "ablation": ablation.model_dump(mode="json"), "sets": [found]})
    compared = [line.split("|")[2:6:3] for line in page.splitlines() if re.match(r"\| \d \|.*\[", line)]
    assert [name.strip() for name, row in compared if row.strip() == "2"] == ["prediction", "detector"]


def test_a_row_may_be_compared_with_none(bundle: str) -> None:
    rows = _ablation(bundle).rows
    ablation = _ablation(bundle, rows=(*rows[:3], replace(rows[3], against=None)))
    samples = _samples(2)
    found = ablate(ablation, _networks(rows[1:]), samples, CITYSCAPES19, "mine")
    assert "against" not in found["rows"][3] and "difference" not in found["rows"][3] and "gain" in found["rows"][3]
    kept = {"plain": {**found["rows"][2], "name": "plain", "kept": True}}
    alone = _ablation(bundle, rows=(rows[1], replace(rows[0], against=None)))
    found = ablate(alone, _networks([rows[1]]), samples, CITYSCAPES19, "mine", kept)
    assert found["rows"][1]["kept"] and "against" not in found["rows"][1]


def test_a_row_may_read_fewer_regions(bundle: str) -> None:
    rows = _ablation(bundle).rows
    ablation = _ablation(bundle, rows=(*rows[1:], replace(rows[3], name="one region", max_regions=1)))
    found = ablate(ablation, _networks(rows[1:]), _samples(2), CITYSCAPES19, "mine")
    ten, one = found["rows"][-2:]
    assert (ten["regions"], one["regions"]) == (10, 1)
    assert one["miou"] == ten["sweep"]["confident"][1] != ten["miou"] == ten["sweep"]["confident"][10]
    page = markdown({"recipe": "x.yaml", "ablation": ablation.model_dump(mode="json"), "sets": [found]})
    assert f"| one region | {one['miou']:.2f} | " in page
    assert "| 3 | confident |" in page and "| 4 | confident |" not in page  # one line serves both numbers


def test_a_row_may_read_a_larger_input(bundle: str) -> None:
    rows = (Row(name="own size", image=bundle), Row(name="twice the side", image=bundle, input_scale=2.0))
    found = ablate(_ablation(bundle, rows=rows), _networks(rows), _samples(2), CITYSCAPES19, "mine")
    with Engines.open(Path(bundle), EngineOptions(precision="float32")) as engines:
        for entry, scale in zip(found["rows"], (1.0, 2.0), strict=True):
            with Pipeline(with_scale(engines, scale), PipelineSettings(refine="never")) as pipeline:
                matrix = sum(confusion_matrix(s.labels, pipeline(s.image_bgr).labels, 19) for s in _samples(2))
            assert entry["miou"] == pytest.approx(100 * mean_iou(matrix))
    assert found["rows"][0]["miou"] != found["rows"][1]["miou"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{name: a, image: x, region: y}", "a region level goes with boxes"),
        ("{name: a, image: x, region: y, boxes: objectness}", "a detector with boxes: detector or objectness"),
        ("{name: a, image: x, region: y, boxes: detector}", "a detector with boxes: detector"),
        ("{name: a, image: x}, {name: a, image: x}", "expected each name once"),
        ("{name: a, image: x, against: b}", "which is no row before it"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(f"hard_classes: [pole]\nrows: [{rows}]\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "x.yaml", Ablation)


LADDERS = [*(CONFIG / "ablate").glob("*.yaml"), *(CONFIG / "train").glob("*/ladder.yaml")]


@pytest.mark.parametrize("path", sorted(LADDERS), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_ladders_give_the_command_that_makes_each_path(path: Path) -> None:
    ablation = load_recipe(path, Ablation)
    named = {p for row in ablation.rows for p in row.paths()}
    torchrun = r"(-m torch\.distributed\.run --standalone --nproc-per-node 8 )?"
    stage = rf"python {torchrun}-m training\.[\w.]+ (\S+) (--data DATA )?--out (\S+)"
    for path_made in (p for p in named if p.startswith("runs/")):
        made: set[str] = set()
        for command in ablation.train[path_made].split(" && "):
            parallel, recipe, _, out = re.fullmatch(stage, command).groups()  # type: ignore[union-attr]
            text = _whole_text(CONFIG.parent / recipe)
            assert bool(parallel) == ("of each of 8 processes" in text), f"{recipe}: its batch is not the command's"
            tree = read_recipe(CONFIG.parent / recipe)
            # What it reads is another path of the ladder, a file that ships, or made by a command before it.
            for key in ("start_from", "relam_from", "image", "region", "detector", "levels"):
                read = tree.get(key, "")
                assert read in {*made, *ablation.train, ""} or not read.startswith("runs/"), f"{recipe}: {key} {read}"
            made.add(out if out.endswith(".pt") else f"{out}/checkpoint.pt")
        assert path_made in made
    for name in ablation.hard_classes:
        CITYSCAPES19.id_of(name)


def _whole_text(recipe: Path) -> str:
    """A recipe's text with that of what it extends, comments and all."""
    text = recipe.read_text()
    bases = re.findall(r"[\w./]+\.yaml", (re.search(r"^extends: (.*)$", text, re.MULTILINE) or [""])[0])
    return text + "".join(_whole_text(recipe.parent / base) for base in bases)


def test_ablation_recipes_differ_in_the_model_only() -> None:
    names = ("lite_upernet", "lite_deform_head", "lite_deform", "lite_relam")
    rungs = [load_recipe(CONFIG / "train" / "ablation" / f"{name}.yaml", SegmenterRecipe) for name in names]
    assert all(replace(rung, model=rungs[0].model) == rungs[0] for rung in rungs)
    assert [rung.model.segmenter.deformable for rung in rungs] == [(), ("head",), ("fpn", "head"), ("fpn", "head")]
    assert [rung.model.relam is None for rung in rungs] == [True, True, True, False]


def test_predicted_regions_are_scored_by_low_confidence() -> None:
    labels, confidence = np.zeros((100, 200), np.uint8), np.full((100, 200), 255, np.uint8)
    labels[20:30, 20:26], labels[20:30, 150:156] = 5, 7
    confidence[:, 100:] = 51
    boxes, scores = predicted_regions(labels, confidence, [5, 7])
    np.testing.assert_array_equal(boxes, hard_regions(labels, [5, 7]))
    np.testing.assert_allclose(sorted(scores), [0.0, 0.8], atol=1e-6)
    assert scores[boxes[:, 0].argmax()] == scores.max()
    boxes, scores = predicted_regions(np.zeros_like(labels), confidence, [5])
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize("name", ["results", "results_test"])
def test_the_shipped_pages_match_the_figures(name: str, tmp_path: Path) -> None:
    docs = CONFIG.parent / "docs"
    (tmp_path / "images").mkdir()
    for picture in (docs / "images").glob("results_*.jpg"):
        (tmp_path / "images" / picture.name).touch()
    stored = Path("docs/data") / f"{name}.json"
    write_page(json.loads((CONFIG.parent / stored).read_text()), tmp_path / "page.md", stored)
    assert (tmp_path / "page.md").read_text() == (docs / f"{name}.md").read_text()


@pytest.mark.parametrize("name", ["lite", "lite_shipped"])
def test_the_shipped_figures_match_the_shipped_ladder(name: str) -> None:
    """Row names, commands and the note agree, so that a later run can keep rows by name."""
    file = "results.json" if name == "lite" else "results_test.json"
    stored = json.loads((CONFIG.parent / "docs" / "data" / file).read_text())
    ablation = load_recipe(CONFIG / "ablate" / f"{name}.yaml", Ablation)
    assert [row["name"] for row in stored["ablation"]["rows"]] == [row.name for row in ablation.rows]
    assert stored["ablation"]["note"] == ablation.note and stored["ablation"]["train"] == ablation.train
