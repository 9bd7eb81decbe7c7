# SPDX-License-Identifier: Apache-2.0
"""BDD100K's semantic labels: all of them, or those of its night or day frames (https://bdd-data.berkeley.edu).

A frame counts if it has a label: some images of the older downloads have none. Labels are Cityscapes train ids.
"""

from __future__ import annotations

from pathlib import Path

from nightlab_core.data.datasets.cityscapes import CLASSES
from nightlab_core.data.datasets.paired import DatasetError, LabelledImages, check_mapping
from nightlab_core.data.image_files import image_files

FRAMES = {"train": 7000, "val": 1000}


def bdd100k(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open BDD100K's 7000 train and 1000 val frames with semantic labels, 1280x720:

        root/images/10k/{train,val}/0a0a0b1a-7c39d841.jpg
        root/labels/sem_seg/masks/{train,val}/0a0a0b1a-7c39d841.png

    The first release is also accepted: root/seg/images/{train,val}/<stem>.jpg with root/seg/labels/{train,val}/
    <stem>_train_id.png. If there is only root/images/100k, the masks whose image is in it are used: the 10k images
    overlap with the 100k, but are not part of them, and are split differently.
    """
    if split not in FRAMES:
        raise DatasetError(f"BDD100K has semantic labels of the splits {' and '.join(FRAMES)}; received {split!r}")
    masks = _first_folder(root, f"labels/sem_seg/masks/{split}", f"seg/labels/{split}")
    labels = {mask_stem(p): p for p in image_files(masks) if p.suffix == ".png"}
    if complete and len(labels) != FRAMES[split]:
        raise DatasetError(
            f"{masks} holds {len(labels)} masks; BDD100K {split} has {FRAMES[split]}. Is the download complete?"
            " For a part of it, say complete: false in a recipe, --partial to a command"
        )
    images = _first_folder(root, f"images/10k/{split}", f"seg/images/{split}", "images/100k")
    if images.name == "100k":
        found = {p.stem: p for p in images.glob("*/[!.]*.jpg")}
        pairs = [(found[stem], label) for stem, label in labels.items() if stem in found]
    else:
        pairs = [(images / f"{stem}.jpg", label) for stem, label in labels.items()]
        pairs = [pair for pair in pairs if complete or pair[0].is_file()]
    if not pairs:
        raise DatasetError(f"no mask in {masks} has its image in {images}")
    samples = LabelledImages(pairs, CLASSES)
    if complete:
        check_mapping(samples)
    return samples.matching(pattern)


def bdd100k_night(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open BDD100K's labelled night frames: those in root/night.txt.

    `python -m nightlab_core.data.datasets.bdd_night` writes this file; a line is "val/81d5165d-fcfc6c67". Evaluated in
    18 classes, since these frames hold no train. Raises DatasetError for listed frames without image or mask;
    `complete=False` leaves them out.
    """
    return _listed(root, split, pattern, complete, "night.txt", "")


def bdd100k_day(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open BDD100K's labelled day frames: those in root/day.txt, which the same command writes for "daytime"."""
    return _listed(root, split, pattern, complete, "day.txt", "--timeofday daytime ")


def _listed(root: Path, split: str, pattern: str, complete: bool, name: str, option: str) -> LabelledImages:
    names = root / name
    if not names.is_file():
        raise DatasetError(
            f"{names} does not exist; list these frames first with python -m nightlab_core.data.datasets.bdd_night"
            f" LABELS_JSON {option}--masks {root / 'labels/sem_seg/masks'} --out {names}"
        )
    wanted = {line.removeprefix(f"{split}/") for line in names.read_text().split() if line.startswith(f"{split}/")}
    everything = bdd100k(root, split, complete=False)
    pairs = [p for p in zip(everything.images, everything.labels, strict=True) if p[0].stem in wanted]
    missing = sorted(wanted - {image.stem for image, _ in pairs})
    if missing and complete:
        raise DatasetError(f"{names} lists {split}/{missing[0]}, and {len(missing) - 1} more, without mask or image")
    if not pairs:
        raise DatasetError(f"{names} lists no frame of {split} that is there; expected lines like {split}/<stem>")
    samples = LabelledImages(pairs, CLASSES)
    if complete:
        check_mapping(samples)
    return samples.matching(pattern)


def mask_stem(path: Path) -> str:
    """Return the name that a mask shares with its image."""
    return path.stem.removesuffix("_train_id")


def _first_folder(root: Path, *choices: str) -> Path:
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise DatasetError(f"{root} holds none of the folders {', '.join(choices)}")
