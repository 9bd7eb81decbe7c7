# SPDX-License-Identifier: Apache-2.0
"""NightCity and its revisions: three label sets for the same 2998 + 1299 night images, 1024x512.

- NightCity (Tan et al., TIP 2021): Cityscapes' 34 label ids, `<stem>_labelIds.png`.
  https://dmcv.sjtu.edu.cn/people/phd/tanxin/NightCity/index.html
- NightCity+ (Deng et al., NightLab, CVPR 2022): new label ids of the 1299 val frames; train is NightCity's.
  https://github.com/xdeng7/NightLab
- NightCity-fine (Wei et al., DTP, ICCV 2023): train and val refined, train ids, `<stem>_trainIds.png`.
  https://github.com/w1oves/DTP

Figures on different label sets cannot be compared. Dubai_0016 belongs to train: NightCity's first upload had it in val
(2997 + 1300), and NightCity+'s val folder still holds its label. It counts as train in any folder.
"""

from __future__ import annotations

from pathlib import Path

from nightlab_core.data.datasets.cityscapes import CLASSES
from nightlab_core.data.datasets.paired import DatasetError, LabelledImages, check_mapping, list_images

FRAMES = {"train": 2998, "val": 1299}
_MISPLACED = "Dubai_0016"


def nightcity(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open NightCity; label ids are mapped to train ids. The two archives unpack to

        root/NightCity-images/images/{train,val}/Chicago_0002.png
        root/NightCity-label/label/{train,val}/Chicago_0002_labelIds.png

    root/images and root/label are also accepted. `split`: train or val. `pattern`: glob of image stems.
    `complete=False` accepts a part of the data set: neither the number of frames nor the set of ids is checked.
    """
    images, labels = _folders(root)
    return _open("NightCity", images, {s: labels / s for s in FRAMES}, "_labelIds.png", split, pattern, complete)


def nightcity_plus(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open NightCity+: as `nightcity`, with the val frames' labels from NightLab's archive, unpacked to

        root/NightCity-plus/val/Chicago_0004_labelIds.png

    These are reported to be 2048x1024 for images of 1024x512: of labels n times as large as the image, every n-th pixel
    is read.
    """
    if split != "val":
        return nightcity(root, split, pattern, complete)
    images, _ = _folders(root)
    labels = root / "NightCity-plus" / "val"
    if not labels.is_dir():
        raise DatasetError(f"{labels} is not a folder; expected the val labels of NightCity+ there, *_labelIds.png")
    return _open("NightCity+", images, {"val": labels}, "_labelIds.png", split, pattern, complete)


def nightcity_fine(root: Path, split: str, pattern: str = "*", complete: bool = True) -> LabelledImages:
    """Open NightCity-fine, whose labels are train ids:

    root/{train,val}/img/Chicago_0002.png
    root/{train,val}/lbl/Chicago_0002_trainIds.png
    """
    images = {s: root / s / "img" for s in FRAMES}
    labels = {s: root / s / "lbl" for s in FRAMES}
    return _open("NightCity-fine", images, labels, "_trainIds.png", split, pattern, complete)


def _folders(root: Path) -> tuple[dict[str, Path], Path]:
    """Return NightCity's folders of images by split, and its folder of labels, in either layout."""
    archives = root / "NightCity-images" / "images", root / "NightCity-label" / "label"
    images, labels = archives if archives[0].is_dir() else (root / "images", root / "label")
    if not images.is_dir() or not labels.is_dir():
        raise DatasetError(
            f"{root} holds neither NightCity-images/images and NightCity-label/label nor images and label:"
            " unpack both of NightCity's archives there"
        )
    return {s: images / s for s in FRAMES}, labels


def _open(
    name: str,
    images: dict[str, Path],
    labels: dict[str, Path],
    suffix: str,
    split: str,
    pattern: str,
    complete: bool,
) -> LabelledImages:
    if split not in FRAMES:
        raise DatasetError(f"{name} has the splits {' and '.join(FRAMES)}; received {split!r}")
    pairs = {p.stem: (p, labels[split] / f"{p.stem}{suffix}") for p in list_images(images[split])}
    misplaced = images["val"] / f"{_MISPLACED}.png"
    if split == "val":
        pairs.pop(_MISPLACED, None)
    elif _MISPLACED not in pairs and misplaced.is_file():
        pairs[_MISPLACED] = misplaced, labels["val"] / f"{_MISPLACED}{suffix}"
    if complete and len(pairs) != FRAMES[split]:
        raise DatasetError(
            f"{images[split]} gives {len(pairs)} images of {name} {split}, {_MISPLACED} counted as train; expected"
            f" {FRAMES[split]}. Is the download complete? For a part of it, say complete: false in a recipe,"
            " --partial to a command"
        )
    file_ids = None if suffix == "_trainIds.png" else CLASSES.label_file_ids
    samples = LabelledImages((pairs[s] for s in sorted(pairs)), CLASSES, file_ids, finer_labels=name == "NightCity+")
    if complete:
        check_mapping(samples)
    return samples.matching(pattern)
