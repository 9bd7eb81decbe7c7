# SPDX-License-Identifier: Apache-2.0
"""Write a labelled bag: `nightlab bag` makes it from a folder of images, a video or another bag.

Labels are class ids, mono8, with the stamp of their image. The bag records its class set.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.progress import Progress

from nightlab_core.data.bags.messages import COMPRESSED_TYPE, IMAGE_TYPE
from nightlab_core.data.bags.write import BagWriter, Packing, StorageName
from nightlab_core.data.frames import FrameSource

IMAGE_TOPIC, LABEL_TOPIC = "/camera/image_raw", "/camera/labels"
#: Stamp of the first frame where the source has none. Not zero, which would mean that the camera sets none.
START_S = 1_000_000_000.0


def write_bag(
    source: FrameSource,
    out: Path,
    *,
    storage: StorageName = "mcap",
    packing: Packing = "none",
    topic: str = IMAGE_TOPIC,
    label_topic: str = LABEL_TOPIC,
    frame_id: str = "camera",
    start_s: float = START_S,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write every frame of a source; returns the number of frames and of label maps.

    A frame that was recorded with a stamp keeps it; the times of all others begin at `start_s`. Label maps are mono8,
    or PNG where images are packed. A bag that could not be finished is taken away again. Raises WriterError if `out`
    exists, and what the source raises.
    """
    task = progress.add_task("Writing", total=source.num_frames) if progress else None
    images = labels = 0
    existed = out.exists()
    image_topic = topic if packing == "none" else f"{topic}/compressed"
    try:
        with BagWriter(out, storage, source.classes.key) as bag:
            bag.add_topic(image_topic, IMAGE_TYPE if packing == "none" else COMPRESSED_TYPE)
            for frame in source:
                stamp_ns = frame.stamp_ns
                if stamp_ns is None:
                    stamp_ns = round((start_s + frame.stamp_s) * 1e9)
                bag.image(image_topic, frame.image_bgr, stamp_ns, frame_id, time_ns=stamp_ns, packing=packing)
                images += 1
                if frame.labels is not None:
                    label_packing: Packing = "none" if packing == "none" else "png"
                    bag.image(label_topic, frame.labels, stamp_ns, frame_id, time_ns=stamp_ns, packing=label_packing)
                    labels += 1
                if progress and task is not None:
                    progress.advance(task)
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise
    return images, labels
