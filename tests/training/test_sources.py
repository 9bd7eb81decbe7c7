# SPDX-License-Identifier: Apache-2.0
"""Where training and evaluation find labelled images, and which of them stay in memory."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError
from trees import write_image, write_label

torch = pytest.importorskip("torch")

from class_sets import BDD18, CAMVID11, CITYSCAPES19  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.data.datasets.paired import DatasetError  # noqa: E402
from training import data, sources  # noqa: E402
from training.evaluation import evaluate  # noqa: E402
from training.recipes import read_recipe  # noqa: E402
from training.stages import pseudo  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One frame of NightCity, of BDD100K, of CamVid, and of one's own."""
    write_image(tmp_path / "nightcity/images/val/Rome_1.png")
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 26])
    write_image(tmp_path / "bdd100k/images/10k/val/x.jpg")
    write_label(tmp_path / "bdd100k/labels/sem_seg/masks/val/x.png", [0, 13])
    (tmp_path / "bdd100k/night.txt").write_text("val/x\n")
    for folder in ("camvid/val", "mine/val"):
        write_image(tmp_path / folder / "images/a.png")
        write_label(tmp_path / folder / "labels/a.png", [3, 8])
    return tmp_path


def test_small_sources_stay_in_memory_and_large_ones_are_read_on_demand(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.SourceSettings(kind="nightcity", folder="nightcity", split="val", complete=False, weight=1)
    kept = sources.load_source(source, root, CITYSCAPES19)
    assert isinstance(kept, list)
    labels = kept[0].labels
    # Whoever draws from it too, however often and dark, is given the same pictures.
    assert sources.load_source(replace(source, weight=2.0, darken=0.5), root, CITYSCAPES19) is kept
    assert sources.load_source(replace(source, pattern="*_1"), root, CITYSCAPES19) is not kept
    del kept
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 2 * 4 * 4 - 1)  # one frame is 2x4 pixels of 3 + 1 bytes
    lazy = sources.load_source(source, root, CITYSCAPES19)
    assert isinstance(lazy, sources.SelectedFrames)
    np.testing.assert_array_equal(lazy[0].labels, labels)
    stream = data.FrameStream([source], root, 3, CITYSCAPES19, crop_hw=(4, 4), input_hw=(4, 8), scale=(1.0, 1.0))
    image, labels = stream[5]
    assert image.shape == (3, 4, 4) and set(labels.unique().tolist()) <= {0, 13, 255}


def test_sources_are_checked_unless_they_are_marked_incomplete(root: Path) -> None:
    with pytest.raises(DatasetError, match="expected 1299"):
        sources.load_source(
            sources.SourceSettings(kind="nightcity", folder="nightcity", split="val", weight=1), root, CITYSCAPES19
        )
    with pytest.raises(ValidationError, match="nightcity_plus"):
        sources.SourceSettings(kind="nightcity+", weight=1)  # type: ignore[arg-type]


def test_evaluation_finds_each_set_by_its_name(root: Path) -> None:
    samples, classes = evaluate.open_set(root, "camvid/val")
    assert classes is CAMVID11 and [s.name for s in samples] == ["a"]
    samples, classes = evaluate.open_set(root, "mine/val")
    assert classes is CITYSCAPES19 and samples[0].labels[0, 0] == 3
    with pytest.raises(DatasetError, match=r"nightcity.NightCity-plus.val is not a folder"):
        evaluate.open_set(root, "nightcity_plus/val")
    samples, classes = evaluate.open_set(root, "bdd100k_night/val")
    assert classes is BDD18 and [s.name for s in samples] == ["x"]


def test_every_sample_is_distorted_in_its_colours_only(root: Path) -> None:
    source = sources.SourceSettings(kind="folder", folder="mine", split="val", weight=1)
    samples = data.Samples([source], root, 0, CITYSCAPES19)
    drawn = [samples.draw(i) for i in range(8)]
    assert all(
        (image != sample.image_bgr).any() and image.shape == sample.image_bgr.shape for _, sample, image, _ in drawn
    )
    assert len({image.mean(axis=(0, 1)).round(1).tobytes() for _, _, image, _ in drawn}) == 8


@pytest.fixture
def undistorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.transforms, "photometric", lambda image, rng: image)


def paste_stream(root: Path, levels: tuple[int, int], share: float, windows: bool = False) -> data.Stream:
    """Two frames of 8 x 8, each of one grey level: the first all road, the second with a rider in its middle."""
    for name, level, rider in (("a", levels[0], False), ("b", levels[1], True)):
        labels = np.zeros((8, 8), np.uint8)
        labels[2:6, 2:6] = 12 if rider else 0
        for folder, picture in (("images", np.full((8, 8, 3), level, np.uint8)), ("labels", labels)):
            (root / "two" / folder).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(root / "two" / folder / f"{name}.png"), picture)
    source = sources.SourceSettings(kind="folder", folder="two", weight=1)
    if windows:
        return data.RegionStream([source], root, 0, CITYSCAPES19, (16, 16), [12], paste_ids=[12], paste_share=share)
    return data.FrameStream(
        [source], root, 0, CITYSCAPES19, (8, 8), (8, 8), (1.0, 1.0), paste_ids=[12], paste_share=share
    )


@pytest.mark.usefixtures("undistorted")
@pytest.mark.parametrize("windows", [False, True])
def test_objects_of_another_crop_are_pasted_at_their_position(tmp_path: Path, windows: bool) -> None:
    plain, pasting = (paste_stream(tmp_path, (100, 120), share, windows) for share in (0.0, 1.0))
    pasted_into = 0
    for i in range(30):
        (image, labels), (mixed, mixed_labels) = plain[i], pasting[i]
        donor, donor_labels = plain.crop(i, 1)[1:3]
        rider = torch.from_numpy(donor_labels == 12)
        assert torch.equal(mixed_labels, labels.where(~rider, 12))
        assert torch.equal(mixed, image.where(~rider, data.to_tensors(donor, donor_labels)[0]))
        assert all(torch.equal(a, b) for a, b in zip(pasting[i], (mixed, mixed_labels), strict=True))  # decided by i
        pasted_into += bool((labels != mixed_labels).any())
    assert pasted_into > 3


