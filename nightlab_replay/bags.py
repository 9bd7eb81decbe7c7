# SPDX-License-Identifier: Apache-2.0
"""Write bags: labelled bags from frames of any source, and bags of a run's masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.data.bags.messages import COMPRESSED_TYPE, IMAGE_TYPE
from nightlab_core.data.bags.write import DETECTIONS_TYPE, BagWriter, Packing, StorageName
from nightlab_core.data.frames import FrameSource
from nightlab_replay.records import FrameRecord, Run
from nightlab_replay.session import MASK_BAGS, masks_path
from nightlab_replay.store import load_records

IMAGE_TOPIC, LABEL_TOPIC = "/camera/image_raw", "/camera/labels"
#: Stamp of the first frame if the source has no stamps. Zero would mean that the camera sets none.
START_S = 1_000_000_000.0
#: Topics of a bag of masks, as the node names them.
MASK, CONFIDENCE, REGIONS = "/nightlab/mask", "/nightlab/confidence", "/nightlab/regions"
IMAGE_LEVEL = "/nightlab/debug/image_level_mask"


def write_labelled_bag(
    source: FrameSource,
    out: Path,
    *,
    storage: StorageName = "mcap",
    packing: Packing = "none",
    topic: str = IMAGE_TOPIC,
    label_topic: str = LABEL_TOPIC,
    frame_id: str = "camera",
    start_s: float = START_S,
    on_frame: Callable[[int], None] = lambda count: None,
) -> tuple[int, int]:
    """Write every frame of a source to a new bag. Return the number of frames and of label maps.

    A frame keeps its recorded stamp; frames without one are stamped from `start_s` on. Label maps are mono8, or PNG if
    images are packed. `on_frame` receives the number of frames written so far. An unfinished bag is deleted.

    Raises WriterError if `out` exists, ValueError if both topics are one, and the source's exceptions.
    """
    images = labels = 0
    image_topic = topic if packing == "none" else f"{topic}/compressed"
    if label_topic in (topic, image_topic):
        raise ValueError(f"images and label maps are both to be written on {label_topic}; expected two topics")
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
            on_frame(images)
    return images, labels


def write_mask_bags(out: Path, run: Run) -> Iterator[Path]:
    """Write out/bags/<bag> for every bag whose masks were kept, and yield the new folders.

    A message has the stamp, frame_id and time of recording of its image. A bag from an earlier session is replaced.
    The bags of a live run have no topic of regions, because the node's regions are not received.
    """
    records = load_records(out, run)
    for bag in run.bags:
        kept = [r for r in records if r.bag == bag.name and masks_path(out, bag.name, r.index).exists()]
        if not kept:
            continue
        folder = out / MASK_BAGS / bag.name
        unfinished = folder.parent / ".unfinished" / folder.name  # the bag's file takes the name of its folder
        shutil.rmtree(unfinished.parent, ignore_errors=True)
        _write_mask_bag(unfinished, out, kept, regions=run.settings.mode != "live")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        unfinished.parent.rmdir()
        yield folder


def _write_mask_bag(folder: Path, out: Path, records: Sequence[FrameRecord], regions: bool) -> None:
    with BagWriter(folder) as bag:
        for topic in (MASK, CONFIDENCE, IMAGE_LEVEL):
            bag.add_topic(topic, IMAGE_TYPE)
        if regions:
            bag.add_topic(REGIONS, DETECTIONS_TYPE)
        for record in records:
            stacked = cv2.imread(str(masks_path(out, record.bag, record.index)), cv2.IMREAD_UNCHANGED)
            if stacked is None:
                raise OSError(f"{masks_path(out, record.bag, record.index)} cannot be read: replay with --restart")
            for channel, topic in enumerate((MASK, CONFIDENCE, IMAGE_LEVEL)):
                bag.image(topic, stacked[..., channel], record.stamp_ns, record.frame_id, time_ns=record.time_ns)
            if not regions:
                continue
            height, width = stacked.shape[:2]
            boxes = np.asarray(record.boxes_xyxy, np.float64).reshape(-1, 4) * [width, height, width, height]
            bag.detections(
                REGIONS,
                boxes,
                np.asarray(record.scores),
                np.asarray(record.refined, bool),
                record.stamp_ns,
                record.frame_id,
                time_ns=record.time_ns,
            )
