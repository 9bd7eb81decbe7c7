# SPDX-License-Identifier: Apache-2.0
"""Classes of a level's channels, and ambiguous training labels."""

import pytest
from class_sets import CAMVID11, CITYSCAPES19

from nightlab_core.labels import ambiguous_groups
from nightlab_core.models.output_labels import OutputLabels

GROUPS = ambiguous_groups([CAMVID11], CITYSCAPES19)
#: bicycle, rider and motorcycle make CamVid's bicyclist.
HARD = OutputLabels.of(
    CITYSCAPES19, ("pole", "traffic light", "traffic sign", "wall", "bicycle", "rider", "motorcycle"), GROUPS
)


def test_with_all_classes_every_label_is_its_own_target() -> None:
    outputs = OutputLabels.of(CITYSCAPES19, groups=GROUPS)
    assert outputs.names == CITYSCAPES19.names and len(outputs) == 19
    assert outputs.targets[:21] == tuple(range(21)) and set(outputs.targets[21:]) == {255}
    assert outputs.ambiguous == ((6, 7), (12, 17, 18))


def test_with_some_classes_the_rest_is_other() -> None:
    assert HARD.ids == (5, 6, 7, 3, 18, 12, 17, 255)
    assert HARD.names == ("pole", "traffic light", "traffic sign", "wall", "bicycle", "rider", "motorcycle", "other")
    assert [HARD.targets[i] for i in (5, 6, 3, 18)] == [0, 1, 3, 4]  # a class goes to its channel,
    assert {HARD.targets[i] for i in (0, 1, 2, 8, 10, 13, 16)} == {7}  # and all else to other
    assert HARD.targets[255] == 255


def test_ambiguous_labels_keep_their_classes() -> None:
    def channels(label: int) -> tuple[int, ...]:
        target = HARD.targets[label]
        return HARD.ambiguous[target - len(HARD)] if target >= len(HARD) else (target,)

    assert channels(19) == (1, 2)  # CamVid's sign: a light or a sign
    assert channels(20) == (4, 5, 6)  # its bicyclist
    assert len(HARD.ambiguous) == 2
    some = OutputLabels.of(CITYSCAPES19, ("traffic sign", "bicycle"), GROUPS)
    assert some.targets[19] == len(some) and some.ambiguous[0] == (0, 2)  # a sign or other


def test_wrong_class_names_are_refused() -> None:
    with pytest.raises(KeyError, match="lamp"):
        OutputLabels.of(CITYSCAPES19, ("pole", "lamp"))
    with pytest.raises(ValueError, match="each name once"):
        OutputLabels.of(CITYSCAPES19, ("pole", "pole"))
    with pytest.raises(ValueError, match="'other'"):
        OutputLabels.of(CITYSCAPES19, ("pole", "other"))
