# SPDX-License-Identifier: Apache-2.0
"""Read the arguments of the launch files, with PyYAML alone: `ros2 launch` runs by the system's Python."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from nightlab_core.yaml_files import parse_yaml


def flag(name: str, text: str) -> bool:
    """Return an argument that is true or false. Raises ValueError for any other text."""
    value = parse_yaml(text, name)
    if not isinstance(value, bool):
        raise ValueError(f"{name}: received {text!r}, expected true or false")
    return value


def misspelt(given: Collection[str], known: Collection[str]) -> list[str]:
    """Return a sentence for each given argument that is close to a known one; ROS takes any name without a word.

    Names that are not close may be arguments of a launch file that includes ours.
    """
    sentences = []
    for name in sorted(set(given) - set(known)):
        for close in difflib.get_close_matches(name, known, 1, cutoff=0.85):
            sentences.append(f"received the argument '{name}', which changes nothing: did you mean '{close}'?")
    return sentences


def named_topics(images: str) -> dict[str, str]:
    """Return the topic of each camera by its name, of a text such as "front:=/front/image rear:=/rear/image".

    Raises ValueError if it cannot be read, or if two cameras have one name.
    """
    pairs = [(name, topic) for name, _, topic in (word.partition(":=") for word in images.split())]
    if not pairs or not all(name and topic and ":=" not in topic for name, topic in pairs):
        raise ValueError(f"images: received {images!r}, expected NAME:=TOPIC for each camera, separated by blanks")
    topics = dict(pairs)
    if len(topics) < len(pairs):
        raise ValueError(f"images: received {images!r}, expected another name for each camera")
    return topics


def remappings(cameras: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the remappings of each camera's topics to those beside its image topic. "" names the only camera."""
    pairs = []
    for name, topic in cameras.items():
        own, folder = f"{name}/" if name else "", topic[: topic.rfind("/") + 1]
        pairs += [
            (f"{own}image", topic),
            (f"{own}image/compressed", f"{topic}/compressed"),
            (f"{own}camera_info", f"{folder}camera_info"),
        ]
    return pairs
