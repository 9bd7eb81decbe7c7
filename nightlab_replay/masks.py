# SPDX-License-Identifier: Apache-2.0
"""Bags of what the pipeline answered: masks, confidence and regions, on the topics and in the types of the node."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from nightlab_core.data.bags.messages import IMAGE_TYPE
from nightlab_core.data.bags.write import DETECTIONS_TYPE, BagWriter
from nightlab_replay.records import FrameRecord, Run, load_records
from nightlab_replay.run import MASK_BAGS, masks_path

MASK, CONFIDENCE, REGIONS = "/nightlab/mask", "/nightlab/confidence", "/nightlab/regions"
IMAGE_LEVEL = "/nightlab/debug/image_level_mask"


def write_mask_bags(out: Path, run: Run) -> Iterator[Path]:
    """Write out/bags/<bag> for every bag of which masks were kept, as far as the replay came; yields their folders.

    A message has its image's stamp, frame_id and time of recording. A bag of an earlier sitting is written anew.
    The regions of the live node are not known, and their topic is left out.
    """
    records = load_records(out, run)
    for bag in run.bags:
        kept = [r for r in records if r.bag == bag.name and masks_path(out, bag.name, r.index).exists()]
        if not kept:
            continue
        folder = out / MASK_BAGS / bag.name
        folder.parent.mkdir(exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(unfinished, out, kept, regions=run.settings.mode != "live")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        yield folder


def _write(folder: Path, out: Path, records: Sequence[FrameRecord], regions: bool) -> None:
    with BagWriter(folder) as bag:
        for topic, kind in ((MASK, IMAGE_TYPE), (CONFIDENCE, IMAGE_TYPE), (IMAGE_LEVEL, IMAGE_TYPE)):
            bag.add_topic(topic, kind)
        if regions:
            bag.add_topic(REGIONS, DETECTIONS_TYPE)
        for record in records:
            stacked = cv2.imread(str(masks_path(out, record.bag, record.index)), cv2.IMREAD_UNCHANGED)
            if stacked is None:
                raise OSError(f"{masks_path(out, record.bag, record.index)} cannot be read; replay with --restart")
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
