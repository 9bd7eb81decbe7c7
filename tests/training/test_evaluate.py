# SPDX-License-Identifier: Apache-2.0
"""Evaluation: what is counted, by class and by part, and reading a frame at several scales or window by window."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")

from tiny_bundle import write_tiny_bundle
from trees import write_image, write_label

torch = pytest.importorskip("torch")

from class_sets import BDD18, CAMVID11, CITYSCAPES19  # noqa: E402
from pipelines import open_pipeline  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.datasets.paired import DatasetError, Sample  # noqa: E402
from nightlab_core.labels import ClassSet, to_class_set  # noqa: E402
from nightlab_core.models.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from nightlab_core.models.engine import torch_engines  # noqa: E402
from nightlab_core.runtime.bundle import MANIFEST_NAME, EngineFile, load_bundle, sha256_of  # noqa: E402
from nightlab_core.runtime.light import light_level  # noqa: E402
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings  # noqa: E402
from nightlab_core.runtime.regions import network_size_hw  # noqa: E402
from nightlab_core.version import package_version  # noqa: E402
from training import models, networks  # noqa: E402
from training.evaluation import evaluate  # noqa: E402
from training.evaluation.figures import difference, parts  # noqa: E402
from training.models import open_model  # noqa: E402
from training.sliding import TestTime, probabilities, slide  # noqa: E402


class _Colours(nn.Module):
    """Logits at half the size that depend on the pixels alone: three classes, the brightest channel wins."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape[-2:]))
        return self.sharpness * nn.functional.avg_pool2d(image, 2)


def _frame(height: int = 60, width: int = 80) -> np.ndarray:
    """Smooth colours that differ from left to right."""
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def test_sliding_windows_do_not_change_a_model_without_context() -> None:
    model, image = _Colours(), torch.rand(1, 3, 64, 96)
    whole = nn.functional.interpolate(model(image), size=(64, 96), mode="bilinear", align_corners=False)
    for window, stride in (((32, 32), 1.0), ((64, 32), 0.5), ((200, 200), 0.5)):
        slid = slide(model, image, window, stride, 32)
        inner = np.s_[..., 1:-1, 1:-1]
        assert slid.shape == whole.shape
        if window == (200, 200):
            torch.testing.assert_close(slid, whole)  # no larger than the image
        else:  # windows' own edges are interpolated with nothing beyond them
            assert (slid[inner] - whole[inner]).abs().median() < 0.01
    assert set(model.sizes) == {(64, 96), (32, 32), (64, 32)}


def test_sliding_windows_weight_every_pixel_equally() -> None:
    model = _Colours()
    flat = torch.full((1, 3, 64, 100), 0.5)
    torch.testing.assert_close(slide(model, flat, (32, 48), 2 / 3, 16), torch.full((1, 3, 64, 100), 4.0))


def test_scales_and_mirror_images_are_averaged() -> None:
    model, frame = _Colours(), _frame()
    plain = probabilities(model, frame, (64, 96), 32, TestTime())
    assert plain.shape == (3, 60, 80) and torch.allclose(plain.sum(0), torch.ones(60, 80), atol=1e-5)
    model.sizes.clear()
    many = probabilities(model, frame, (64, 96), 32, TestTime(scales=(0.5, 1.0, 1.5), flip=True))
    assert len(model.sizes) == 6 and len(set(model.sizes)) == 3
    # The model has no left or right and no context: what it says stays about the same.
    assert (many.argmax(0) == plain.argmax(0)).float().mean() > 0.95
    flipped = probabilities(model, frame[:, ::-1].copy(), (64, 96), 32, TestTime(scales=(0.5, 1.0, 1.5), flip=True))
    torch.testing.assert_close(flipped.flip(-1), many, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="each once"):
        TestTime(scales=(1.0, 1.0))


