# SPDX-License-Identifier: Apache-2.0
"""Which classes are hard, by hand, and which sets may not decide it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from trees import write_image, write_label

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CAMVID11, CITYSCAPES19  # noqa: E402
from tiny_training import tiny_settings  # noqa: E402

from nightlab_core.data.datasets.paired import Sample  # noqa: E402
from nightlab_core.labels import to_class_set  # noqa: E402
from training.evaluation import hard_classes as hc  # noqa: E402
from training.loop import LoopSettings  # noqa: E402
from training.sources import SourceSettings  # noqa: E402
from training.stages.segmenter import SegmenterRecipe  # noqa: E402


def test_a_class_is_hard_if_its_mean_iou_over_the_sets_is_below_half() -> None:
    absent = np.full(19, np.nan)
    first, second = absent.copy(), absent.copy()
    first[[0, 5, 7]] = 0.9, 0.5, 0.6
    second[[5, 7]] = 0.4, 0.4
    hard, mean = hc.hard_classes({"a": first, "b": second}, CITYSCAPES19.names)
    assert hard == ["pole"]
    assert mean[0] == 0.9 and mean[5] == pytest.approx(0.45) and mean[7] == 0.5 and np.isnan(mean[18])
    assert hc.hard_classes({"a": first, "b": second}, CITYSCAPES19.names, 0.51)[0] == ["pole", "traffic sign"]


def test_a_camvid_class_gives_its_iou_to_every_class_that_maps_to_it() -> None:
    labels = np.full((2, 4), 7, np.uint8)
    labels[1] = 0
    seen = labels.copy()
    seen[0] = [6, 2, 2, 2]  # of four sign pixels one is called a light, which CamVid takes for a sign; three a building
    sample = Sample(np.zeros((2, 4, 3), np.uint8), to_class_set(labels, CITYSCAPES19, CAMVID11), "a")
    segment = lambda image: SimpleNamespace(image_labels=seen)  # noqa: E731
    found = hc.class_iou(segment, [sample], CAMVID11, "x", CITYSCAPES19)  # type: ignore[arg-type]
    assert found[6] == found[7] == 0.25 and found[0] == 1 and np.isnan(found[10])


@pytest.mark.parametrize("name", ["camvid/test", "test", "mine/test_2", "night-test"])
def test_a_test_set_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is a test set"):
        hc.refuse_test(name)


def test_other_names_are_not_test_sets() -> None:
    for name in ("camvid/val", "latest/val", "contest"):
        hc.refuse_test(name)


def test_sets_used_in_training_are_refused(tmp_path: Path) -> None:
    for folder in ("mine/train", "mine/val"):
        write_image(tmp_path / folder / "images/a.png")
        write_label(tmp_path / folder / "labels/a.png", [0, 5])
    held_out, trained = (tmp_path / "mine" / s / "images/a.png" for s in ("val", "train"))
    rng = np.random.default_rng(0)
    cv2.imwrite(str(held_out), rng.integers(0, 256, (90, 160, 3), np.uint8))  # another picture of that name
    sources = [
        SourceSettings(kind="folder", folder="mine/train", weight=1),
        SourceSettings(kind="rendered", count=2, weight=1),
    ]
    seen = hc.training_images(sources, tmp_path, CITYSCAPES19)
    assert seen == [trained]
    hc.refuse_trained_on("mine/val", [held_out], seen)
    shutil.copy(trained, held_out)  # a copy under another folder is the same frame
    with pytest.raises(ValueError, match=r"trained on 1 of its 1 frames, such as a.png"):
        hc.refuse_trained_on("mine/val", [held_out], seen)
    picture = cv2.resize(rng.integers(0, 80, (9, 16, 3), np.uint8), (160, 90), interpolation=cv2.INTER_CUBIC)
    smaller = tmp_path / "unlabelled/a.jpg"  # so is a smaller one
    smaller.parent.mkdir()
    cv2.imwrite(str(held_out), picture)
    cv2.imwrite(str(smaller), cv2.resize(picture, (80, 45), interpolation=cv2.INTER_AREA))
    with pytest.raises(ValueError, match="trained on 1 of its 1 frames"):
        hc.refuse_trained_on("mine/val", [held_out], [smaller])
    unlabelled = [SourceSettings(kind="unlabelled", folder="mine/val/images", weight=1)]
    assert hc.training_images(unlabelled, tmp_path, CITYSCAPES19) == [held_out]


def test_the_command_writes_a_list_for_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, folder in enumerate(("mine/train", "mine/val", "mine/test")):
        write_image(tmp_path / folder / f"images/{i}.png", (64, 64))
        write_label(tmp_path / folder / f"labels/{i}.png", [0, 5, 11], (64, 64))
    # The pictures are of one colour, so equal names would make them copies.
    settings = tiny_settings()
    source = SourceSettings(kind="folder", folder="mine/train", weight=1)
    loop = LoopSettings(steps=1, batch_size=1, learning_rate=1)
    recipe = SegmenterRecipe(model=settings, level="image", loop=loop, sources=(source,), input_hw=(64, 64))
    checkpoint = tmp_path / "checkpoint.pt"
    model = settings.build_level().state_dict()
    torch.save({"model": model, "average": None, "step": 1, "recipe": recipe.model_dump(mode="json")}, checkpoint)

    def run(name: str) -> None:
        out = str(tmp_path / "out" / "hard.yaml")
        command = ["hard_classes", str(checkpoint), "--data", str(tmp_path), "--set", name, "--out", out]
        monkeypatch.setattr(sys, "argv", command)
        hc.main()

    run("mine/val")
    written = yaml.safe_load((tmp_path / "out" / "hard.yaml").read_text())
    assert set(written["iou"]) == {"road", "pole", "person"}
    assert written["hard_classes"] == [n for n in CITYSCAPES19.names if written["iou"].get(n, 1) < 0.5]
    assert len(written["hard_classes"]) >= 2  # fresh weights know nothing
    for name, why in (("mine/test", "is a test set"), ("mine/train", "was trained on 1 of its 1 frames")):
        with pytest.raises(SystemExit):
            run(name)
        assert why in capsys.readouterr().err
