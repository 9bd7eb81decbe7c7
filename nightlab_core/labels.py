# SPDX-License-Identifier: Apache-2.0
"""Class sets, their ids, names and colours, the mappings between them, and how a label map is drawn.

Label maps are uint8 (H, W). Ids count from 0; 255 is unlabelled everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE_ID = 255


@dataclass(frozen=True)
class ClassSet:
    """Names and RGB colours of classes 0..C-1."""

    key: str
    names: tuple[str, ...]
    colors_rgb: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colors_rgb):
            raise ValueError(f"{self.key}: {len(self.names)} names but {len(self.colors_rgb)} colours")

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int:
        """The id of a class by name. KeyError names the choices."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"class set {self.key!r} has no class {name!r}; it has {', '.join(self.names)}") from None


_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

CITYSCAPES19 = ClassSet("cityscapes19", tuple(_CITYSCAPES), tuple(_CITYSCAPES.values()))
#: BDD100K's 19 train ids without "train", which its night frames lack.
BDD18 = ClassSet(
    "bdd18",
    tuple(n for n in _CITYSCAPES if n != "train"),
    tuple(c for n, c in _CITYSCAPES.items() if n != "train"),
)
CAMVID11 = ClassSet("camvid11", tuple(_CAMVID), tuple(_CAMVID.values()))
CLASS_SETS = {s.key: s for s in (CITYSCAPES19, BDD18, CAMVID11)}

#: Cityscapes' 34 label ids -> train ids (cityscapesScripts, helpers/labels.py); what is not evaluated is unlabelled.
CITYSCAPES_IDS_TO_TRAIN_IDS = {
    **dict.fromkeys(range(34), IGNORE_ID),
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14},
    **{28: 15, 31: 16, 32: 17, 33: 18},
}
#: CamVid id -> Cityscapes train id, for training on CamVid. Its void, 11, becomes unlabelled.
CAMVID_TO_CITYSCAPES = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 11: IGNORE_ID}
#: Cityscapes train id -> CamVid id, for evaluation in CamVid's 11 classes. CamVid's own grouping puts walls in
#: building, terrain in tree, trucks, buses and trains in car, and motorcycles in bicyclist.
CITYSCAPES_TO_CAMVID = {
    **{0: 3, 1: 4, 2: 1, 3: 1, 4: 7, 5: 2, 6: 6, 7: 6, 8: 5, 9: 5, 10: 0, 11: 9},
    **{12: 10, 13: 8, 14: 8, 15: 8, 16: 8, 17: 10, 18: 10},
}
#: Cityscapes train id -> id in BDD18. A truth of "train" is not judged; a prediction of it is wrong.
CITYSCAPES_TO_BDD18 = {i: IGNORE_ID if i == 16 else i - (i > 16) for i in range(19)}
#: Ids of training labels that leave open which of several train ids is meant: CamVid's sign holds traffic lights, its
#: bicyclist bicycles and motorcycles. Where one of them is nearly all (its car holds some trucks and buses, its
#: building walls, its tree terrain) that one is taught: left open, half of all cars became trucks and buses in time,
#: and a quarter of all buildings walls, and no label called them back.
OPEN_LABELS = {19: (6, 7), 20: (12, 17, 18)}
#: Cityscapes train id, as `CAMVID_TO_CITYSCAPES` gives it -> the open label that CamVid means.
CAMVID_OPENED = {**{i: i for i in range(19)}, 7: 19, 12: 20}


def map_ids(labels: np.ndarray, mapping: dict[int, int]) -> np.ndarray:
    """Translate a label map, uint8 (H, W), id by id; 255 stays 255 unless the mapping names it.

    Raises ValueError for an id that the mapping lacks: to map twice, or not at all, is the field's commonest mistake.
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
    """A label map in another class set: CamVid's own grouping, or else by name; what the target lacks becomes 255."""
    if source.names == target.names:
        return labels
    if (source.names, target.names) == (CITYSCAPES19.names, CAMVID11.names):
        return map_ids(labels, CITYSCAPES_TO_CAMVID)
    if (source.names, target.names) == (CAMVID11.names, CITYSCAPES19.names):
        return map_ids(labels, CAMVID_TO_CITYSCAPES)
    ids = {i: target.id_of(name) if name in target.names else IGNORE_ID for i, name in enumerate(source.names)}
    return map_ids(labels, ids)


def in_class_set(labels: np.ndarray, classes: ClassSet) -> np.ndarray:
    """A label map of Cityscapes train ids, uint8 (H, W), in the ids of the class set that it is judged in."""
    if classes is CITYSCAPES19:
        return labels
    return map_ids(labels, {CAMVID11.key: CITYSCAPES_TO_CAMVID, BDD18.key: CITYSCAPES_TO_BDD18}[classes.key])


def palette_bgr(classes: ClassSet) -> np.ndarray:
    """A look-up table, uint8 (256, 3) BGR; unlabelled and unknown ids are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.asarray(classes.colors_rgb, np.uint8)[:, ::-1]
    return table


def colorize(labels: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Paint a label map, uint8 (H, W), in its class colours: uint8 (H, W, 3) BGR."""
    return palette_bgr(classes)[labels]


def overlay(image_bgr: np.ndarray, labels: np.ndarray, classes: ClassSet, opacity: float = 0.5) -> np.ndarray:
    """Blend class colours over a picture, uint8 (H, W, 3) BGR; unlabelled pixels keep the picture."""
    if image_bgr.shape[:2] != labels.shape:
        raise ValueError(f"image is {image_bgr.shape[:2]}, labels are {labels.shape}: both must be the same (H, W)")
    import cv2

    blended = cv2.addWeighted(image_bgr, 1.0 - opacity, colorize(labels, classes), opacity, 0.0)
    return np.where((labels == IGNORE_ID)[..., None], image_bgr, blended)