def test_a_checkpoint_is_segmented_by_the_pipeline(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, settings, card = load_checkpoint(tiny_checkpoint)
    frame = _frame(64, 96)
    with open_model(tiny_checkpoint, PipelineSettings(max_regions=4)) as opened:
        assert opened.both_levels
        found = opened(frame)
    with Pipeline(torch_engines(model, settings, card), PipelineSettings(max_regions=4)) as pipeline:
        expected = pipeline(frame)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.image_labels, expected.image_labels)
    assert (found.labels != found.image_labels).any()

    recipe = {"level": "image", "model": settings.model_dump(mode="json"), "input_hw": [64, 96]}
    stage = tmp_path / "image.pt"
    torch.save({"model": model.image.state_dict(), "recipe": recipe, "step": 1}, stage)
    with open_model(stage) as alone:
        assert not alone.both_levels
        result = alone(frame)
    np.testing.assert_array_equal(result.image_labels, found.image_labels)
    np.testing.assert_array_equal(result.labels, result.image_labels)
    with pytest.raises(ValueError, match=r"of another stage \(image\); expected the region level"):
        networks.open_region(stage)
    with pytest.raises(ValueError, match="holds no region detector"):
        networks.open_hardness(stage)
    with pytest.raises(FileNotFoundError, match="no such checkpoint or bundle"):
        networks.open_image(tmp_path / "none.pt")


def test_logits_of_a_checkpoint_are_enlarged_to_the_frame(tiny_checkpoint: Path) -> None:
    """The frame is larger than the network's input: labels would have coarse borders."""
    model, settings, _ = load_checkpoint(tiny_checkpoint)
    frame = _frame(128, 192)
    with open_model(tiny_checkpoint) as opened:
        found = opened(frame).image_labels
    expected = probabilities(model.image, frame, (64, 96), settings.build_level().segmenter.multiple, TestTime())
    np.testing.assert_array_equal(found, expected.argmax(0).numpy())