@pytest.mark.usefixtures("undistorted")
def test_day_objects_are_darkened_for_night_and_night_objects_are_not_pasted_into_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.transforms, "darken", lambda image, rng: image // 10)
    for levels, is_pasted in (((8, 200), True), ((200, 8), False)):
        stream = paste_stream(tmp_path / str(is_pasted), levels, 1.0)
        frames = [(i, stream.crop(i)[1:3], stream.crop(i, 1)[1:3]) for i in range(40)]
        crossing = [(i, own) for i, own, donor in frames if 12 not in own[1] and 12 in donor[1]]
        assert len(crossing) > 3
        for i, _ in crossing:
            mixed, labels = stream[i]
            assert (12 in labels) is is_pasted
            assert (mixed[:, labels == 12] * 255 == 20).all()


def test_frames_that_a_model_is_measured_on_are_left_out_of_any_source(tmp_path: Path) -> None:
    for name in ("a_1", "a_2", "b_1", "b_2"):
        write_image(tmp_path / f"night/{name}.png")
        write_image(tmp_path / f"mine/images/{name}.png")
        write_label(tmp_path / f"mine/labels/{name}.png", [0])
    write_image(tmp_path / "val/images/a_2.jpg")
    write_image(tmp_path / "val2/images/b_2.jpg")
    for kind, folder in (("unlabelled", "night"), ("folder", "mine")):

        def drawn(kind: str = kind, folder: str = folder, **changes: object) -> list[str]:
            source = sources.SourceSettings(kind=kind, folder=folder, weight=1, **changes)  # type: ignore[arg-type]
            return [sample.name for sample in sources.load_source(source, tmp_path, CITYSCAPES19)]

        assert drawn() == ["a_1", "a_2", "b_1", "b_2"]
        assert drawn(leave_out=("val/images", "val2/images")) == ["a_1", "b_1"]
        # A part to train the levels on, and the other part for HDM.
        assert drawn(leave_out_pattern="b_*") == drawn(pattern="a_*") == ["a_1", "a_2"]
        assert drawn(leave_out_pattern="b_*", leave_out="val/images") == ["a_1"]  # one folder, as old checkpoints have
        with pytest.raises(DatasetError, match="none of its 4 frames"):
            drawn(pattern="c_*")
        with pytest.raises(DatasetError, match="is not a folder"):
            drawn(leave_out=("missing",))


@pytest.mark.parametrize("recipe", ["relam_image", "lite_joint"])
def test_shipped_recipes_leave_the_measured_night_frames_out(recipe: str) -> None:
    tree = read_recipe(Path(__file__).parents[2] / "config" / "train" / f"{recipe}.yaml")
    night = tree["night"] if "night" in tree else tree["image_light"]["night"]
    held_out = ["nightcoarse/val/images", "nightcoarse/val2/images"]
    assert [source["leave_out"] for source in night] == [held_out]
    assert list(pseudo.HELD_OUT) == held_out


def test_windows_have_the_given_margin_and_may_ignore_instances(frames: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.SourceSettings(kind="folder", folder="mine", weight=1.0)
    cut, margins = data.regions.context_boxes, []

    def context_boxes(boxes: np.ndarray, size_hw: tuple[int, int], margin: float, aspect: float) -> np.ndarray:
        margins.append(margin)
        return cut(boxes, size_hw, margin, aspect)

    monkeypatch.setattr(data.regions, "context_boxes", context_boxes)
    wanted = {"margin": (0.2, 0.2), "elsewhere": 0.0, "instance_share": 0.0}
    stream = data.RegionStream([source], frames, 0, CITYSCAPES19, (32, 32), [5, 11, 13], **wanted)  # type: ignore[arg-type]
    labels = stream.samples[0][0].labels
    regions = data.hard_regions(labels, [5, 11, 13])
    for i in range(10):
        stream.crop(i)
        window = stream._box(labels, np.random.default_rng(i))
        assert any(np.array_equal(window, region) for region in regions)
    assert margins == [0.2] * 10


def test_samples_depend_on_seed_and_index_only(frames: Path) -> None:
    own = [sources.SourceSettings(kind="folder", folder="mine", weight=1.0, darken=0.5)]
    crops = data.FrameStream(own, frames, 0, CITYSCAPES19, (64, 96), (96, 128), (0.8, 1.2))
    regions = data.RegionStream(own, frames, 0, CITYSCAPES19, (64, 64), [5, 11, 13])
    boxes = data.BoxStream(own, frames, 0, CITYSCAPES19, (64, 96), (96, 128), (0.8, 1.2), hard_ids=[5, 11, 13])
    for stream, shape in ((crops, (64, 96)), (regions, (64, 64))):
        image, labels = stream[7]
        assert image.shape == (3, *shape) and labels.shape == shape and image.min() >= 0 and image.max() <= 1
        assert set(labels.unique().tolist()) <= {*range(19), 255}
        assert torch.equal(stream[7][0], image) and not torch.equal(stream[8][0], image)
    found = [boxes[i][1] for i in range(6)]
    assert any(len(b) for b in found) and all(b.shape[1] == 4 for b in found)
    assert all(torch.equal(boxes[i][2], crops[i][1] != 255) for i in range(6))  # where the same crops are labelled
