# SPDX-License-Identifier: Apache-2.0
"""Labelled driving images on disk: every known data set, and plain folders.

To add a data set, write one module with a function that opens it and add one line to `DATASETS`.

Nothing here needs torch. A data set is a sequence of `Sample`; opening one only lists its files and checks a few
labels, so that a wrong layout is reported at once. docs/datasets.md says where to get each and how to unpack it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nightlab_core.classes import load_class_set
from nightlab_core.data.datasets import bdd, nightcity
from nightlab_core.data.datasets.cityscapes import CLASSES, cityscapes
from nightlab_core.data.datasets.paired import DatasetError, LabelledImages, PairedFolder
from nightlab_core.data.label_doubts import doubts_of_files, turned_images
from nightlab_core.labels import ClassSet

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownDataset:
    """One kind of data set."""

    open: Callable[[Path, str, str, bool], LabelledImages]  #: root, split, pattern, complete
    classes: ClassSet  #: of its label images
    evaluated: ClassSet  #: in which results on it are reported
    folder: str  #: under the folder of all data sets; kinds with other labels of the same images share one
    #: Parts that evaluation also reports by themselves: name -> glob of the frames' names.
    parts: Mapping[str, str] = field(default_factory=dict)


def camvid(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open CamVid's SegNet split under root/{train,val,test}/{images,labels}; its frames are not counted."""
    return PairedFolder(root / split / "images", root / split / "labels", _CAMVID, pattern)


def plain_folder(root: Path, pattern: str = "*", classes: ClassSet = CLASSES) -> LabelledImages:
    """Open root/{images,labels}: frames with label PNGs of equal stems, which hold the ids of `classes` and 255."""
    samples = PairedFolder(root / "images", root / "labels", classes, pattern)
    for doubt in (*turned_images(samples.images), *doubts_of_files(samples.labels, classes)):
        _LOG.warning("%s: %s", root, doubt)
    return samples


_CAMVID, _BDD18 = load_class_set("camvid11"), load_class_set("bdd18")
#: All kinds but `FOLDER`.
DATASETS: dict[str, KnownDataset] = {
    "camvid": KnownDataset(  # its dusk is one drive
        camvid, _CAMVID, _CAMVID, "camvid", {"dusk": "0001TP_*", "daylight": "Seq05VD_*"}
    ),
    "cityscapes": KnownDataset(cityscapes, CLASSES, CLASSES, "cityscapes"),
    "nightcity": KnownDataset(nightcity.nightcity, CLASSES, CLASSES, "nightcity"),
    "nightcity_plus": KnownDataset(nightcity.nightcity_plus, CLASSES, CLASSES, "nightcity"),
    "nightcity_fine": KnownDataset(nightcity.nightcity_fine, CLASSES, CLASSES, "nightcity_fine"),
    "bdd100k": KnownDataset(bdd.bdd100k, CLASSES, CLASSES, "bdd100k"),
    "bdd100k_night": KnownDataset(bdd.bdd100k_night, CLASSES, _BDD18, "bdd100k"),
    "bdd100k_day": KnownDataset(bdd.bdd100k_day, CLASSES, CLASSES, "bdd100k"),
}
#: The kind of a plain folder, whose class set the user names.
FOLDER = "folder"
if TYPE_CHECKING:
    Kind = str
else:  # a literal type, so that recipes accept these names and no others
    Kind = Literal[(FOLDER, *DATASETS)]


def open_dataset(
    kind: str,
    root: Path,
    split: str = "",
    pattern: str = "*",
    complete: bool = True,
    *,
    classes: ClassSet | None = None,
    folder_classes: ClassSet = CLASSES,
    groups: Sequence[tuple[int, ...]] = (),
    pixel_bits: int = 0,
) -> tuple[LabelledImages, ClassSet]:
    """Open a data set: return its samples, and the class set in which results on it are reported.

    Args:
        kind: which data set, see `Kind`.
        root: its folder, laid out as the docstring of the data set's own function says.
        split: train or val, and test of CamVid; for plain folders a sub-folder, or none.
        pattern: glob of image stems.
        complete: check the number of frames, where it is known, and that ids were mapped once. False to work with a
            part of the data set.
        classes: the class set that labels come in; by default the one that is returned.
        folder_classes: the class set of the label images of plain folders.
        groups: let ambiguous labels have ids of their own, see `labels.training_ids`.
        pixel_bits: significant bits of 16-bit images; 0: measured over the first.

    Raises DatasetError for files that are not what the layout says.
    """
    if kind == FOLDER:
        samples, evaluated = plain_folder(root / split, pattern, folder_classes), folder_classes
    elif kind in DATASETS:
        samples, evaluated = DATASETS[kind].open(root, split, pattern, complete), DATASETS[kind].evaluated
    else:
        raise DatasetError(f"received the data set {kind!r}; expected one of {FOLDER}, {', '.join(DATASETS)}")
    samples.pixel_bits = pixel_bits
    return samples.in_class_set(classes or evaluated, groups), evaluated


def open_set(
    root: Path,
    name: str,
    pattern: str = "*",
    complete: bool = True,
    classes: ClassSet | None = None,
    pixel_bits: int = 0,
) -> tuple[LabelledImages, ClassSet]:
    """Open a data set under `root`: return its samples, and the class set of their labels, in which it is evaluated.

    "nightcity_plus/val" is a split of a known data set, in the folder that docs/datasets.md names. Any other name,
    such as "nightcoarse/val", is a plain folder with labels of the set `classes` (default: cityscapes19).
    `complete=False` takes a part of a known data set. `pixel_bits` as in `open_dataset`.
    """
    head, _, split = name.partition("/")
    if head in DATASETS:
        return open_dataset(head, root / DATASETS[head].folder, split, pattern, complete, pixel_bits=pixel_bits)
    return open_dataset(FOLDER, root, name, pattern, folder_classes=classes or CLASSES, pixel_bits=pixel_bits)


def classes_of(kind: str, folder_classes: ClassSet = CLASSES) -> tuple[ClassSet, ClassSet]:
    """Return the class set of a kind's label images, and the one in which results on it are reported."""
    if kind in DATASETS:
        return DATASETS[kind].classes, DATASETS[kind].evaluated
    return folder_classes, folder_classes
