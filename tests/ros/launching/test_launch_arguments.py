# SPDX-License-Identifier: Apache-2.0
"""The arguments of the launch files."""

from __future__ import annotations

import pytest

from nightlab_ros.launch_arguments import flag, misspelt, named_topics, remappings


def test_the_topics_of_a_camera_are_those_beside_its_image_topic() -> None:
    assert dict(remappings(named_topics("front:=/front/image_raw rear:=rear_raw top:=/raw"))) == {
        "front/image": "/front/image_raw",
        "front/image/compressed": "/front/image_raw/compressed",
        "front/camera_info": "/front/camera_info",
        "rear/image": "rear_raw",
        "rear/image/compressed": "rear_raw/compressed",
        "rear/camera_info": "camera_info",
        "top/image": "/raw",
        "top/image/compressed": "/raw/compressed",
        "top/camera_info": "/camera_info",
    }
    assert ("camera_info", "/camera/camera_info") in remappings({"": "/camera/image_raw"})


@pytest.mark.parametrize("images", [" ", "/front/image_raw", "front:=", ":=/front/image_raw", "a:=b:=c"])
def test_images_that_cannot_be_read_are_refused(images: str) -> None:
    with pytest.raises(ValueError, match="expected NAME:=TOPIC for each camera"):
        named_topics(images)


def test_two_cameras_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="expected another name for each camera"):
        named_topics("front:=/a front:=/b")


def test_a_flag_is_true_or_false() -> None:
    assert flag("respawn", "true") and flag("respawn", "True") and not flag("respawn", "false")
    for text in ("maybe", "1", ""):
        with pytest.raises(ValueError, match=r"respawn: received .* expected true or false"):
            flag("respawn", text)


def test_an_argument_that_is_close_to_a_known_one_is_named() -> None:
    known = ["engine", "image", "images", "max_regions", "respawn", "params_file"]
    given = [*known, "max_region", "param_file", "use_respawn", "image_topic", "map"]
    assert misspelt(given, known) == [
        "received the argument 'max_region', which changes nothing: did you mean 'max_regions'?",
        "received the argument 'param_file', which changes nothing: did you mean 'params_file'?",
    ]
