# SPDX-License-Identifier: Apache-2.0
"""Write the reference pages of the node's parameters and topics from the code. Imports no ROS.

python -m nightlab_ros.reference docs
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from nightlab_ros.parameters import ROS_TYPES, NodeSettings, changes, choices, ros_default, value_range
from nightlab_ros.topics import DIAGNOSTIC_KEYS, DIAGNOSTICS, PUBLICATIONS, SUBSCRIPTIONS, NodeTopic

WIDTH = 120
NOTE = "<!-- Written by `python -m nightlab_ros.reference docs`; change the code, not this page. -->"


def parameters_page() -> str:
    """Return docs/parameters.md."""
    blocks = [
        "# Parameters of the node",
        NOTE,
        _wrap(
            "A parameter that changes at any time takes effect from the next frame on. One that changes at configure "
            "needs the node to be unconfigured: deactivate and cleanup first. A bad value is refused with the reason. "
            "[config/nightlab.yaml](../config/nightlab.yaml) is the file that the launch file loads; "
            "`ros2 param describe /nightlab NAME` shows the same texts."
        ),
    ]
    for name, field in NodeSettings.model_fields.items():
        blocks.append(f"## `{name}`")
        blocks.append(_wrap(_sentence(field.description or "", choices(field))))
        blocks.append("\n".join(f"- {fact}" for fact in _facts(field)))
    return "\n\n".join(blocks) + "\n"


def topics_page() -> str:
    """Return docs/topics.md."""
    blocks = [
        "# Topics of the node",
        NOTE,
        _wrap(
            "Names are relative to the namespace; `~` is the node's own name, `/nightlab` by default. Every message "
            "that is made from an image has its stamp and frame_id. Queues have a depth of 1."
        ),
    ]
    for title, topics in (("Subscriptions", SUBSCRIPTIONS), ("Publications", PUBLICATIONS)):
        blocks.append(f"## {title}")
        blocks.extend(_topic(topic) for topic in topics)
    blocks.append(f"## Values in `{DIAGNOSTICS.name}`")
    blocks.append("\n".join(_item(f"`{key}`: {text}") for key, text in DIAGNOSTIC_KEYS.items()))
    blocks.append("## Services")
    blocks.append(
        _wrap(
            "Those of a lifecycle node: `~/change_state`, `~/get_state` and others, and the parameter services "
            "`~/set_parameters`, `~/get_parameters`, `~/describe_parameters` and others."
        )
    )
    return "\n\n".join(blocks) + "\n"


#: Function of each page, by file name.
PAGES = {"parameters.md": parameters_page, "topics.md": topics_page}


def _facts(field: FieldInfo) -> Iterable[str]:
    default = ros_default(field)
    shown = str(default).lower() if isinstance(default, bool) else str(default) or '""'
    yield f"type {ROS_TYPES[type(field.default)]}, default `{shown}`, changes {changes(field)}"
    if choices(field):
        yield f"one of {', '.join(f'`{choice}`' for choice in choices(field))}"
    low, high = value_range(field)
    if low is not None and high is not None:
        yield f"{low} to {high}"


def _topic(topic: NodeTopic) -> str:
    latched = ", transient local" if topic.latched else ""
    return f"### `{topic.name}`\n\n{_wrap(f'{topic.message_type}, {topic.reliability}{latched}. {topic.description}')}"


def _sentence(text: str, values: Sequence[str] = ()) -> str:
    """Return a description as a sentence. `values` keep their small letters."""
    first = text.split(" ")[0]
    return (text if first in values else text[:1].upper() + text[1:]) + "."


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def _item(text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "- " + "\n  ".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages into the folder given; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1 or not Path(given[0]).is_dir():
        print(f"received {given}; expected the folder of the pages, such as docs", file=sys.stderr)
        return 2
    for name, page in PAGES.items():
        (Path(given[0]) / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
