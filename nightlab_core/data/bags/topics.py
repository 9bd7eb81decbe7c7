# SPDX-License-Identifier: Apache-2.0
"""Choose the topics of camera images and of label maps in a bag."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Literal

from nightlab_core.data.bags.messages import IMAGE_TYPES
from nightlab_core.data.bags.protocol import Topic

#: A topic of label maps (mono8 or PNG) has one of these as a part of its name.
LABEL_PARTS = ("label", "labels", "ground_truth", "gt")
#: A topic with one of these words in its name holds distances, and is taken as camera images only if it is named.
DEPTH_WORDS = ("depth", "compresseddepth", "disparity")
#: Ending that image_transport gives to the topics of compressed images.
_COMPRESSED = "/compressed"

Role = Literal["image", "label"]


#: Options of all commands that name a topic of a bag.
_OPTIONS: dict[Role, str] = {"image": "--topic", "label": "--label-topic"}


class TopicError(ValueError):
    """Several topics are possible, and one must be named; the text names the option and lists the topics."""


class MissingTopicError(TopicError):
    """The bag has no topic of the given name, or no topic of images."""


def is_label_topic(topic: str) -> bool:
    """Return whether a topic holds label maps, by its name."""
    return any(part in LABEL_PARTS for part in topic.lower().split("/"))


def is_depth_topic(topic: str) -> bool:
    """Return whether a topic holds distances, by its name."""
    return any(word in DEPTH_WORDS for word in re.split("[/_]", topic.lower()))


def choose_image_topic(path: Path, topics: Mapping[str, Topic], asked: str | None) -> str:
    """Return the topic of camera images: `asked`, or the only one. Raises TopicError with the list of topics."""
    if asked is not None:
        return _asked(path, topics, asked, "image")
    found = _candidates(topics, "image")
    if not found:
        raise MissingTopicError(f"{path} holds no topic of camera images. {_listed(topics)}")
    return _only(path, topics, found, "image")


def choose_label_topic(
    path: Path, topics: Mapping[str, Topic], asked: str | None, image_topic: str, note: Callable[[str], None]
) -> str | None:
    """Return the topic of label maps: `asked`, the only one, or None without any. Raises TopicError.

    A topic whose name belongs to another camera than `image_topic` is left out, and `note` receives a sentence on it.
    """
    if asked is not None:
        return _asked(path, topics, asked, "label")
    found = _candidates(topics, "label")
    if not found:
        return None
    chosen = _only(path, topics, found, "label")
    if (owner := _owner(topics, chosen, image_topic)) == image_topic:
        return chosen
    note(f"{chosen} is not used: by its name it belongs to {owner}; --label-topic {chosen} uses it all the same")
    return None


def _asked(path: Path, topics: Mapping[str, Topic], asked: str, role: Role) -> str:
    if asked in topics and topics[asked].type in IMAGE_TYPES:
        return asked
    raise MissingTopicError(f"{path}: {role} topic {asked} is not there ({_OPTIONS[role]}). {_listed(topics)}")


def _candidates(topics: Mapping[str, Topic], role: Role) -> list[str]:
    found = [n for n, t in topics.items() if t.type in IMAGE_TYPES and is_label_topic(n) == (role == "label")]
    found = [name for name in found if not is_depth_topic(name)]
    left_out = {_fewer(topics, name, other) for name in found if (other := other_form(topics, name))}
    found = [name for name in found if name not in left_out]
    return [name for name in found if topics[name].count] or found


def _owner(topics: Mapping[str, Topic], label_topic: str, image_topic: str) -> str:
    """Return the image topic that shares most of its namespace with a label topic: `image_topic` if several do."""

    def shared(topic: str) -> int:
        pairs = zip(topic.split("/")[:-1], label_topic.split("/")[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max((image_topic, *_candidates(topics, "image")), key=shared)


def other_form(topics: Mapping[str, Topic], topic: str) -> str | None:
    """Return the topic of the same images in the other form, raw or compressed, if the bag has one."""
    other = topic[: -len(_COMPRESSED)] if topic.endswith(_COMPRESSED) else topic + _COMPRESSED
    return other if other in topics and topics[other].type in IMAGE_TYPES else None


def _fewer(topics: Mapping[str, Topic], topic: str, other: str) -> str:
    """Return the topic with fewer messages, the compressed one if both have as many."""
    return min((topic, other), key=lambda name: (topics[name].count, not name.endswith(_COMPRESSED)))


def _only(path: Path, topics: Mapping[str, Topic], found: list[str], role: Role) -> str:
    if len(found) > 1:
        raise TopicError(f"{path} holds several {role} topics: name one with {_OPTIONS[role]}. {_listed(topics)}")
    return found[0]


def _listed(topics: Mapping[str, Topic]) -> str:
    lines = [f"  {name}  {topic.type}  {topic.count}" for name, topic in sorted(topics.items())]
    return "Its topics, with type and number of messages:\n" + "\n".join(lines or ["  none"])
