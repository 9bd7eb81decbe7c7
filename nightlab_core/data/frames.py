# SPDX-License-Identifier: Apache-2.0
"""Read frames, with label maps if there are any, from a rosbag, a folder of images, a video or the rendered clip.

`open_frames` detects the kind of source and returns a `FrameSource`, which can be iterated any number of times.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.classes import DEFAULT, class_set_of_folder, load_class_set
from nightlab_core.data.bags.storage import SUFFIXES, is_bag
from nightlab_core.data.folders import describe_folder, visible
from nightlab_core.data.image_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, depth_of_files, image_files, read_image
from nightlab_core.data.image_header import ImageError, check_size
from nightlab_core.data.label_doubts import doubts_of_files, turned_images
from nightlab_core.data.label_maps import checked_labels, read_label_map
from nightlab_core.labels import ClassSet

#: What ffmpeg writes to standard error is in our own errors.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    `image_bgr` is uint8 (H, W, 3) BGR; `labels` is uint8 (H, W), 255 = unlabelled, or None; `stamp_s` is in seconds.
    `stamp_ns` is the camera's stamp in ns, or None if the source has no stamps.
    """

    image_bgr: np.ndarray
    labels: np.ndarray | None
    stamp_s: float
    name: str
    stamp_ns: int | None = None


@dataclass(frozen=True)
class FrameSource:
    """Frames in order; every iteration opens the source again.

    `num_frames` is None if the number is known only after reading to the end. `problems` holds one sentence for each
    fault of a damaged bag, of which only the readable messages are given. `notes` say how pixels of 16 bits are scaled,
    and what is doubtful about label maps.
    """

    name: str
    classes: ClassSet
    num_frames: int | None
    _read: Callable[[], Iterator[Frame]]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    label_topic: str | None = None,
    max_frames: int | None = None,
    fps: float = 10.0,
    pixel_bits: int = 0,
) -> FrameSource:
    """Open a source of frames; None is the rendered night clip (100 frames unless `max_frames` says otherwise).

    A folder of images may be given directly, or as the folder that contains `images`. Label maps are single-channel
    PNG files of the same stem in the folder `labels`, by default one beside or inside the folder of images. `pattern`
    (as in a shell) selects images by name; `topic` and `label_topic` select topics of a bag. `classes` is a class set's
    key or YAML file; without it a bag's own `nightlab_classes` counts, then the class set that claims a folder of the
    path (camvid11 claims "camvid"), then cityscapes19. Images without stamps are assigned `fps` frames per second.
    `pixel_bits` are the significant bits of 16-bit pixels; 0 measures them over the first images, see `pixel_depth`.

    Raises FileNotFoundError or ValueError, which name the file at fault, here or while reading.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; expected 1 or more")
    given = {"labels": labels, "glob": None if pattern == "*" else pattern, "topic": topic, "label-topic": label_topic}
    if source is None:
        _check_options("the rendered clip", given, ())
        return _rendered(max_frames or 100, fps)
    if not str(source):
        raise ValueError("received an empty path; expected a rosbag, a folder of images or a video")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a rosbag, a folder of images or a video")
    found: int | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if is_bag(path):
        _check_options(f"the bag {path}", given, ("topic", "label-topic"))
        class_set, found, problems, notes, read = _bag(path, classes, topic, label_topic, pixel_bits)
    elif path.is_dir():
        _check_options(f"the folder {path}", given, ("labels", "glob"))
        class_set = _class_set(path, classes)
        found, notes, read = _folder(path, labels, class_set, pattern, fps, pixel_bits)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        _check_options(f"the video {path}", given, ())
        class_set, read, found = _class_set(path, classes), _video(path), None
    else:
        expected = ", ".join(SUFFIXES + VIDEO_SUFFIXES)
        raise ValueError(f"{path} is no source of frames; expected a folder, or a file ending in {expected}")
    if found is None:
        found = max_frames
    elif max_frames is not None:
        found = min(found, max_frames)
    return FrameSource("/".join(path.resolve().parts[-2:]), class_set, found, read, problems, notes)


def _check_options(source: str, given: Mapping[str, object], used: tuple[str, ...]) -> None:
    """Raise ValueError for an option that is given and that a source has no use for."""
    unused = [f"--{name} {value}" for name, value in given.items() if value is not None and name not in used]
    if unused:
        raise ValueError(
            f"received {' and '.join(unused)} for {source}; expected --labels and --glob for a folder of images alone, "
            "--topic and --label-topic for a bag alone"
        )


def _class_set(path: Path, classes: str | None) -> ClassSet:
    if classes is None:
        return class_set_of_folder(path) or load_class_set(DEFAULT)
    return load_class_set(classes)


def _rendered(num_frames: int, fps: float) -> FrameSource:
    from nightlab_core.data.rendered.night import render_clip
    from nightlab_core.data.rendered.shapes import CLASSES

    def read() -> Iterator[Frame]:
        for index, frame in enumerate(render_clip(num_frames, fps=fps)):
            yield Frame(frame.image_bgr, frame.labels, frame.stamp_s, f"rendered_{index:04d}")

    return FrameSource("rendered night clip", CLASSES, num_frames, read)


def _bag(
    path: Path, classes: str | None, topic: str | None, label_topic: str | None, pixel_bits: int
) -> tuple[ClassSet, int, tuple[str, ...], tuple[str, ...], Callable[[], Iterator[Frame]]]:
    """Return class set, number of frames, problems, notes and reader of a bag."""
    from nightlab_core.data.bags.reader import Bag

    with Bag(path, topic, label_topic, pixel_bits) as bag:
        class_set = _class_set(path, classes or bag.label_classes)
        notes = (*bag.notes, *bag.label_doubts(class_set))
        found, problems = len(bag), tuple(bag.problems)
        topics = bag.image_topic, bag.label_topic
    if not found:
        raise ValueError(f"{path} holds no image message. {'; '.join(problems)}")

    def read() -> Iterator[Frame]:
        with Bag(path, *topics, pixel_bits) as bag:
            stem = bag.image_topic.strip("/").replace("/", "_")
            for frame in bag.frames(0, found, class_set):
                name = f"{stem}_{frame.index:06d}"
                if frame.image_bgr is None or frame.reason:
                    raise ValueError(f"{path}, {name}: {frame.reason}")
                yield Frame(frame.image_bgr, frame.labels, frame.stamp_ns / 1e9, name, frame.stamp_ns)

    return class_set, found, problems, notes, read


def _folder(
    folder: Path, labels: str | Path | None, classes: ClassSet, pattern: str, fps: float, pixel_bits: int
) -> tuple[int, tuple[str, ...], Callable[[], Iterator[Frame]]]:
    """Return number of images, notes and reader of a folder. Hidden files are skipped."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    if labels is not None and not Path(labels).is_dir():
        raise FileNotFoundError(f"folder of labels {labels} does not exist")
    usual = [d for d in (folder / "labels", images.parent / "labels") if d.is_dir()]
    label_folder = Path(labels) if labels is not None else (usual[0] if usual else None)
    files = [f for f in image_files(images) if fnmatch(f.name, pattern)]
    if not files:
        raise ValueError(
            f"{images} holds no image named {pattern!r}; expected files ending in {', '.join(IMAGE_SUFFIXES)}; it "
            f"holds {describe_folder(images)}{_advice(images)}"
        )
    maps = [f for f in visible(label_folder) if f.suffix.lower() == ".png"] if label_folder else []
    label_files = {f.stem: f for f in maps}
    if repeated := [f for f in maps if label_files[f.stem] != f]:
        raise ValueError(f"{label_files[repeated[0].stem]} and {repeated[0]} are label maps of one image; remove one")
    if label_folder and not any(f.stem in label_files for f in files):
        raise ValueError(
            f"{label_folder} holds no PNG with the name of an image, such as {files[0].stem}.png; it holds "
            f"{describe_folder(label_folder)}"
        )

    def read() -> Iterator[Frame]:
        depth = depth_of_files(files, pixel_bits)
        for index, file in enumerate(files):
            image = read_image(file, depth)
            label_file = label_files.get(file.stem)
            ids = read_label_map(label_file, classes) if label_file else None
            yield Frame(image, checked_labels(ids, image, classes, str(label_file)), index / fps, file.stem)

    labelled = [label_files[f.stem] for f in files if f.stem in label_files]
    notes = [
        *_left_out(images, label_folder, files, labelled),
        *turned_images(files),
        *doubts_of_files(labelled, classes),
    ]
    return len(files), tuple(notes), read