def test_the_networks_of_a_bundle_give_what_its_pipeline_gives(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    with open_pipeline(bundle, precision="float32") as pipeline:
        opened = networks.open_image(bundle), networks.open_hardness(bundle), networks.open_region(bundle)
        with models.Model(*opened) as model:
            for size_hw in ((64, 96), (50, 120)):
                frame = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
                expected, found = pipeline(frame), model(frame)
                for name in ("labels", "confidence", "image_labels", "boxes_xyxy", "scores", "refined"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    with pytest.raises(ValueError, match="is a bundle, which reads a frame once and whole"):
        networks.open_image(bundle, TestTime(flip=True))


def test_the_detector_reads_at_its_own_size_if_the_card_has_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model, settings, card = load_checkpoint(tiny_checkpoint)
    save_checkpoint(tmp_path / "own.pt", model, settings, replace(card, hardness_hw=(32, 64)))
    assert networks.open_hardness(tmp_path / "own.pt").input_hw == (32, 64)
    assert networks.open_hardness(tiny_checkpoint).input_hw == card.input_hw


def test_a_cached_engine_runs_each_crop_once(tmp_path: Path) -> None:
    network = networks.open_region(write_tiny_bundle(tmp_path)).engine
    cached, read = models.CachedEngine(network), []
    cached.engine = lambda crops: (read.append(len(crops)), network(crops=crops))[1]  # type: ignore[assignment]
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    first = cached(crops=crops[:2])
    again = cached(crops=crops[[2, 0]])
    np.testing.assert_array_equal(again["labels"][1], first["labels"][0])
    np.testing.assert_array_equal(again["labels"], network(crops=crops[[2, 0]])["labels"])
    assert cached.last_output is again
    cached.clear()
    cached(crops=crops[:1])
    assert read == [2, 1, 1]


def test_a_working_size_that_is_not_a_multiple_keeps_its_area() -> None:
    network = networks.Network(models.GivenBoxes(), (720, 1280), 32)
    file = EngineFile(file="x", **network.size_for((720, 1280)))
    assert file.input_hw[0] * file.input_hw[1] == 720 * 1280
    assert file.network_hw((720, 1280)) == network_size_hw((720, 1280), (720, 1280), 32)


def _constant(first: int, second: int) -> object:
    def predict(frame: np.ndarray) -> object:
        maps = [np.full(frame.shape[:2], i, np.uint8) for i in (first, second)]
        half = np.full(frame.shape[:2], 51, np.uint8)  # the left half with a confidence of 1, the right one of 0.2
        half[:, : frame.shape[1] // 2] = 255
        return SimpleNamespace(
            image_labels=maps[0], labels=maps[1], light_level=light_level(frame), image_confidence=half, confidence=half
        )

    return predict


def _samples(classes: ClassSet = CITYSCAPES19) -> list[Sample]:
    """A dusk and a daylight frame of CamVid's names: left half building, right half road; a corner is unlabelled."""
    labels = np.full((10, 20), 2, np.uint8)
    labels[:, 10:] = 0
    labels[0, 0] = 255
    labels = to_class_set(labels, CITYSCAPES19, classes)
    dark, bright = np.full((10, 20, 3), 40, np.uint8), np.full((10, 20, 3), 200, np.uint8)
    return [Sample(dark, labels, "0001TP_1"), Sample(bright, labels, "Seq05VD_1")]


def test_figures_equal_hand_computed_values() -> None:
    found = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11), CAMVID11, "camvid/test", CITYSCAPES19)  # type: ignore[arg-type]
    # Building everywhere: 99 of 199 labelled pixels; then road everywhere: 100 of 199.
    report = found.report()
    assert report["frames"] == 2
    assert report["image_level_miou"] == pytest.approx(100 * (99 / 199) / 2)
    assert report["both_levels_miou"] == pytest.approx(100 * (100 / 199) / 2)
    by_class = {row["name"]: row for row in report["by_class"]}
    assert by_class["building"]["first"] == pytest.approx(100 * 99 / 199) and by_class["building"]["second"] == 0
    assert by_class["car"]["first"] is None and by_class["car"]["difference"] is None
    by_part = {(row["name"], row["span"]): row["frames"] for row in report["by_part"]}
    assert by_part == {
        ("dusk", "0001TP_*"): 1,
        ("daylight", "Seq05VD_*"): 1,
        ("dark", "light 0.015 to 0.03"): 1,
        ("daylight", "light 0.12 and above"): 1,
        ("in the dark", "light below 0.06"): 1,
    }
    json.dumps(report, allow_nan=False)
    alone = evaluate.evaluate(_constant(2, 2), _samples(CAMVID11), CAMVID11, "camvid/test", CITYSCAPES19, False)  # type: ignore[arg-type]
    assert set(alone.figures()) == {"image_level_miou", "image_level_uiou"} and alone.both_levels is None
    assert set(alone.report()["uiou"]) == {"image_level"}


def test_uiou_and_calibration_by_hand() -> None:
    found = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11), CAMVID11, "camvid/test", CITYSCAPES19)  # type: ignore[arg-type]
    report = found.report()
    # Image level: building everywhere. From a threshold of 0.2 on, the 100 wrong pixels are invalid: 99 of 99, and
    # 0 of road. Both levels: road everywhere, and what is right in it becomes invalid.
    assert report["image_level_uiou"] == report["uiou"]["image_level"]["best"] == pytest.approx(50)
    assert report["uiou"]["image_level"]["threshold"] == pytest.approx(0.2)
    assert report["both_levels_uiou"] == pytest.approx(report["both_levels_miou"])
    assert report["uiou"]["both_levels"]["threshold"] == 0
    # 99 pixels of confidence 1 and 100 of 0.2: the first right and the second wrong, or the other way round.
    errors = {row["name"]: (row["image_level"], row["both_levels"]) for row in report["calibration"]}
    expected = (100 * 100 * 0.2 / 199, 100 * (99 * 1 + 100 * 0.8) / 199)
    assert set(errors) == {"all", "dusk", "daylight", "dark", "in the dark"}
    assert all(values == pytest.approx(expected) for values in errors.values())


