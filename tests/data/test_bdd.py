# SPDX-License-Identifier: Apache-2.0
"""BDD100K's layouts, and the list of its night frames as the command writes it."""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
from trees import write_image, write_label

from nightlab_core.data.datasets import bdd, bdd_night
from nightlab_core.data.datasets.bdd import bdd100k, bdd100k_day, bdd100k_night
from nightlab_core.data.datasets.bdd_night import read_time_of_day
from nightlab_core.data.datasets.paired import DatasetError

needs_ijson = pytest.mark.skipif(importlib.util.find_spec("ijson") is None, reason="ijson is not installed")
STEMS = {"train": ["0a0a0b1a-7c39d841", "00aad4a0-ee8135fe"], "val": ["81d5165d-fcfc6c67", "90d5f9b7-00000000"]}
NIGHT = ["train/00aad4a0-ee8135fe", "val/81d5165d-fcfc6c67"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two frames a split, the second release's layout."""
    monkeypatch.setattr(bdd, "FRAMES", {"train": 2, "val": 2})
    for split, stems in STEMS.items():
        for stem in stems:
            write_image(tmp_path / "images/10k" / split / f"{stem}.jpg")
            write_label(tmp_path / "labels/sem_seg/masks" / split / f"{stem}.png", [0, 10, 13, 16, 255])
    return tmp_path


def _write_json(path: Path, times: dict[str, str | None]) -> Path:
    frames = [{"name": f"{s}.jpg", "attributes": {"weather": "clear", "timeofday": t}} for s, t in times.items()]
    path.write_text(json.dumps(frames))
    return path


def _list_night(*arguments: object) -> str:
    """Run the command in this process, and return its output. Raises SystemExit with its error."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", ["bdd_night", *map(str, arguments)])
        bdd_night.main()
    return output.getvalue()


def test_train_ids_are_read_as_they_are(root: Path) -> None:
    (root / "images/10k/train/no-mask.jpg").write_bytes(b"")  # the older downloads hold such images
    samples = list(bdd100k(root, "train"))
    assert [s.name for s in samples] == STEMS["train"]
    assert samples[0].labels.ravel().tolist() == [0, 10, 13, 16, 255, 0, 10, 13]


def test_the_first_release(root: Path) -> None:
    (root / "seg").mkdir()
    (root / "images/10k").rename(root / "seg/images")
    (root / "labels/sem_seg/masks").rename(root / "seg/labels")
    for mask in sorted((root / "seg/labels").rglob("*.png")):
        mask.rename(mask.with_name(f"{mask.stem}_train_id.png"))
    assert [s.name for s in bdd100k(root, "val")] == STEMS["val"]


def test_100k_images_with_a_mask_are_found_in_any_folder(root: Path) -> None:
    (root / "images/100k").mkdir()
    (root / "images/10k/val").rename(root / "images/100k/test")
    (root / "images/10k/train").rename(root / "images/10k_elsewhere")
    (root / "images/10k").rmdir()
    (root / f"images/100k/test/{STEMS['val'][1]}.jpg").unlink()
    assert [s.name for s in bdd100k(root, "val")] == STEMS["val"][:1]
    with pytest.raises(DatasetError, match=r"no mask in .*train has its image in .*100k"):
        bdd100k(root, "train")


def test_missing_files_are_named(root: Path) -> None:
    image = root / "images/10k/train" / f"{STEMS['train'][0]}.jpg"
    image.unlink()
    with pytest.raises(DatasetError, match=rf"{STEMS['train'][0]}\.png has no image: expected .*\.jpg"):
        bdd100k(root, "train")
    (root / "labels/sem_seg/masks/val" / f"{STEMS['val'][0]}.png").unlink()
    with pytest.raises(DatasetError, match=r"masks.val holds 1 masks; BDD100K val has 2"):
        bdd100k(root, "val")
    with pytest.raises(DatasetError, match="holds none of the folders labels/sem_seg/masks/val, seg/labels/val"):
        bdd100k(root / "images", "val")
    with pytest.raises(DatasetError, match="received 'night'"):
        bdd100k(root, "night")


def test_a_part_of_the_images_can_be_opened(root: Path) -> None:
    (root / "night.txt").write_text("\n".join(NIGHT))
    night, day = (root / "images/10k/val" / f"{stem}.jpg" for stem in STEMS["val"])
    day.unlink()
    assert [s.name for s in bdd100k(root, "val", complete=False)] == STEMS["val"][:1]
    assert [s.name for s in bdd100k_night(root, "val")] == STEMS["val"][:1]
    night.rename(day)
    with pytest.raises(DatasetError, match="lists val/81d5165d-fcfc6c67, and 0 more, without mask or image"):
        bdd100k_night(root, "val")


@needs_ijson
def test_the_command_lists_night_frames_that_have_a_mask(root: Path) -> None:
    first, second = NIGHT[0].split("/")[1], NIGHT[1].split("/")[1]
    times = {first: "night", STEMS["train"][0]: "daytime", "no-mask": "night"}
    train = _write_json(root / "det_train.json", times)
    val = _write_json(root / "det_val.json", {second: "night"})
    command = (train, val, "--masks", root / "labels/sem_seg/masks", "--out", root / "night.txt")
    assert "2 night frames of 4 masks; 1 masks have no time of day" in _list_night(*command)
    assert (root / "night.txt").read_text().splitlines() == NIGHT
    assert [s.name for s in bdd100k_night(root, "train")] == [first]
    assert [s.name for s in bdd100k_night(root, "val")] == [second]
    with pytest.raises(
        DatasetError, match=r"day\.txt does not exist; .* --timeofday daytime --masks .* --out .*day\.txt"
    ):
        bdd100k_day(root, "train")
    day_command = (*command[:-1], root / "day.txt", "--timeofday", "daytime")
    assert "1 daytime frames of 4 masks" in _list_night(*day_command)
    assert [s.name for s in bdd100k_day(root, "train")] == STEMS["train"][:1]
    _list_night(val, train, *command[2:])  # in any order
    assert (root / "night.txt").read_text().splitlines() == NIGHT


@needs_ijson
def test_user_errors_of_the_command_are_one_line(root: Path) -> None:
    masks = ("--masks", root / "labels/sem_seg/masks", "--out", root / "night.txt")
    day = _write_json(root / "day.json", {STEMS["val"][0]: "daytime"})
    untimed = _write_json(root / "sem_seg_train.json", {STEMS["val"][0]: None})
    cut = root / "cut.json"
    cut.write_text(day.read_text()[:-9])
    for arguments, message in {
        (root / "nowhere.json", *masks): "nowhere.json cannot be read: No such file",
        (day, *masks): "none of the 4 masks in",
        (untimed, *masks): "has no frame with attributes.timeofday",
        (cut, *masks): "cut.json is not whole JSON",
        (day, "--masks", root / "images", "--out", root / "night.txt"): "holds no mask",
    }.items():
        with pytest.raises(SystemExit) as done:  # with a text: exit status 1, and the text on standard error
            _list_night(*arguments)
        assert str(done.value).startswith("error: ") and message in str(done.value)
    assert not (root / "night.txt").exists()


@needs_ijson
def test_other_formats_and_disagreeing_files_are_refused(tmp_path: Path) -> None:
    first = _write_json(tmp_path / "a.json", {"x": "night", "y": "dawn/dusk"})
    wrapped = tmp_path / "b.json"
    wrapped.write_text(json.dumps({"config": {}, "frames": json.loads(first.read_text())}))
    assert read_time_of_day([first, wrapped]) == {"x": "night", "y": "dawn/dusk"}
    other = _write_json(tmp_path / "c.json", {"x": "daytime"})
    with pytest.raises(DatasetError, match=r"c\.json: x is daytime, but night before"):
        read_time_of_day([first, other])
    other.write_text('["x", "y"]')
    with pytest.raises(DatasetError, match=r"c\.json: x is not a frame"):
        read_time_of_day([other])


def test_a_wrong_night_list_is_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"night\.txt does not exist; list these frames first"):
        bdd100k_night(root, "val")
    (root / "night.txt").write_text("\n".join([*NIGHT, "val/unknown"]))
    with pytest.raises(DatasetError, match=r"lists val/unknown, and 0 more, without mask or image"):
        bdd100k_night(root, "val")
    assert len(bdd100k_night(root, "val", complete=False)) == 1
    (root / "night.txt").write_text("val/unknown\n")
    with pytest.raises(DatasetError, match="lists no frame of train"):
        bdd100k_night(root, "train")
