# SPDX-License-Identifier: Apache-2.0
"""Frames and label maps from folders, videos and the rendered clip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from class_sets import CAMVID11, CITYSCAPES19
from tiny_bags import make_frames, write_tiny_bag

from nightlab_core.data.bags.protocol import BagError
from nightlab_core.data.bags.storage import open_storage
from nightlab_core.data.datasets.unlabelled import UnlabelledImages
from nightlab_core.data.frames import open_frames


def picture(seed: int, size_hw: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)


def random_labels(seed: int, size_hw: tuple[int, int] = (24, 32), top: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, size_hw, np.uint8)


def write_folder(folder: Path, count: int = 3, labelled: bool = True) -> Path:
    for part in ("images", "labels") if labelled else ("images",):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / "images" / f"{'ab'[i % 2]}_{i}.png"), picture(i))
        if labelled:
            cv2.imwrite(str(folder / "labels" / f"{'ab'[i % 2]}_{i}.png"), random_labels(i))
    return folder


def test_a_folder_is_read_in_order_of_name_with_labels_of_the_same_stem(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "drive")
    (folder / "labels" / "b_1.png").unlink()
    for given in (folder, folder / "images"):
        source = open_frames(given, fps=4.0)
        frames = list(source)
        assert [f.name for f in frames] == ["a_0", "a_2", "b_1"]
        assert [f.stamp_s for f in frames] == [0.0, 0.25, 0.5]
        np.testing.assert_array_equal(frames[1].image_bgr, picture(2))
        np.testing.assert_array_equal(frames[1].labels, random_labels(2))
        assert frames[2].labels is None
        assert source.num_frames == 3 and len(list(source)) == 3, "a source can be read again"
        assert source.classes is CITYSCAPES19


def test_glob_labels_folder_and_limit(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "drive", labelled=False)
    other = write_folder(tmp_path / "other")
    source = open_frames(folder / "images", labels=other / "labels", pattern="a_*", max_frames=1)
    frames = list(source)
    assert [f.name for f in frames] == ["a_0"] and source.num_frames == 1
    np.testing.assert_array_equal(frames[0].labels, random_labels(0))
    assert [f.labels for f in open_frames(folder)] == [None] * 3


def test_camvid_is_recognised_by_its_path_and_its_void_becomes_unlabelled(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "CamVid" / "test", count=1)
    label_map = random_labels(0)
    label_map[:4] = 11
    cv2.imwrite(str(folder / "labels" / "a_0.png"), label_map)
    source = open_frames(folder)
    assert source.classes is CAMVID11
    (frame,) = source
    expected = label_map.copy()
    expected[:4] = 255
    np.testing.assert_array_equal(frame.labels, expected)
    (as_cityscapes,) = open_frames(folder, classes="cityscapes19")
    np.testing.assert_array_equal(as_cityscapes.labels, label_map)


@pytest.mark.parametrize(
    ("label_map", "says"),
    [
        (random_labels(0, (24, 31)), r"a_0\.png are \(24, 31\), their image is \(24, 32\)"),
        (picture(0), "colours"),
        (np.full((24, 32), 34, np.uint8), r"a_0\.png hold the ids \[34\]; cityscapes19 has 0-18 and 255"),
        (np.zeros((24, 32), np.uint16), "uint16"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_name_of_the_file(
    tmp_path: Path, label_map: np.ndarray, says: str
) -> None:
    folder = write_folder(tmp_path / "drive", count=1)
    cv2.imwrite(str(folder / "labels" / "a_0.png"), label_map)
    with pytest.raises(ValueError, match=says):
        list(open_frames(folder))


def test_sources_that_cannot_be_opened_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "drive", count=1)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        open_frames(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no image named 'z\*'"):
        open_frames(folder, pattern="z*")
    with pytest.raises(
        ValueError, match="'ade20k' is not known; expected one of autoware16, bdd18, camvid11, cityscapes19"
    ):
        open_frames(folder, classes="ade20k")
    with pytest.raises(ValueError, match="max_frames is 0"):
        open_frames(folder, max_frames=0)
    with pytest.raises(FileNotFoundError, match="folder of labels"):
        open_frames(folder, labels=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"such as a_0\.png"):
        open_frames(folder, labels=tmp_path / "empty")
    (folder / "images" / "a_0.png").write_bytes(b"\x89PNG cut short")
    with pytest.raises(ValueError, match=r"a_0\.png cannot be read"):
        list(open_frames(folder))
    (tmp_path / "notes.txt").write_text("no frames here")
    with pytest.raises(ValueError, match="no source of frames"):
        open_frames(tmp_path / "notes.txt")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be opened as a video"):
        list(open_frames(tmp_path / "broken.mp4"))


def test_hidden_files_beside_the_images_are_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "drive", count=1)
    for part in ("images", "labels"):
        (folder / part / "._a_0.png").write_bytes(b"\0\5\x16\7 of another file system")
    (frame,) = open_frames(folder)
    assert frame.name == "a_0" and frame.labels is not None


def test_a_jpeg_that_is_cut_short_is_refused_and_exif_orientation_is_ignored(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "drive", count=1)
    (folder / "images" / "a_0.png").unlink()
    data = cv2.imencode(".jpg", picture(0), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6: 90 degrees
    file = folder / "images" / "a_0.jpg"
    file.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    (frame,) = open_frames(folder)
    np.testing.assert_array_equal(frame.image_bgr, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a_0\.jpg cannot be read.*cut short"):
        list(open_frames(folder))


def test_video(tmp_path: Path) -> None:
    path = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    assert writer.isOpened()
    for level in (10, 90, 170, 250):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    source = open_frames(path)
    frames = list(source)
    assert source.num_frames is None and [f.labels for f in frames] == [None] * 4
    assert [round(float(f.image_bgr.mean()), -1) for f in frames] == [10, 90, 170, 250]
    np.testing.assert_allclose(np.diff([f.stamp_s for f in frames]), 0.05, atol=1e-3)
    assert len(list(open_frames(path, max_frames=2))) == 2
    with pytest.raises(ValueError, match=r"received --labels .* for the video"):
        open_frames(path, labels=tmp_path)


def test_a_video_beyond_the_limits_of_an_image_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {cv2.CAP_PROP_FRAME_WIDTH: 20000.0, cv2.CAP_PROP_FRAME_HEIGHT: 20000.0}
    capture = SimpleNamespace(isOpened=lambda: True, get=sides.get, read=None, release=lambda: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda file: capture)
    (tmp_path / "drive.mp4").touch()
    with pytest.raises(ValueError, match=r"drive\.mp4 cannot be read as a video: .*20000x20000 pixels; expected"):
        next(iter(open_frames(tmp_path / "drive.mp4")))


def test_two_label_maps_of_one_image_and_a_pipe_among_the_images_are_refused(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder in (images, labels):
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8), np.uint8))
    os.mkfifo(images / "b.png")
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image: it is a folder, a pipe or a device"):
        list(open_frames(tmp_path))
    shutil.copy(labels / "a.png", labels / "a.PNG")
    with pytest.raises(ValueError, match=r"a\.png and .*a\.PNG are label maps of one image; remove one"):
        open_frames(tmp_path)


def test_rendered_clip_is_labelled_and_the_same_every_time() -> None:
    source = open_frames(None, max_frames=2, fps=5.0)
    first, second = list(source), list(source)
    assert [f.stamp_s for f in first] == [0.0, 0.2] and source.num_frames == 2
    for a, b in zip(first, second, strict=True):
        assert a.labels is not None and a.labels.shape == a.image_bgr.shape[:2]
        np.testing.assert_array_equal(a.image_bgr, b.image_bgr)
        np.testing.assert_array_equal(a.labels, b.labels)
    assert not np.array_equal(first[0].image_bgr, first[1].image_bgr)


@pytest.mark.data
@pytest.mark.skipif(not hasattr(cv2, "imdecodemulti"), reason="OpenCV is older than 4.10, and the frames are WebP")
def test_dusk_frames_of_camvid() -> None:
    root = Path(os.environ.get("NIGHTLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "camvid" / "test").is_dir():
        pytest.skip(f"no CamVid in {root}")
    source = open_frames(root / "camvid" / "test", pattern="0001TP_*", max_frames=3)
    frames = list(source)
    assert source.classes is CAMVID11 and len(frames) == 3
    for frame in frames:
        assert frame.image_bgr.shape == (360, 480, 3) and frame.labels is not None
        assert CAMVID11.id_of("road") in frame.labels


def test_images_are_read_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    names = ["frame10", "frame2", "frame1", "frame02", "b", "frame", "7"]
    for name in names:
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((4, 6, 3), np.uint8))
    expected = ["7", "b", "frame", "frame1", "frame02", "frame2", "frame10"]
    assert [frame.name for frame in open_frames(tmp_path)] == expected
    assert [path.stem for path in UnlabelledImages(tmp_path).paths] == expected


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "aachen").mkdir()
    with pytest.raises(ValueError, match=r"2 files ending in \.heic \(a\.heic, b\.HEIC\); 1 folders \(aachen\)"):
        open_frames(tmp_path)
    for number in range(5):
        (tmp_path / "bags" / f"drive{number}.mcap").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds 5 folders \(drive0\.mcap, drive1\.mcap, drive2\.mcap, \.\.\.\)"):
        open_frames(tmp_path / "bags")
    write_tiny_bag(tmp_path / "bags" / "drive9", make_frames(1))
    with pytest.raises(ValueError, match=r"1 of these can be read: name one of them, such as .*drive9"):
        open_frames(tmp_path / "bags")
    with pytest.raises(BagError, match=r"holds 6 folders .*; 1 of these are bags: name them one by one"):
        open_storage(tmp_path / "bags")


def test_files_that_are_left_out_and_missing_labels_are_notes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "labels/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / name), np.zeros((4, 6), np.uint8))
    (tmp_path / "c.heic").touch()
    assert open_frames(tmp_path).notes == (
        "1 files such as c.heic are not read: convert them to PNG or JPEG",
        f"{tmp_path / 'labels'}: 1 of 2 images have a label map",
    )
