# SPDX-License-Identifier: Apache-2.0
"""What the channels of a level stand for, and what its training labels leave open."""

import pytest

from nightlab_core.labels import CITYSCAPES19, OPEN_LABELS
from nightlab_core.models.output_labels import OutputLabels

#: bicycle, rider and motorcycle make CamVid's bicyclist.
HARD = OutputLabels.of(("pole", "traffic light", "traffic sign", "wall", "bicycle", "rider", "motorcycle"))


def test_all_classes_are_their_own_targets() -> None:
    outputs = OutputLabels.of()
    assert outputs.names == CITYSCAPES19.names and len(outputs) == 19
    assert outputs.targets[:21] == tuple(range(21)) and set(outputs.targets[21:]) == {255}
    assert outputs.opened == tuple(OPEN_LABELS.values())


def test_some_classes_and_other() -> None:
    assert HARD.ids == (5, 6, 7, 3, 18, 12, 17, 255)
    assert HARD.names == ("pole", "traffic light", "traffic sign", "wall", "bicycle", "rider", "motorcycle", "other")
    assert [HARD.targets[i] for i in (5, 6, 3, 18)] == [0, 1, 3, 4]  # a class goes to its channel,
    assert {HARD.targets[i] for i in (0, 1, 2, 8, 10, 13, 16)} == {7}  # and all else to other
    assert HARD.targets[255] == 255


def test_open_labels_keep_what_they_say() -> None:
    def channels(label: int) -> tuple[int, ...]:
        target = HARD.targets[label]
        return HARD.opened[target - len(HARD)] if target >= len(HARD) else (target,)

    assert channels(19) == (1, 2)  # CamVid's sign: a light or a sign
    assert channels(20) == (4, 5, 6)  # its bicyclist
    assert len(HARD.opened) == 2
    some = OutputLabels.of(("traffic sign", "bicycle"))
    assert some.targets[19] == len(some) and some.opened[0] == (0, 2)  # a sign or other


def test_wrong_names_are_errors() -> None:
    with pytest.raises(KeyError, match="lamp"):
        OutputLabels.of(("pole", "lamp"))
    with pytest.raises(ValueError, match="each name once"):
        OutputLabels.of(("pole", "pole"))