def _left_out(images: Path, labels: Path | None, files: list[Path], labelled: list[Path]) -> Iterator[str]:
    """Yield sentences on images that cannot be read and on images without label maps, with numbers."""
    if unread := [f for f in visible(images) if f.suffix.lower() in UNREAD_SUFFIXES]:
        yield f"{len(unread)} files such as {unread[0].name} are not read: convert them to PNG or JPEG"
    stems = Counter(file.stem for file in files)
    if repeated := [file for file in files if stems[file.stem] > 1]:
        yield f"{len(repeated)} files share their name with another but for the ending, such as {repeated[0].name}"
    if labels and len(labelled) < len(files):
        yield f"{labels}: {len(labelled)} of {len(files)} images have a label map"


def _advice(folder: Path) -> str:
    inside = [path for path in visible(folder) if is_bag(path) or (path.is_dir() and image_files(path))]
    return f"; {len(inside)} of these can be read: name one of them, such as {inside[0]}" if inside else ""


def _video(path: Path) -> Callable[[], Iterator[Frame]]:
    def read() -> Iterator[Frame]:
        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened():
                raise ValueError(f"{path} cannot be opened as a video; expected a video that OpenCV can decode")
            width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            try:
                check_size(width, height)
            except ImageError as error:
                raise ValueError(f"{path} cannot be read as a video: {error}") from error
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
