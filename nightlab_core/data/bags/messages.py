# SPDX-License-Identifier: Apache-2.0
"""Serialised ROS 2 image messages (CDR): types, deserialisation, and the header's stamp. Needs no ROS."""

from __future__ import annotations

import struct
from typing import Any

from rosbags.typesys import Stores, get_typestore

from nightlab_core.data.bags.protocol import BagError, one_line

IMAGE_TYPE, COMPRESSED_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES = (IMAGE_TYPE, COMPRESSED_TYPE)
#: Bytes at the beginning of a message that `stamp_of` needs: 4 for the encapsulation, 8 for the header's stamp.
STAMP_BYTES = 12
#: Image types have not changed since Humble, and bags older than Iron carry no definitions.
TYPES = get_typestore(Stores.ROS2_HUMBLE)
_ROS1_TYPES = get_typestore(Stores.ROS1_NOETIC)


def deserialize(raw: bytes, message_type: str) -> Any:
    """Return the message in CDR bytes. Raises BagError if they hold no message of the type."""
    try:
        return TYPES.deserialize_cdr(raw, message_type)
    except Exception as error:  # of any type: the bytes may be anything
        raise BagError(f"{len(raw)} bytes are no {message_type} ({one_line(error)})") from error


def ros1_to_cdr(raw: bytes, message_type: str) -> bytes:
    """Return a serialised image message of ROS 1 as ROS 2 serialises it; the header's `seq` is dropped.

    Raises BagError for a type that is not in IMAGE_TYPES, and for bytes that hold no message of it.
    """
    if message_type not in IMAGE_TYPES:
        raise BagError(f"received a ROS 1 message of {message_type}; expected {' or '.join(IMAGE_TYPES)}")
    try:
        ros1_message: Any = _ROS1_TYPES.deserialize_ros1(raw, message_type)
    except Exception as error:  # of any type: the bytes may be anything
        raise BagError(f"{len(raw)} bytes are no {message_type} of ROS 1 ({one_line(error)})") from error
    types, header = TYPES.types, ros1_message.header
    stamp = types["builtin_interfaces/msg/Time"](header.stamp.sec, header.stamp.nanosec)
    fields = [types["std_msgs/msg/Header"](stamp, header.frame_id)]
    names = ("height", "width", "encoding", "is_bigendian", "step") if message_type == IMAGE_TYPE else ("format",)
    fields += [getattr(ros1_message, name) for name in (*names, "data")]
    return bytes(TYPES.serialize_cdr(types[message_type](*fields), message_type))


def ros1_head(raw: bytes) -> bytes:
    """Return the first STAMP_BYTES that `ros1_to_cdr` would return, from as many bytes of a message of ROS 1."""
    return b"\0\1\0\0" + raw[4:STAMP_BYTES]  # there the header begins with `seq`, 4 bytes


def stamp_of(raw: bytes) -> int:
    """Return the header's stamp in ns from the first STAMP_BYTES of a message. Raises struct.error for fewer bytes."""
    seconds, nanoseconds = struct.unpack_from(("<" if raw[1:2] != b"\0" else ">") + "iI", raw, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def header_of(message: Any, time_ns: int) -> tuple[int, str]:
    """Return stamp in ns and frame_id of a message; a stamp of zero is replaced by `time_ns`, the recording time."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec) or time_ns, str(message.header.frame_id)
