# SPDX-License-Identifier: Apache-2.0
"""Make a labelled bag from a folder of images with their label maps, from a video, or from another bag.

    nightlab-bag night_drive/images night_drive_bag --labels night_drive/labels --fps 10

Labels are class ids, mono8, of the same stamp as their image. The bag says which class set they are of.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import Progress
from rosbags.rosbag2 import WriterError

from nightlab_core.data.bags.bags import TopicError
from nightlab_core.data.bags.read import COMPRESSED_TYPE, IMAGE_TYPE
from nightlab_core.data.bags.write import BagWriter, Packing, StorageName
from nightlab_core.data.frames import FrameSource, open_frames
from nightlab_core.labels import CLASS_SETS

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


def main(argv: list[str] | None = None) -> int:
    """Command line: 0, 1 with a reason on standard error, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="nightlab-bag", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder of images, video, or rosbag")
    parser.add_argument("out", type=Path, help="the new bag's folder")
    parser.add_argument("--labels", help="folder of label maps, PNG of ids (default: labels beside the images)")
    parser.add_argument(
        "--classes", choices=sorted(CLASS_SETS), help="class set of the labels (default: a bag's own, else by the path)"
    )
    parser.add_argument("--source-topic", help="image topic of a source bag that has several")
    parser.add_argument("--glob", default="*", help="which images of a folder, by name")
    parser.add_argument("--fps", type=float, default=10.0, help="frames a second of a folder (default 10)")
    parser.add_argument("--frames", type=int, help="no more than so many frames")
    parser.add_argument("--storage", choices=get_args(StorageName), default="mcap")
    parser.add_argument("--compress", choices=get_args(Packing), default="none", help="CompressedImage instead of raw")
    parser.add_argument("--topic", default=IMAGE_TOPIC, help=f"of the images in the new bag (default {IMAGE_TOPIC})")
    parser.add_argument(
        "--label-topic", default=LABEL_TOPIC, help=f"of the label maps in the new bag (default {LABEL_TOPIC})"
    )
    args = parser.parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        if not args.fps > 0:
            raise ValueError(f"--fps is {args.fps}; expected frames a second, above 0")
        source = open_frames(
            args.source,
            labels=args.labels,
            classes=args.classes,
            pattern=args.glob,
            topic=args.source_topic,
            max_frames=args.frames,
            fps=args.fps,
        )
        with Progress(console=console, disable=not console.is_terminal) as progress:
            images, labels = write_bag(
                source,
                args.out,
                storage=args.storage,
                packing=args.compress,
                topic=args.topic,
                label_topic=args.label_topic,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.print("Interrupted; the unfinished bag was taken away.")
        return 130
    except TopicError as error:
        print(f"nightlab-bag: {error} (--source-topic)", file=sys.stderr)
        return 1
    except (OSError, ValueError, WriterError) as error:
        print(f"nightlab-bag: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {images} frames, {labels} with labels ({source.classes.key})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
