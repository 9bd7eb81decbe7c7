# SPDX-License-Identifier: Apache-2.0
"""Evaluation: what is counted, by class and by part, and reading a frame at several scales or window by window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from tiny_bundle import image_level, write_tiny_bundle
from trees import write_image, write_label

torch = pytest.importorskip("torch")

from class_sets import BDD18, CAMVID11, CITYSCAPES19  # noqa: E402
from pipelines import open_pipeline  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from nightlab_core.data.datasets.paired import Sample  # noqa: E402
from nightlab_core.labels import ClassSet, to_class_set  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard, load_checkpoint, save_checkpoint  # noqa: E402
from nightlab_core.models.engine import torch_engines  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, Level, NightLabSettings, SegmenterSettings  # noqa: E402
from nightlab_core.runtime.pipeline import Pipeline, PipelineSettings  # noqa: E402
from training.evaluation import evaluate, levels  # noqa: E402
from training.evaluation.figures import difference, parts  # noqa: E402
from training.evaluation.predictor import open_checkpoint  # noqa: E402
from training.evaluation.sliding import TestTime, probabilities, slide  # noqa: E402

PLAIN = NightLabSettings(
    segmenter=SegmenterSettings(stages=5, channels=8, strides=(8, 16), deformable=()),
    relam=None,
    detector=DetectorSettings(channels=16, max_boxes=20),
    region_hw=(64, 64),
)


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


def test_windows_of_a_model_without_context_change_nothing() -> None:
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


def test_every_pixel_is_seen_and_counted_alike() -> None:
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


def test_a_checkpoint_reads_as_its_stages_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = PLAIN.build()
    card = ModelCard(name="tiny", hard_classes=("pole",), trained_on=(), licence="none", input_hw=(96, 128))
    save_checkpoint(tmp_path / "all.pt", model, PLAIN, card)
    frame = _frame(96, 128)
    settings = PipelineSettings(max_regions=4)
    found = open_checkpoint(tmp_path / "all.pt", settings, TestTime())(frame)
    model = load_checkpoint(tmp_path / "all.pt")[0]
    with Pipeline(torch_engines(model, PLAIN, card), settings) as pipeline:
        labels = pipeline(frame).labels
    assert found.labels is not None and (found.labels == labels).mean() > 0.999
    assert (found.labels != found.image_labels).any()

    crops = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    region_level, sizes = levels.open_region_level(tmp_path / "all.pt"), []
    forward = Level.forward

    def counted(self: Level, image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(Level, "forward", counted)
    in_parts, in_one = region_level.read(crops), model.region_level(torch.from_numpy(crops))
    assert sizes == [4, 4, 1, 9]
    for part, one in zip(in_parts, in_one, strict=True):
        assert (part == one.numpy()).mean() > 0.999
    assert [len(part) for part in region_level.read(crops[:0])] == [0, 0]

    recipe = {"level": "image", "model": PLAIN.model_dump(mode="json"), "input_hw": [96, 128]}
    torch.save({"model": model.image.state_dict(), "recipe": recipe, "step": 1}, tmp_path / "image.pt")
    alone = open_checkpoint(tmp_path / "image.pt", settings, TestTime())(frame)
    assert alone.labels is None
    np.testing.assert_array_equal(alone.image_labels, found.image_labels)
    with pytest.raises(ValueError, match="of another stage \\(image\\); expected the region level"):
        levels.open_region_level(tmp_path / "image.pt")
    with pytest.raises(ValueError, match="holds no region detector"):
        levels.open_detector(tmp_path / "image.pt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint or bundle"):
        levels.open_image_level(tmp_path / "none.pt")


def test_a_bundle_part_by_part_is_the_pipeline(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    labels, confidence = levels.open_image_level(bundle)(frame)
    np.testing.assert_array_equal(labels, image_level(frame)[0])
    boxes, scores = levels.open_detector(bundle)(frame)
    region_level = levels.open_region_level(bundle)
    regions = levels.read_regions(frame, boxes, scores, region_level, PipelineSettings().region_margin)
    with open_pipeline(bundle, precision="float32", settings=PipelineSettings(nms_iou=1.0)) as pipeline:
        result = pipeline(frame)
    np.testing.assert_allclose(result.boxes_xyxy, boxes, atol=1e-3)
    from training.evaluation.gains import PASTES

    np.testing.assert_array_equal(PASTES["confident"](labels, confidence, regions)[0], result.labels)
    assert region_level.read(np.zeros((0, 32, 48, 3), np.uint8))[0].shape == (0, 32, 48)
    assert region_level.read(np.zeros((23, 32, 48, 3), np.uint8))[0].shape == (23, 32, 48)  # more than a batch
    with pytest.raises(ValueError, match="is a bundle, which reads a frame once and whole"):
        levels.open_image_level(bundle, TestTime(flip=True))


def _constant(first: int, second: int | None) -> object:
    def predict(frame: np.ndarray) -> object:
        maps = [None if i is None else np.full(frame.shape[:2], i, np.uint8) for i in (first, second)]
        return SimpleNamespace(image_labels=maps[0], labels=maps[1])

    return predict


def _samples(classes: ClassSet = CITYSCAPES19) -> list[Sample]:
    """A dusk and a daylight frame of CamVid's names: left half building, right half road; a corner is unlabelled."""
    labels = np.full((10, 20), 2, np.uint8)
    labels[:, 10:] = 0
    labels[0, 0] = 255
    labels = to_class_set(labels, CITYSCAPES19, classes)
    dark, bright = np.full((10, 20, 3), 40, np.uint8), np.full((10, 20, 3), 200, np.uint8)
    return [Sample(dark, labels, "0001TP_1"), Sample(bright, labels, "Seq05VD_1")]


