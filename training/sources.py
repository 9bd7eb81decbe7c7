# SPDX-License-Identifier: Apache-2.0
"""Open the sources of training images that a recipe names: data sets, folders, rendered scenes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from pydantic import Field, field_validator
from rich.progress import track

from nightlab_core.classes import load_class_set
from nightlab_core.config import Settings, replace
from nightlab_core.data.datasets import catalogue
from nightlab_core.data.datasets.paired import DatasetError, Sample, list_images
from nightlab_core.data.datasets.unlabelled import UnlabelledImages
from nightlab_core.data.rendered import night
from nightlab_core.data.rendered.shapes import CLASSES as RENDERED_CLASSES
from nightlab_core.labels import ClassSet, ambiguous_groups, map_ids, training_ids
from training.distributed import is_first_process


class SourceSettings(Settings):
    """A source of images, and how often it is drawn."""

    kind: catalogue.Kind | Literal["rendered", "pseudo", "unlabelled"]
    folder: str = ""  #: under the data folder; of "pseudo", where `training.stages.pseudo` wrote
    split: str = ""  #: train, val or test; of plain folders (kind folder) a sub-folder
    classes: str = ""  #: of plain folders and "pseudo": key or YAML file of their class set; empty: the recipe's
    pattern: str = "*"  #: glob of the file stems that are drawn, for example those of one drive
    leave_out_pattern: str = ""  #: glob of the file stems that are not drawn; empty: none
    leave_out: tuple[str, ...] = ()  #: folders of images under the data folder whose stems are not drawn
    complete: bool = True  #: for data sets of known size: raise an error if frames are missing
    count: int = Field(default=0, ge=0)  #: rendered scenes
    pixel_bits: int = Field(default=0, ge=0, le=16)  #: significant bits of 16-bit images; 0: measured over the first
    weight: float = Field(gt=0)
    darken: float = Field(default=0.0, ge=0, le=1)  #: share of samples that are darkened

    @field_validator("leave_out", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        if isinstance(value, str):  # one folder, as in older checkpoints
            return (value,) if value else ()
        return tuple(value) if isinstance(value, list) else value


#: Sources whose decoded frames take at most this are kept in memory, since every frame is read many times.
IN_MEMORY_BYTES = 2 * 2**30


class _InMemory(list[Sample]):
    """A list that weak references can refer to."""


class SelectedFrames(Sequence[Sample]):
    """Some frames of a data set, read from disk one by one."""

    def __init__(self, samples: Sequence[Sample], images: Sequence[Path], indices: Sequence[int]) -> None:
        self._samples, self._indices = samples, indices
        self.images = [images[i] for i in indices]  #: the image files of the frames

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[self._indices[index]]


#: Sources in use, so that several streams of a stage that draw from one source read it once.
_HELD: WeakValueDictionary[tuple[object, ...], Sequence[Sample]] = WeakValueDictionary()


def source_classes(source: SourceSettings, classes: ClassSet) -> tuple[ClassSet, ClassSet]:
    """Return the class set of a source's labels, and the one that they are evaluated in; `classes` is the recipe's."""
    if source.kind == "rendered":
        return RENDERED_CLASSES, RENDERED_CLASSES
    return catalogue.classes_of(source.kind, load_class_set(source.classes) if source.classes else classes)


def label_groups(sources: Sequence[SourceSettings], classes: ClassSet) -> tuple[tuple[int, ...], ...]:
    """Return the ambiguous labels of a recipe's sources, see `labels.ambiguous_groups`."""
    return ambiguous_groups([source_classes(source, classes)[0] for source in sources], classes)


def load_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...] = ()
) -> Sequence[Sample]:
    """Open a source: decoded and in memory if it takes at most `IN_MEMORY_BYTES`, else read from disk when drawn.

    Its labels are ids of `classes`, and len(classes) + k for the k-th of `groups`.
    """
    drawn = replace(source, weight=1.0, darken=0.0)  # which decide how often and how it is drawn, not what
    key = root, drawn, classes.key, classes.names, groups
    samples = _HELD.get(key)
    if samples is None:
        _HELD[key] = samples = _read_source(source, root, classes, groups)
    return samples


def open_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...] = ()
) -> SelectedFrames:
    """List the frames on disk that a source draws from, without those that it leaves out; labels as in `load_source`.

    Raises DatasetError if none are left, or if a folder to leave out holds no images.
    """
    kind, folder = source.kind, root / source.folder
    if kind == "rendered":
        raise ValueError("a rendered source has no files")
    samples: Sequence[Sample]
    if kind == "unlabelled":
        samples = UnlabelledImages(folder, source.pixel_bits)
        images = samples.paths
    else:
        if kind == "pseudo":
            kind, folder = "folder", Path(source.folder)
        samples, _ = catalogue.open_dataset(
            kind, folder, source.split, complete=source.complete,
            classes=classes, folder_classes=source_classes(source, classes)[0], groups=groups,
            pixel_bits=source.pixel_bits,
        )  # fmt: skip
        images = samples.images
    stems = {path.stem for left_out in source.leave_out for path in list_images(root / left_out)}
    indices = [
        i
        for i, path in enumerate(images)
        if fnmatchcase(path.stem, source.pattern)
        and not (source.leave_out_pattern and fnmatchcase(path.stem, source.leave_out_pattern))
        and path.stem not in stems
    ]
    if not indices:
        raise DatasetError(
            f"source {source.kind} {source.folder}: none of its {len(images)} frames, such as {images[0].name}, is left"
            " after pattern, leave_out_pattern and leave_out"
        )
    return SelectedFrames(samples, images, indices)


def _read_source(
    source: SourceSettings, root: Path, classes: ClassSet, groups: tuple[tuple[int, ...], ...]
) -> Sequence[Sample]:
    if source.kind == "rendered":
        scenes = track(range(source.count), f"rendering {source.count} scenes", disable=not is_first_process())
        frames = ((seed, night.render_scene(seed, size_hw=(480, 854))) for seed in scenes)
        ids = training_ids(RENDERED_CLASSES, classes, groups)
        return _InMemory(Sample(f.image_bgr, map_ids(f.labels, ids), f"rendered_{seed}") for seed, f in frames)
    samples = open_source(source, root, classes, groups)
    if source.kind == "unlabelled":
        return samples
    frame = samples[0]
    small = len(samples) * (frame.image_bgr.nbytes + frame.labels.nbytes) <= IN_MEMORY_BYTES
    return _InMemory(samples) if small else samples
