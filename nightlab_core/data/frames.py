# SPDX-License-Identifier: Apache-2.0
"""Frames with their labels, where there are any, from a rosbag, a folder of images, a video or the rendered clip.

`open_frames` looks at what it is given and returns one `FrameSource`, which can be iterated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.labels import CAMVID11, CITYSCAPES19, CLASS_SETS, IGNORE_ID, ClassSet

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")
BAG_SUFFIXES = (".mcap", ".db3", ".bag")
#: CamVid's files give void the id 11.
CAMVID_VOID = 11


@dataclass(frozen=True)
class Frame:
    """One picture, uint8 (H, W, 3) BGR; its label map, uint8 (H, W), 255 = unlabelled, or None; time in seconds.

    `stamp_ns` is the camera's own stamp, to the nanosecond, where the frame was recorded with one.
    """

    image_bgr: np.ndarray
    labels: np.ndarray | None
    stamp_s: float
    name: str
    stamp_ns: int | None = None


@dataclass(frozen=True)
class FrameSource:
    """Frames in order, opened anew by every iteration. `num_frames` is None where only reading to the end tells."""

    name: str
    classes: ClassSet
    num_frames: int | None
    _read: Callable[[], Iterator[Frame]]

    def __iter__(self) -> Iterator[Frame]:
        count = self.num_frames
        for index, frame in enumerate(self._read()):
            if count is not None and index >= count:
                return
            yield frame


def open_frames(
    source: str | Path | None,
    *,
    labels: str | Path | None = None,
    classes: str | None = None,
    pattern: str = "*",
    topic: str | None = None,
    max_frames: int | None = None,
    fps: float = 10.0,
) -> FrameSource:
    """Open what `source` names; None is the rendered night clip (100 frames unless `max_frames` says otherwise).

    A folder of images may be given itself, or as the folder above its `images`; labels are single-channel PNG of the
    same stem in `labels`, or else in a folder `labels` beside or inside it. `pattern` (as in a shell) chooses images by
    name, `topic` the image topic of a bag. `classes` is a key of CLASS_SETS; without it a bag's own
    `nightlab_classes` counts, else a path with a part named "camvid" is read as camvid11 and all else as cityscapes19.
    Images without stamps are taken to be `fps` a second.

    Raises FileNotFoundError or ValueError, naming the file at fault, here or while reading.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; expected 1 or more")
    if source is None:
        return _rendered(max_frames or 100, fps)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a rosbag, a folder of images or a video")
    is_bag = path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()
    if is_bag and classes is None:
        from nightlab_core.data.bags.bags import CLASSES_KEY, custom_data

        classes = custom_data(path).get(CLASSES_KEY)
    class_set = _class_set(path, classes)
    if is_bag:
        from nightlab_core.data.bags.bags import count_images, read_bag

        def read() -> Iterator[Frame]:
            for image, label_map, stamp_ns, name in read_bag(path, topic):
                label_map = checked_labels(label_map, image, class_set, name)
                yield Frame(image, label_map, stamp_ns / 1e9, name, stamp_ns)

        found: int | None = count_images(path, topic)
    elif path.is_dir():
        files, read = _folder(path, labels, class_set, pattern, fps)
        found = len(files)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        if labels is not None:
            raise ValueError(
                f"labels {labels} were given for the video {path}; labels go with a folder of images or a bag"
            )
        read, found = _video(path), None
    else:
        expected = ", ".join(BAG_SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"{path} is no source of frames; expected a folder, or a file ending in {expected}")
    if found == 0:
        raise ValueError(f"{path} holds no image message")
    if found is not None and max_frames is not None:
        found = min(found, max_frames)
    return FrameSource("/".join(path.resolve().parts[-2:]), class_set, found if found is not None else max_frames, read)


def _class_set(path: Path, classes: str | None) -> ClassSet:
    if classes is None:
        return CAMVID11 if "camvid" in (part.lower() for part in path.resolve().parts) else CITYSCAPES19
    if classes not in CLASS_SETS:
        raise ValueError(f"class set {classes!r} of {path} is not known; expected one of {', '.join(CLASS_SETS)}")
    return CLASS_SETS[classes]


