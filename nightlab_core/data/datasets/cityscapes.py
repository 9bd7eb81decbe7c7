# SPDX-License-Identifier: Apache-2.0
"""Cityscapes (https://www.cityscapes-dataset.com), and the class set of all data sets that use its train ids."""

from __future__ import annotations

from pathlib import Path

from nightlab_core.classes import load_class_set
from nightlab_core.data.datasets.paired import DatasetError, LabelledImages, check_mapping

CLASSES = load_class_set("cityscapes19")


def cityscapes(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open Cityscapes with fine labels, 2975 train and 500 val frames of 2048x1024:

        root/leftImg8bit/{train,val}/aachen/aachen_000000_000019_leftImg8bit.png
        root/gtFine/{train,val}/aachen/aachen_000000_000019_gtFine_labelIds.png

    Label ids are mapped to train ids. `_gtFine_labelTrainIds.png`, which cityscapesScripts write, are read if the first
    frame has no labelIds. The test split is refused, since its labels are blank.
    """
    frames = {"train": 2975, "val": 500}
    if split not in frames:
        raise DatasetError(f"Cityscapes has labels of the splits {' and '.join(frames)}; received {split!r}")
    folder, ending = root / "leftImg8bit" / split, "_leftImg8bit.png"
    images = sorted(folder.glob(f"*/[!.]*{ending}"))
    if not images or (complete and len(images) != frames[split]):
        raise DatasetError(
            f"{folder} holds {len(images)} files <city>/*{ending}; expected {frames[split]}."
            f" Unpack leftImg8bit_trainvaltest.zip in {root}; for a part of it, say complete: false in a recipe,"
            " --partial to a command"
        )
    stems = [root / "gtFine" / split / p.parent.name / f"{p.name.removesuffix(ending)}_gtFine_" for p in images]
    mapped = Path(f"{stems[0]}labelTrainIds.png").is_file() and not Path(f"{stems[0]}labelIds.png").is_file()
    labels = [Path(f"{stem}{'labelTrainIds' if mapped else 'labelIds'}.png") for stem in stems]
    samples = LabelledImages(zip(images, labels, strict=True), CLASSES, None if mapped else CLASSES.label_file_ids)
    if complete:
        check_mapping(samples)
    return samples.matching(pattern)