def test_a_confidence_interval_needs_several_frames() -> None:
    six = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11) * 3, CAMVID11, "mine", CITYSCAPES19)  # type: ignore[arg-type]
    few = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11), CAMVID11, "mine", CITYSCAPES19)  # type: ignore[arg-type]
    assert few.figures().keys() == six.figures().keys() - {"difference_low", "difference_high"}
    whole, few_whole = (difference(e.image_level, e.both_levels) for e in (six, few))  # type: ignore[arg-type]
    assert str(whole) == f"{whole.points:+.2f} [{whole.low:+.2f}, {whole.high:+.2f}]"
    assert str(few_whole) == f"{whole.points:+.2f} [too few frames]"
    assert [row["difference"]["low"] for row in few.report()["by_class"] if row["difference"]] == [None, None]


def test_every_frame_is_in_one_part() -> None:
    light = np.array([0.0, 0.014, 0.015, 0.05, 0.06, 0.3, 1.0])
    held = [part for name, _, part in parts("mine/val", ["x"] * 7, light) if name != "in the dark"]
    assert (np.sum(held, axis=0) == 1).all()


def test_tables_mark_missing_values(capsys: pytest.CaptureFixture[str]) -> None:
    for both in (True, False):
        found = evaluate.evaluate(_constant(2, 0), _samples(), CITYSCAPES19, "mine", CITYSCAPES19, both)  # type: ignore[arg-type]
        evaluate.print_evaluation(found)
        shown = capsys.readouterr().out
        assert "absent" in shown and "mine, 2 frames" in shown and ("both levels" in shown) == both
        assert "mean UIoU, best threshold" in shown and "calibration error, in the dark (1 frames)" in shown


def test_bdd18_is_evaluated_without_trains() -> None:
    found = evaluate.evaluate(_constant(16, 18), _samples(BDD18), BDD18, "bdd100k_night/val", CITYSCAPES19)  # type: ignore[arg-type]
    assert found.image_level.shape == (2, 18, 19) and found.image_level[:, :, 18].sum() == 2 * 199


def test_options_that_do_not_fit_the_model_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    for test_time in (TestTime(flip=True), TestTime(scales=(1.0, 2.0))):
        with pytest.raises(ValueError, match="reads a frame once and whole"):
            evaluate.evaluate_model(bundle, tmp_path, ["mine"], test_time=test_time)
    with pytest.raises(ValueError, match=r"nightlab\.pt is not a bundle; expected the folder of a bundle"):
        evaluate.evaluate_model(tiny_checkpoint, tmp_path, ["mine"], record_figures=True)


def test_part_of_a_data_set_is_evaluated_on_request(tmp_path: Path) -> None:
    write_image(tmp_path / "nightcity/images/val/Rome_1.png", (64, 96))
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 11], (64, 96))
    bundle, figures = write_tiny_bundle(tmp_path / "bundle"), tmp_path / "figures.json"
    sha256 = sha256_of(bundle / MANIFEST_NAME)  # before the figures are recorded there
    with pytest.raises(DatasetError, match=r"expected 1299.*--partial"):
        evaluate.evaluate_model(bundle, tmp_path, ["nightcity/val"], json_path=figures)
    found = evaluate.evaluate_model(
        bundle, tmp_path, ["nightcity/val"], partial=True, json_path=figures, record_figures=True
    )
    written = json.loads(figures.read_text())["nightcity/val"]
    assert written["frames"] == 1
    assert (written["version"], written["model"], written["engine"]) == (package_version(), "bundle", "openvino")
    assert written["sha256"] == sha256
    measured = round(found["nightcity/val"].figures()["both_levels_miou"], 2)
    assert load_bundle(bundle).manifest.accuracy["nightcity_val_both_levels_miou"] == measured
