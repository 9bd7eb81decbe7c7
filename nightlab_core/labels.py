# SPDX-License-Identifier: Apache-2.0
"""Class sets, label maps in them, and the conversion of label maps from one class set to another.

Label maps are uint8 (H, W). Ids count from 0; 255 is unlabelled everywhere. `nightlab_core.classes` loads class sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from nightlab_core.config import Settings

IGNORE_ID = 255
#: Class ids are below this. 254 is never a class: evaluation maps predicted ids outside the class set to it.
MAX_CLASSES = 254

ColorRGB = tuple[
    Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]
]
#: Class of one set -> classes of another: one, none (unlabelled), or several (an ambiguous label, the usual one first).
ClassMapping = dict[str, tuple[str, ...]]


class ClassSet(Settings):
    """Names and RGB colours of the classes 0..C-1, and how they correspond to those of other class sets."""

    key: str  #: of a shipped set, or the stem of the YAML file that it was loaded from
    names: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    colors_rgb: tuple[ColorRGB, ...]
    mappings_to: dict[str, ClassMapping] = Field(default_factory=dict)  #: by the other set's key
    mappings_from: dict[str, ClassMapping] = Field(default_factory=dict)  #: by the other set's key
    unlabelled_ids: tuple[int, ...] = ()  #: ids in label images that mean unlabelled, beside 255
    label_ids: dict[str, int] = Field(default_factory=dict)  #: class -> id in label images of another numbering
    folders: tuple[str, ...] = ()  #: names of folders, lower case, below which label images are of this set

    @model_validator(mode="after")
    def _one_colour_a_name(self) -> ClassSet:
        if len(self.names) != len(self.colors_rgb):
            raise ValueError(f"{self.key}: {len(self.names)} names but {len(self.colors_rgb)} colours")
        if repeated := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"{self.key}: the name {repeated[0]!r} appears twice; expected distinct names")
        return self

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int:
        """Return the id of a class. Raises KeyError that lists the known names."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"class set {self.key!r} has no class {name!r}; it has {', '.join(self.names)}") from None

    def ids_of(self, names: Sequence[str]) -> list[int]:
        """Return the ids of several classes. Raises KeyError that lists the known names."""
        return [self.id_of(name) for name in names]

    @property
    def file_ids(self) -> dict[int, int]:
        """Id in a label image -> class id, for images in this set's own numbering."""
        return {**{i: i for i in range(len(self))}, **dict.fromkeys(self.unlabelled_ids, IGNORE_ID)}

    @property
    def label_file_ids(self) -> dict[int, int]:
        """Id in a label image -> class id, for images in the numbering of `label_ids`.

        Ids up to the largest that stand for no class are unlabelled. Empty for a set without `label_ids`.
        """
        known = {i: self.id_of(name) for name, i in self.label_ids.items()}
        return {i: known.get(i, IGNORE_ID) for i in range(max(known, default=-1) + 1)}


def class_mapping(source: ClassSet, target: ClassSet) -> tuple[tuple[int, ...], ...]:
    """Return for each class of `source` its ids in `target`: one, none (unlabelled), or several (an ambiguous label).

    Uses the target's `mappings_from` or else the source's `mappings_to`; classes that these do not list correspond by
    name. Raises ValueError if the two sets have nothing in common.
    """
    listed = target.mappings_from.get(source.key) or source.mappings_to.get(target.key) or {}
    names = (listed.get(name, (name,) if name in target.names else ()) for name in source.names)
    found = tuple(tuple(target.id_of(name) for name in each) for each in names)
    if not any(found):
        raise ValueError(
            f"class sets {source.key!r} and {target.key!r} have no class in common; add a mapping to the YAML file of"
            f" one of them, such as to: {{{target.key}: {{{source.names[0]}: {target.names[0]}}}}}"
        )
    return found


def ambiguous_groups(sources: Sequence[ClassSet], target: ClassSet) -> tuple[tuple[int, ...], ...]:
    """Return the distinct ambiguous labels of the sources, each as the class ids of `target` that it may mean."""
    groups = (ids for source in sources for ids in class_mapping(source, target) if len(ids) > 1)
    return tuple(dict.fromkeys(groups))


def training_ids(source: ClassSet, target: ClassSet, groups: Sequence[tuple[int, ...]] = ()) -> dict[int, int]:
    """Return id in `source` -> training label: an id of `target`, len(target) + k for the k-th of `groups`, or 255."""
    table = {}
    for source_id, ids in enumerate(class_mapping(source, target)):
        if len(ids) > 1 and ids in groups:
            table[source_id] = len(target) + list(groups).index(ids)
        else:
            table[source_id] = ids[0] if ids else IGNORE_ID
    return table


def first_ids(target: ClassSet, groups: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return a table, uint8 (256,): training label -> id of `target`; an ambiguous label becomes its first class."""
    table = np.arange(256, dtype=np.uint8)
    table[len(target) : len(target) + len(groups)] = [ids[0] for ids in groups]
    return table


def map_ids(labels: np.ndarray, mapping: Mapping[int, int]) -> np.ndarray:
    """Translate a label map, uint8 (H, W), id by id; 255 stays 255 unless the mapping names it.

    Raises ValueError for an id that the mapping lacks: labels of another numbering are a common mistake.
    """
    table = np.full(256, -1, np.int16)
    table[IGNORE_ID] = IGNORE_ID
    for source, target in mapping.items():
        table[source] = target
    mapped = table[labels]
    if mapped.size and mapped.min() < 0:
        unknown = sorted(set(np.unique(labels).tolist()) - set(mapping) - {IGNORE_ID})
        raise ValueError(f"labels hold ids {unknown}; expected {sorted(mapping)} or {IGNORE_ID}: is it this data set?")
    return mapped.astype(np.uint8)


def to_class_set(labels: np.ndarray, source: ClassSet, target: ClassSet) -> np.ndarray:
    """Convert a label map, uint8 (H, W), to another class set; see `class_mapping`. Ambiguous labels take their first
    class, classes without a counterpart become 255."""
    if source.names == target.names:
        return labels
    return map_ids(labels, training_ids(source, target))


def palette_bgr(classes: ClassSet) -> np.ndarray:
    """Return a look-up table, uint8 (256, 3) BGR; unlabelled and unknown ids are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.asarray(classes.colors_rgb, np.uint8)[:, ::-1]
    return table


def colorize(labels: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Paint a label map, uint8 (H, W), in its class colours: uint8 (H, W, 3) BGR."""
    return palette_bgr(classes)[labels]


def overlay(image_bgr: np.ndarray, labels: np.ndarray, classes: ClassSet, opacity: float = 0.5) -> np.ndarray:
    """Blend class colours over an image, uint8 (H, W, 3) BGR; unlabelled pixels keep the image.

    Raises ValueError if the two differ in size.
    """
    if image_bgr.shape[:2] != labels.shape:
        raise ValueError(f"image is {image_bgr.shape[:2]}, labels are {labels.shape}: both must be the same (H, W)")
    import cv2

    blended = cv2.addWeighted(image_bgr, 1.0 - opacity, colorize(labels, classes), opacity, 0.0)
    return np.where((labels == IGNORE_ID)[..., None], image_bgr, blended)
