# SPDX-License-Identifier: Apache-2.0
"""Write the reference pages of parameters, topics and inputs from the code. Imports no ROS.

python -m nightlab_ros.reference docs
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from nightlab_core.data.bags.label_pairs import TOLERANCE_NS
from nightlab_core.data.bags.storage import SUFFIXES
from nightlab_core.data.bags.topics import DEPTH_WORDS
from nightlab_core.data.bags.unpacking import MAX_RATIO, MAX_UNPACKED_BYTES, SMALL_FILE_BYTES
from nightlab_core.data.frames import VIDEO_SUFFIXES
from nightlab_core.data.image_files import IMAGE_SUFFIXES
from nightlab_core.data.image_header import MAX_ASPECT, MAX_BYTES, MAX_PIXELS
from nightlab_core.data.images import ENCODINGS
from nightlab_core.data.label_doubts import MOST_SAMPLES
from nightlab_core.data.label_maps import palette_ids
from nightlab_core.data.pixel_depth import FIRST_FRAMES, MEASURED_BITS, MOST_HOT, ONE_HOT_OF
from nightlab_ros.monitoring.degradation import DEGRADATIONS, LEVELS
from nightlab_ros.parameters import NodeSettings, changes, choices, ros_type, ros_value, value_range
from nightlab_ros.topics import CAPTURE_SERVICE, DIAGNOSTIC_KEYS, DIAGNOSTICS, PUBLICATIONS, SUBSCRIPTIONS, NodeTopic

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
            "[config/nightlab.yaml](../config/nightlab.yaml) has those that a vehicle usually sets: give a copy of it "
            "to the launch file as `params_file`. "
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
            "that is made from an image has its stamp and frame_id. Queues have a depth of 1. With the parameter "
            "`cameras`, each camera has its own topics and its own status in `/diagnostics`: `front/image`, "
            "`~/front/mask`, `/nightlab/front: segmentation`. Parameters `qos_overrides.TOPIC.subscription.POLICY` and "
            "`qos_overrides.TOPIC.publisher.POLICY` set the policies `reliability`, `depth` and `history` of a topic, "
            "given by its full name."
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
            f"`{CAPTURE_SERVICE}`, std_srvs/srv/Trigger, writes the last frame of each camera, the masks of both "
            "levels, the regions and the values of `/diagnostics` into `capture_dir`. The answer names the folders. No "
            "image is received while they are written. The others are those of a lifecycle node: `~/change_state`, "
            "`~/get_state` and others, and the parameter services "
            "`~/set_parameters`, `~/get_parameters`, `~/describe_parameters` and others."
        )
    )
    blocks.append("## Lifecycle managers")
    blocks.append(
        _wrap(
            "configure returns within 5 s. If opening and compiling the engines takes longer, it goes on in the "
            "background, with its progress in `/diagnostics`; the node may be activated at once, and masks come when "
            "the engines are ready. If they cannot be loaded, `/diagnostics` shows the reason as an error. For Nav2's "
            "lifecycle manager the active node sends heartbeats on `bond` if the ROS package bond is installed; "
            "without it, set `bond_timeout: 0.0` in the manager. The node never changes its state by itself, except "
            "with `autostart` at its start, and after an engine that hangs."
        )
    )
    return "\n\n".join(blocks) + "\n"


def inputs_page() -> str:
    """Return docs/what-is-read.md."""
    rows: dict[str, list[str]] = {}
    for name, encoding in ENCODINGS.items():
        rows.setdefault(encoding.pixels, []).append(f"`{name}`")
    rule = inspect.getdoc(palette_ids) or ""
    numbered = [" ".join(item.split()) for item in re.findall(r"^(\d\. .*?)(?=\n\d\. |\n\n|\Z)", rule, re.M | re.S)]
    blocks = [
        "# What is read",
        NOTE,
        _wrap(
            "Node, demo, replay, `nightlab bag` and training read images, label maps and bags with the same code, "
            "which refuses everything else and says why."
        ),
        "## Raw images",
        _wrap(
            "`sensor_msgs/Image` of these encodings, with any `step`. Values of 16 bits may be little or big "
            "endian. All "
            "become blue, green, red of 8 bits."
        ),
        "\n".join(["| pixel | encodings |", "|---|---|", *(f"| {k} | {', '.join(v)} |" for k, v in rows.items())]),
        _wrap(
            "`height` of YUV 4:2:0 is the picture's, without the rows of chroma, so that the data has height "
            "times step times 3/2 bytes. YUV is BT.601 in studio range, and needs even sides. A Bayer "
            "mosaic has at least 3x3 pixels."
        ),
        "## Significant bits",
        _wrap(
            f"Cameras of 10, 12 and 14 bits store them in 16. The number is measured: the smallest of "
            f"{', '.join(map(str, MEASURED_BITS))} that holds the highest value of the first {FIRST_FRAMES} frames "
            "that are not black, or of a folder's first files, without a frame's highest pixels, which may be hot (one "
            f"of {ONE_HOT_OF}, at most {MOST_HOT}). It is then kept, and logged if it is less than 16; "
            "higher values are clipped with a warning. The node's parameter `pixel_bits`, the option `--pixel-bits` of "
            "the commands replay, bag, demo and evaluate, and `pixel_bits` of a recipe's source set the number. Values "
            "whose low bits are unused (the low 2 are 0 in all frames measured) are read as 16 bits. A warning says "
            "that values would need 14 bits or less in the other byte order (`is_bigendian` is wrong). PNG "
            "files of 16 bits are treated alike."
        ),
        "## Compressed images, files and videos",
        "\n".join(
            [
                _item(
                    "`sensor_msgs/CompressedImage` holds a JPEG or PNG file. A Bayer mosaic named in `format` "
                    "is converted, unless `format` ends in another encoding."
                ),
                _item(
                    f"Image files end in {', '.join(f'`{s}`' for s in IMAGE_SUFFIXES)}; hidden files are skipped, "
                    "and others are named. They are read in the natural order of their names: frame2 before frame10. A "
                    "file's content decides its format, not its ending."
                ),
                _item(
                    "The orientation in EXIF is ignored, so that labels fit; a note says how many images of a folder "
                    f"have one, of {MOST_SAMPLES} that are examined. A TIFF of another orientation than 1, "
                    "pixels that are no whole numbers, and a file of several images, as an animation, are refused. "
                    "OpenCV before 4.10, "
                    "as on Humble and Jazzy, cannot count the images in a file, so that WebP, TIFF, GIF and AVIF are "
                    "refused there."
                ),
                _item(
                    "Files that are cut short or damaged are refused. Of a JPEG this is what libjpeg warns of (data "
                    "that end before the last pixel, or go on behind it), missing scans, and zeros within the pixels. "
                    "Its end marker may be missing, and anything may follow it. Only PNG has checksums: other changed "
                    "bytes within the pixels of a JPEG, BMP, TIFF, WebP, GIF or AVIF file are not always found."
                ),
                _item(f"Videos end in {', '.join(f'`{s}`' for s in VIDEO_SUFFIXES)} and are read by OpenCV."),
            ]
        ),
        "## Limits",
        _wrap(
            f"An image or label map of a topic, a file or a bag has at most {MAX_PIXELS} pixels (8192 x 8192) in at "
            f"most {MAX_BYTES >> 20} MiB, and its sides are at most {MAX_ASPECT} to 1, since the network's input has "
            "its aspect. Sizes are read from the header before anything is decoded; larger images are refused."
        ),
        _wrap(
            f"A message or chunk of a bag has at most {MAX_UNPACKED_BYTES >> 20} MiB when unpacked, and a bag that is "
            f"compressed as a whole {SMALL_FILE_BYTES >> 20} MiB, or {MAX_RATIO} times its size if that is more. 1 "
            "GiB of TMPDIR's disk stays free, or 5 % of it if that is less."
        ),
        "## Label maps",
        _wrap(
            "One class id per pixel, of the image's size: `mono8` or `8UC1`, or a PNG, grey of 1, 2, 4 or 8 "
            "bits or with a "
            "palette. JPEG, colours and ids outside the class set are refused. Of a palette, the first rule that fits "
            "counts; if none fits, it is refused:"
        ),
        "\n".join(_item(item[3:]).replace("- ", f"{item[:2]} ", 1).replace("\n  ", "\n   ") for item in numbered),
        _wrap(
            f"Of each source {MOST_SAMPLES} label maps are examined. A warning with numbers says that their ids are "
            "those of a binary mask (0 and 255, or 0 and 1), that they may be counted from 1 (1 and never 0, or the "
            "palette of PASCAL VOC for another class set), that they may be those of *_labelIds.png (all are, and 0 is "
            "none of them), or that they are indices of a palette of foreign colours."
        ),
        _wrap(
            "In a bag a label map belongs to the image with its stamp; for stamps of zero, the time of recording "
            "counts. A label map whose stamp no image has belongs to the only image within "
            f"{TOLERANCE_NS // 1_000_000} ms, or a third of the images' interval if that is less. Repeated stamps are "
            "matched in the order of recording if as many images as label maps have them. Label maps that match no "
            "image, or more than one, are not used; the numbers are said. A label topic that by its namespace belongs "
            "to another image topic than the one that is read is used only if `--label-topic` names it."
        ),
        "## Bags",
        _wrap(
            f"Files ending in {', '.join(f'`{s}`' for s in SUFFIXES)}, and folders of rosbag2, with or without "
            "metadata.yaml. A rosbag2 may be compressed by message or by file (`.mcap.zstd`, `.db3.zstd`); such a "
            "file is decompressed once into TMPDIR. Of drive_0.mcap and drive_0.mcap.zstd, in a folder without "
            "metadata.yaml, one is read. Files that metadata.yaml does not list are named and not read. MCAP may hold "
            "messages of ROS 2 or ROS 1. Damaged bags are read as far as possible, except for `.bag` files of ROS 1 "
            "without an index, which `rosbag reindex` repairs. A bag that cannot be opened does not stop the "
            "replay of others. Of a camera that was recorded raw and compressed, the topic with more messages is "
            "read, the raw one if both have as many. A "
            f"topic with {' or '.join(DEPTH_WORDS[::2])} in its name is read only if it is named. Of a folder of bags "
            "or of folders, one is named at a time."
        ),
    ]
    return "\n\n".join(blocks) + "\n"


def degradation_page() -> str:
    """Return docs/degradation.md."""
    blocks = [
        "# Degradation",
        NOTE,
        _wrap(
            "What the node does when something goes wrong. `mode` in /diagnostics says what still comes out: full "
            "(masks of all levels that `refine` asks for), image level only, no masks, or stopped (the node is "
            "unconfigured, its engines could not be loaded, or it has ended). `last_mask_stamp` is the stamp of the "
            "last mask. Values in braces change. [Reliability](reliability.md) tells what was seen when faults were "
            "injected."
        ),
    ]
    for row in DEGRADATIONS:
        blocks.append(f"## {row.fault}")
        facts = (f"mode: {row.mode}", f"{LEVELS[row.level]}: `{row.sentence}`", f"recovery: {row.recovery}")
        blocks.append("\n".join(_item(fact) for fact in facts) + f"\n- test: `{row.test}`")
    return "\n\n".join(blocks) + "\n"


#: Function of each page, by file name.
PAGES = {
    "parameters.md": parameters_page,
    "topics.md": topics_page,
    "what-is-read.md": inputs_page,
    "degradation.md": degradation_page,
}


def _facts(field: FieldInfo) -> Iterable[str]:
    default = ros_value(field.default)
    shown = str(default).lower() if isinstance(default, bool) else str(default) or '""'
    yield f"type {ros_type(field)}, default `{shown}`, changes {changes(field)}"
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
