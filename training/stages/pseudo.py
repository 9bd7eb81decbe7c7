# SPDX-License-Identifier: Apache-2.0
"""Label night frames with a bundle, for self-training (class-balanced as in Zou et al., ECCV 2018).

python -m training.stages.pseudo nightlab_core/bundles/nightlab-lite --data DATA --out runs/pseudo_night

The bundle reads every frame and its mirror image at both levels. A pixel keeps its label if both readings agree and
their confidence is among the highest half of that class. All other pixels become 255, unlabelled.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from nightlab_core.data.datasets.paired import list_images
from nightlab_core.data.image_files import read_image
from nightlab_core.labels import IGNORE_ID
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_core.runtime.settings import MAX_REGIONS, PipelineSettings
from training.command import exit_on_error

#: Frames that models are measured on; a part of them also lies among the unlabelled night frames.
HELD_OUT = ("nightcoarse/val/images", "nightcoarse/val2/images")


def read_both_ways(pipeline: Pipeline, frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read a frame and its mirror image: labels and confidence, uint8 (H, W) each, 255 and 0 where they disagree."""
    plain, mirrored = pipeline(frame_bgr), pipeline(np.ascontiguousarray(frame_bgr[:, ::-1]))
    agree = plain.labels == mirrored.labels[:, ::-1]
    confidence = np.minimum(plain.confidence, mirrored.confidence[:, ::-1])
    return np.where(agree, plain.labels, IGNORE_ID).astype(np.uint8), np.where(agree, confidence, 0).astype(np.uint8)


def thresholds(counts: np.ndarray, keep: float, ceiling: int) -> np.ndarray:
    """Compute the confidence, int (256,), from which a pixel of each class keeps its label.

    counts: int (256, 256), pixels by class and confidence. The most confident part `keep` of a class stays, and every
    pixel whose confidence is `ceiling` or more.
    """
    above = counts[:, ::-1].cumsum(1)[:, ::-1]  # pixels at this confidence or more
    wanted = keep * counts.sum(1, keepdims=True)
    return np.minimum(ceiling, np.maximum(0, (above >= wanted).sum(1) - 1))


def label_folder(pipeline: Pipeline, images: list[Path], out: Path, keep: float, ceiling: int) -> np.ndarray:
    """Write out/labels/STEM.png, and links to the images in out/images. Return the share of each class, (256,).

    Raises ValueError for an image that cannot be decoded, for two images of equal stem, and if `out` holds labels
    already: old labels of a frame that is left out now would be trained on.
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
        labels, confidence = read_both_ways(pipeline, read_image(path))
        counts += np.bincount((labels.astype(np.int64) * 256 + confidence).ravel(), minlength=counts.size)
        found.append((labels, confidence))
    least = thresholds(counts.reshape(256, 256), keep, ceiling)
    kept = np.zeros(256, np.int64)
    for path, (labels, confidence) in zip(images, found, strict=True):
        kept_labels = np.where(confidence >= least[labels], labels, IGNORE_ID).astype(np.uint8)
        kept += np.bincount(kept_labels.ravel(), minlength=256)
        label = out / "labels" / f"{path.stem}.png"
        if not cv2.imwrite(str(label), kept_labels):
            raise OSError(f"{label} cannot be written")
        link = out / "images" / path.name
        link.unlink(missing_ok=True)
        os.symlink(path.resolve(), link)
    return kept / kept.sum()


def label_night_frames(
    bundle: Path,
    data: Path,
    out: Path,
    *,
    images: str = "daynight/night",
    leave_out: Sequence[str] = HELD_OUT,
    keep: float = 0.5,
    ceiling: int = 230,
) -> None:
    """Label the frames of the folder data/images with a bundle, write them to `out`, and print the share of each class.

    leave_out: folders under `data` whose frames, by file stem, are not labelled, since a model is measured on them.
    Raises ValueError as `label_folder`, DatasetError if a folder holds no images.
    """
    held_out = {path.stem for folder in leave_out for path in list_images(data / folder)}
    paths = [path for path in list_images(data / images) if path.stem not in held_out]
    if not paths:
        raise ValueError(f"all frames of {data / images} are left out; expected other frames, or fewer --leave-out")
    settings = PipelineSettings(max_regions=MAX_REGIONS)
    with Engines.open(bundle) as engines, Pipeline(engines, settings) as pipeline:
        shares = label_folder(pipeline, paths, out, keep, ceiling)
    names = engines.bundle.manifest.classes.names
    print(f"{len(paths)} frames, unlabelled {100 * shares[IGNORE_ID]:.1f} %")
    print(", ".join(f"{name} {100 * share:.2f} %" for name, share in zip(names, shares, strict=False)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle that labels the frames")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--images", default="daynight/night", help="folder of frames under the data folder")
    parser.add_argument(
        "--leave-out",
        action="append",
        metavar="FOLDER",
        help="folder of images under the data folder whose frames are left out; may be given several times"
        f" (default: {' and '.join(HELD_OUT)})",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must hold no labels yet")
    parser.add_argument("--keep", type=float, default=0.5, help="least share of each class's pixels that keeps a label")
    parser.add_argument("--ceiling", type=int, default=230, help="confidence, 0..255, that always keeps a label")
    arguments = parser.parse_args()
    with exit_on_error():
        label_night_frames(
            arguments.bundle,
            arguments.data,
            arguments.out,
            images=arguments.images,
            leave_out=HELD_OUT if arguments.leave_out is None else arguments.leave_out,
            keep=arguments.keep,
            ceiling=arguments.ceiling,
        )


if __name__ == "__main__":
    main()
