# SPDX-License-Identifier: Apache-2.0
"""Label night frames with a bundle, for self-training (class-balanced as in Zou et al., ECCV 2018).

python -m training.stages.pseudo nightlab_core/bundles/nightlab-lite --data DATA --out runs/pseudo_night

The teacher reads every frame and its mirror image at both levels. A pixel keeps the label on which both agree, if the
teacher is surer of it than of half of the pixels of that class; all else is 255.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from nightlab_core.data.datasets.paired import IMAGE_SUFFIXES
from nightlab_core.labels import IGNORE_ID
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from training.command import exit_on_error


def read_both_ways(pipeline: Pipeline, frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence, uint8 (H, W) each, of a frame and its mirror image: 255 and 0 where they disagree."""
    plain, mirrored = pipeline(frame_bgr), pipeline(np.ascontiguousarray(frame_bgr[:, ::-1]))
    agree = plain.labels == mirrored.labels[:, ::-1]
    confidence = np.minimum(plain.confidence, mirrored.confidence[:, ::-1])
    return np.where(agree, plain.labels, IGNORE_ID).astype(np.uint8), np.where(agree, confidence, 0).astype(np.uint8)


def thresholds(counts: np.ndarray, keep: float, ceiling: int) -> np.ndarray:
    """The confidence, int (256,), from which a pixel of each class is kept.

    counts int (256, 256): pixels by class and confidence. The surest part `keep` of a class stays, and every pixel
    whose confidence is `ceiling` or more.
    """
    above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels at this confidence or more
    wanted = keep * counts.sum(1, keepdims=True)
    return np.minimum(ceiling, np.maximum(0, (above >= wanted).sum(1) - 1))


def label_folder(pipeline: Pipeline, images: list[Path], out: Path, keep: float, ceiling: int) -> np.ndarray:
    """Write out/labels/STEM.png, and links to the images in out/images. Returns the share of each class, (256,).

    Raises ValueError for an image that cannot be decoded, for two of equal stem, and where `out` holds labels already:
    those of a frame that is left out now would be learnt from.
    """
    if len({path.stem for path in images}) < len(images):
        raise ValueError(f"{images[0].parent} holds images of equal stem, whose labels would have one name")
    if any((out / "labels").glob("*")):
        raise ValueError(f"{out} holds labels of an earlier run; remove it, or name another --out")
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "labels").mkdir(exist_ok=True)
    counts = np.zeros(256 * 256, np.int64)
    found = []
    for path in track(images, "reading"):
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if frame is None:
            raise ValueError(f"{path} cannot be decoded as an image")
        labels, confidence = read_both_ways(pipeline, frame)
        counts += np.bincount((labels.astype(np.int64) * 256 + confidence).ravel(), minlength=counts.size)
        found.append((labels, confidence))
    least = thresholds(counts.reshape(256, 256), keep, ceiling)
    kept = np.zeros(256, np.int64)
    for path, (labels, confidence) in zip(images, found, strict=True):
        sure = np.where(confidence >= least[labels], labels, IGNORE_ID).astype(np.uint8)
        kept += np.bincount(sure.ravel(), minlength=256)
        label = out / "labels" / f"{path.stem}.png"
        if not cv2.imwrite(str(label), sure):
            raise OSError(f"{label} cannot be written")
        link = out / "images" / path.name
        link.unlink(missing_ok=True)
        os.symlink(path.resolve(), link)
    return kept / kept.sum()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the teacher")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--images", default="daynight/night", help="folder of frames under the data folder")
    parser.add_argument("--leave-out", default="nightcoarse/val", help="set whose frames are not to be learnt from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.5, help="part of each class that is kept at least")
    parser.add_argument("--ceiling", type=int, default=230, help="confidence, 0..255, that is always enough")
    arguments = parser.parse_args()
    with exit_on_error():
        label(arguments)


def label(arguments: argparse.Namespace) -> None:
    """Label what the command line names."""
    held_out = {p.stem for p in (arguments.data / arguments.leave_out / "images").iterdir()}
    pictures = (p for p in (arguments.data / arguments.images).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    images = sorted(p for p in pictures if p.stem not in held_out)
    with Engines.open(arguments.bundle) as engines, Pipeline(engines) as pipeline:
        shares = label_folder(pipeline, images, arguments.out, arguments.keep, arguments.ceiling)
    names = engines.bundle.manifest.classes.names
    print(f"{len(images)} frames, unlabelled {100 * shares[IGNORE_ID]:.1f} %")
    print(", ".join(f"{name} {100 * share:.2f} %" for name, share in zip(names, shares, strict=False)))


if __name__ == "__main__":
    main()