def test_figures_by_hand() -> None:
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
    alone = evaluate.evaluate(_constant(2, None), _samples(CAMVID11), CAMVID11, "camvid/test", CITYSCAPES19)  # type: ignore[arg-type]
    assert set(alone.figures()) == {"image_level_miou"} and alone.both_levels is None


def test_an_interval_needs_frames() -> None:
    six = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11) * 3, CAMVID11, "mine", CITYSCAPES19)  # type: ignore[arg-type]
    few = evaluate.evaluate(_constant(2, 0), _samples(CAMVID11), CAMVID11, "mine", CITYSCAPES19)  # type: ignore[arg-type]
    assert few.figures().keys() == six.figures().keys() - {"difference_low", "difference_high"}
    whole, few_whole = (difference(e.image_level, e.both_levels) for e in (six, few))  # type: ignore[arg-type]
    assert str(whole) == f"{whole.points:+.2f} [{whole.low:+.2f}, {whole.high:+.2f}]"
    assert str(few_whole) == f"{whole.points:+.2f} [too few frames]"
    assert [row["difference"]["low"] for row in few.report()["by_class"] if row["difference"]] == [None, None]


def test_parts_hold_every_frame_once() -> None:
    light = np.array([0.0, 0.014, 0.015, 0.05, 0.06, 0.3, 1.0])
    held = [part for name, _, part in parts("mine/val", ["x"] * 7, light) if name != "in the dark"]
    assert (np.sum(held, axis=0) == 1).all()


def test_tables_say_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    for second in (0, None):
        found = evaluate.evaluate(_constant(2, second), _samples(CITYSCAPES19), CITYSCAPES19, "mine", CITYSCAPES19)  # type: ignore[arg-type]
        evaluate.print_evaluation(found)
        shown = capsys.readouterr().out
        assert "absent" in shown and "mine, 2 frames" in shown and ("both levels" in shown) == (second == 0)


def test_bdd18_is_judged_without_trains() -> None:
    found = evaluate.evaluate(_constant(16, 18), _samples(BDD18), BDD18, "bdd100k_night/val", CITYSCAPES19)  # type: ignore[arg-type]
    assert found.image_level.shape == (2, 18, 19) and found.image_level[:, :, 18].sum() == 2 * 199


def test_user_errors_are_one_line(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    command = [
        sys.executable,
        "-m",
        "training.evaluation.evaluate",
        str(bundle),
        "--data",
        str(tmp_path),
        "--set",
        "mine",
        "--flip",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 1 and "reads a frame once and whole" in done.stderr and "Traceback" not in done.stderr


def test_a_part_of_a_data_set_is_measured_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "nightcity/images/val/Rome_1.png", (64, 96))
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 11], (64, 96))
    command = ["evaluate", str(write_tiny_bundle(tmp_path / "bundle"))]
    command += ["--data", str(tmp_path), "--set", "nightcity/val", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "expected 1299" in (said := capsys.readouterr().err) and "--partial to a command" in said
    monkeypatch.setattr(sys, "argv", [*command, "--partial"])
    evaluate.main()
    assert json.loads((tmp_path / "figures.json").read_text())["nightcity/val"]["frames"] == 1
