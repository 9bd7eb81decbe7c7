# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from class_sets import BDD18, CAMVID11, CITYSCAPES19

from nightlab_core.labels import (
    ClassSet,
    ambiguous_groups,
    class_mapping,
    colorize,
    first_ids,
    map_ids,
    overlay,
    palette_bgr,
    to_class_set,
    training_ids,
)

CAMVID_TO_CITYSCAPES = training_ids(CAMVID11, CITYSCAPES19)
CITYSCAPES_TO_CAMVID = training_ids(CITYSCAPES19, CAMVID11)


def test_the_sets_have_the_ids_that_the_data_sets_publish() -> None:
    assert [len(s) for s in (CITYSCAPES19, BDD18, CAMVID11)] == [19, 18, 11]
    assert CITYSCAPES19.id_of("road") == 0
    assert CITYSCAPES19.id_of("pole") == 5
    assert CITYSCAPES19.id_of("car") == 13
    assert CITYSCAPES19.id_of("bicycle") == 18
    assert BDD18.id_of("motorcycle") == 16  # one less than Cityscapes: there is no train
    assert CAMVID11.id_of("bicyclist") == 10


def test_unknown_names_and_missing_colours_are_refused() -> None:
    with pytest.raises(KeyError, match="no class 'pavement'; it has road, sidewalk"):
        CITYSCAPES19.id_of("pavement")
    with pytest.raises(ValueError, match="2 names but 1 colours"):
        ClassSet(key="short", names=("a", "b"), colors_rgb=((0, 0, 1),))


def test_cityscapes_label_ids_become_train_ids_by_name() -> None:
    names = "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, parking"
    names += ", rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light"
    names += ", traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train"
    names += ", motorcycle, bicycle"  # ids 0 to 33, as cityscapesScripts list them
    known = CITYSCAPES19.names
    expected = {i: known.index(n) if n in known else 255 for i, n in enumerate(names.split(", "))}
    assert expected == CITYSCAPES19.label_file_ids
    assert sorted(set(expected.values())) == [*range(19), 255]


def test_camvid_ids_become_the_same_things_in_cityscapes() -> None:
    names = {c: CITYSCAPES19.names[t] for c, t in CAMVID_TO_CITYSCAPES.items() if t != 255}
    assert {CAMVID11.names[c]: name for c, name in names.items()} == {
        "sky": "sky",
        "building": "building",
        "pole": "pole",
        "road": "road",
        "pavement": "sidewalk",
        "tree": "vegetation",
        "sign": "traffic sign",
        "fence": "fence",
        "car": "car",
        "pedestrian": "person",
        "bicyclist": "rider",
    }
    assert CAMVID11.file_ids[11] == 255  # CamVid's void


def test_every_cityscapes_class_has_a_camvid_class_and_there_and_back_is_the_identity() -> None:
    assert sorted(CITYSCAPES_TO_CAMVID) == list(range(19))
    assert [CITYSCAPES_TO_CAMVID[CAMVID_TO_CITYSCAPES[c]] for c in range(11)] == list(range(11))
    grouped = {name: CAMVID11.names[CITYSCAPES_TO_CAMVID[CITYSCAPES19.id_of(name)]] for name in ("bus", "terrain")}
    assert grouped == {"bus": "car", "terrain": "tree"}


def test_map_ids_translates_each_id_and_leaves_unlabelled() -> None:
    labels = np.array([[0, 3, 1], [255, 8, 9]], np.uint8)
    mapped = map_ids(labels, CAMVID_TO_CITYSCAPES)
    assert mapped.tolist() == [[10, 0, 2], [255, 13, 11]]
    assert mapped.dtype == np.uint8
    assert map_ids(np.zeros((0, 4), np.uint8), CAMVID_TO_CITYSCAPES).shape == (0, 4)


def test_map_ids_notices_labels_of_another_set() -> None:
    with pytest.raises(ValueError, match=r"ids \[13, 18\]"):
        map_ids(np.array([[0, 13, 18, 255]], np.uint8), CAMVID_TO_CITYSCAPES)


def test_colours_are_bgr_and_unlabelled_is_black() -> None:
    picture = colorize(np.array([[13, 255]], np.uint8), CITYSCAPES19)  # car is (0, 0, 142) in RGB
    assert picture.tolist() == [[[142, 0, 0], [0, 0, 0]]]
    assert palette_bgr(CAMVID11).shape == (256, 3)
    assert not palette_bgr(CAMVID11)[11:].any()


def test_overlay_blends_where_labelled_and_keeps_the_picture_elsewhere() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    blended = overlay(image, np.array([[13, 255]], np.uint8), CITYSCAPES19, opacity=0.25)
    # 0.75 x 100 + 0.25 x (142, 0, 0), halves to even
    assert blended[0, 0, 0] in (110, 111)
    assert blended[0, 0, 1:].tolist() == [75, 75]
    assert blended[0, 1].tolist() == [100, 100, 100]


def test_overlay_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"image is \(4, 4\), labels are \(2, 2\)"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2), np.uint8), CITYSCAPES19)


def test_any_class_set_goes_into_any_other_by_name() -> None:
    labels = np.array([[0, 2, 13, 255]], np.uint8)
    assert to_class_set(labels, CITYSCAPES19, CITYSCAPES19) is labels
    assert to_class_set(labels, CITYSCAPES19, CAMVID11).tolist() == [[3, 1, 8, 255]]
    assert to_class_set(np.array([[3, 8, 255]], np.uint8), CAMVID11, CITYSCAPES19).tolist() == [[0, 13, 255]]
    few = ClassSet(key="few", names=("car", "hovercraft"), colors_rgb=((0, 0, 0), (1, 1, 1)))
    assert to_class_set(np.array([[0, 1, 255]], np.uint8), few, CITYSCAPES19).tolist() == [[13, 255, 255]]
    nothing = ClassSet(key="boats", names=("hovercraft",), colors_rgb=((1, 1, 1),))
    with pytest.raises(ValueError, match="'boats' and 'cityscapes19' have no class in common"):
        to_class_set(np.zeros((1, 1), np.uint8), nothing, CITYSCAPES19)


def test_ambiguous_labels_have_training_ids_of_their_own() -> None:
    """What CamVid groups into sign and bicyclist, and nothing else, is left open."""
    groups = ambiguous_groups([CITYSCAPES19, CAMVID11, BDD18], CITYSCAPES19)
    assert groups == ((7, 6), (12, 17, 18))
    for camvid_id, ids in enumerate(class_mapping(CAMVID11, CITYSCAPES19)):
        grouped = {i for i, c in CITYSCAPES_TO_CAMVID.items() if c == camvid_id}
        name = CAMVID11.names[camvid_id]
        assert set(ids) == (grouped if name in ("sign", "bicyclist") else {CAMVID_TO_CITYSCAPES[camvid_id]})
    ids = training_ids(CAMVID11, CITYSCAPES19, groups)
    assert {CAMVID11.names[c]: i for c, i in ids.items() if i >= 19} == {"sign": 19, "bicyclist": 20}
    closed = first_ids(CITYSCAPES19, groups)
    assert [closed[ids[c]] for c in range(11)] == [CAMVID_TO_CITYSCAPES[c] for c in range(11)]
    assert closed[255] == 255