def checked_labels(labels: np.ndarray | None, image_bgr: np.ndarray, classes: ClassSet, name: str) -> np.ndarray | None:
    """The label map if it fits its image and holds only ids of the class set; CamVid's void becomes 255."""
    if labels is None:
        return None
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"labels {name} are {labels.dtype} {labels.shape}; expected class ids, uint8 (H, W), not colours"
        )
    if labels.shape != image_bgr.shape[:2]:
        raise ValueError(
            f"labels {name} are {labels.shape}, their image is {image_bgr.shape[:2]}; expected the same (H, W)"
        )
    if classes is CAMVID11:
        labels = np.where(labels == CAMVID_VOID, np.uint8(IGNORE_ID), labels)
    # a histogram finds the ids 20 times as fast as np.unique does
    present = np.flatnonzero(cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256]))
    unknown = np.setdiff1d(present, [*range(len(classes)), IGNORE_ID])
    if unknown.size:
        raise ValueError(
            f"labels {name} hold the ids {unknown.tolist()}; {classes.key} has 0-{len(classes) - 1} and {IGNORE_ID}: "
            f"name the right class set (one of {', '.join(CLASS_SETS)})"
        )
    return labels


def _rendered(num_frames: int, fps: float) -> FrameSource:
    from nightlab_core.data.rendered.night import render_clip

    def read() -> Iterator[Frame]:
        for index, frame in enumerate(render_clip(num_frames, fps=fps)):
            yield Frame(frame.image_bgr, frame.labels, frame.stamp_s, f"rendered_{index:04d}")

    return FrameSource("rendered night clip", CITYSCAPES19, num_frames, read)


def _folder(
    folder: Path, labels: str | Path | None, classes: ClassSet, pattern: str, fps: float
) -> tuple[list[Path], Callable[[], Iterator[Frame]]]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    if labels is not None and not Path(labels).is_dir():
        raise FileNotFoundError(f"folder of labels {labels} does not exist")
    usual = [d for d in (folder / "labels", images.parent / "labels") if d.is_dir()]
    label_folder = Path(labels) if labels is not None else (usual[0] if usual else None)
    files = sorted(f for f in images.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and fnmatch(f.name, pattern))
    if not files:
        raise ValueError(
            f"{images} holds no image named {pattern!r}; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    label_files = {f.stem: f for f in label_folder.iterdir() if f.suffix.lower() == ".png"} if label_folder else {}
    if label_folder and not any(f.stem in label_files for f in files):
        raise ValueError(f"{label_folder} holds no PNG with the name of an image, such as {files[0].stem}.png")

    def read() -> Iterator[Frame]:
        for index, file in enumerate(files):
            image = read_image(file)
            label_file = label_files.get(file.stem)
            label_map = read_image(label_file, cv2.IMREAD_UNCHANGED) if label_file else None
            yield Frame(image, checked_labels(label_map, image, classes, str(label_file)), index / fps, file.stem)

    return files, read


def read_image(file: Path, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """A picture file, uint8 (H, W, 3) BGR unless `flags` of OpenCV say otherwise. Raises ValueError."""
    image = cv2.imread(str(file), flags)
    if image is None:
        raise ValueError(f"{file} cannot be read as an image; is it whole?")
    return image


def _video(path: Path) -> Callable[[], Iterator[Frame]]:
    def read() -> Iterator[Frame]:
        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened():
                raise ValueError(f"{path} cannot be opened as a video; is it whole, and its codec known to OpenCV?")
            index = 0
            while True:
                read_one, image = capture.read()
                if not read_one:
                    break
                stamp_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0  # of the frame just read
                yield Frame(image, None, stamp_s, f"{path.stem}_{index:06d}")
                index += 1
            if index == 0:
                raise ValueError(f"{path} holds no frame that OpenCV can decode")
        finally:
            capture.release()

    return read
