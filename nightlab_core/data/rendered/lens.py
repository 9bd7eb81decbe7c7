# SPDX-License-Identifier: Apache-2.0
"""Effects of air, lens and sensor: cones of light, reflections, glare, blur, colour cast, noise, coding.

Radiance is linear-light float32 (H, W, 3) BGR, 1.0 where the sensor saturates at gain 1. Lengths in pixels are those of
an image 1280 wide, and scale with the image.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from nightlab_core.data.rendered.camera import Camera, Faces
from nightlab_core.data.rendered.shapes import DOWNWARD

TEXELS = 1024
TEXEL_M = 0.015
ROOT_SHARE = 0.7


@functools.lru_cache(maxsize=8)
def _grain(height: int, width: int) -> np.ndarray:
    """Return noise of deviation 1, float32 (height, width, 3), part fine and part coarse; always the same."""
    noise = np.random.default_rng(20).standard_normal((height, width, 3), dtype=np.float32)
    coarse = cv2.GaussianBlur(noise[::-1], (0, 0), 1.2)
    return np.ascontiguousarray(0.75 * noise + 0.6 * coarse / coarse.std())


@functools.lru_cache(maxsize=1)
def texture() -> np.ndarray:
    """Return a tile of TEXELS x TEXELS, int8 about 0: grain and stains at four scales. Its edges fit together."""
    rng = np.random.default_rng(21)
    tile = np.zeros((TEXELS, TEXELS), np.float32)
    for cell, depth in ((2, 0.18), (8, 0.13), (32, 0.13), (128, 0.15)):
        coarse = np.pad(rng.standard_normal((TEXELS // cell,) * 2).astype(np.float32), 2, mode="wrap")
        noise = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        tile += depth * noise[2 * cell : -2 * cell, 2 * cell : -2 * cell]
    return np.rint(127 * np.clip(tile, -0.65, 0.8)).astype(np.int8)


def cones(camera: Camera, lamps: np.ndarray, haze: float) -> np.ndarray:
    """Return the light in the air below street lamps (L, 10), at a quarter of the size."""
    h, w = camera.size_hw
    air = np.zeros((max(16, h // 4), max(16, w // 4), 3), np.float32)
    scale = np.array((air.shape[1] / w, air.shape[0] / h), np.float32)
    for lamp in lamps[(lamps[:, 6] == np.float32(DOWNWARD)) & (lamps[:, 2] > 4) & (lamps[:, 2] < 90)]:
        x, y, z = lamp[:3]
        for reach in (0.35, 0.7, 1.0):  # denser near the lamp
            foot, half = y * (1 - reach), 0.55 * y * reach
            cone = np.array([(x - 0.2, y, z), (x + 0.2, y, z), (x + half, foot, z), (x - half, foot, z)], np.float32)
            polygon = np.rint(camera.pixels(camera.view(cone)) * scale * 16).astype(np.int32)
            low, high = np.clip(polygon.min(0) // 16, 0, None), polygon.max(0) // 16 + 2
            patch = air[low[1] : high[1], low[0] : high[0]]
            if patch.size:
                mask = np.zeros(patch.shape[:2], np.float32)
                cv2.fillConvexPoly(mask, polygon - (low * 16).astype(np.int32), 1.0, cv2.LINE_8, 4)
                patch += mask[..., None] * (lamp[7:] * np.float32(haze * 6e-5))
    return cv2.GaussianBlur(air, (0, 0), max(0.5, air.shape[1] / 90))


def wet_reflection(camera: Camera, faces: Faces, wet: float, top: int) -> np.ndarray:
    """Return reflections of bright faces on wet road: upright streaks in the rows from `top` on, at reduced size."""
    h, w = camera.size_hw
    film = np.zeros((max(8, (h - top) // 4), max(16, w // 4), 3), np.float32)
    starts = np.concatenate([[0], faces.ends[:-1]])
    bright = np.flatnonzero(faces.emission.max(1) > 0.25)
    points = camera.bent(faces.points[starts[bright]])
    facing = (faces.normals[bright] * (np.array((0, camera.height_m, 0), np.float32) - points)).sum(1)
    kept = (points[:, 2] > 4.0) & ((facing > 0) | ~faces.normals[bright].any(1))
    if kept.any():
        bright, points = bright[kept], points[kept]
        across = faces.points[starts[bright] + 2] - faces.points[starts[bright]]
        area = np.abs(across[:, 1]) * np.hypot(across[:, 0], across[:, 2]) * (camera.focal_px / points[:, 2]) ** 2
        share = film.shape[0] * film.shape[1] / ((h - top) * w)
        light = faces.emission[bright] * (area * np.float32(share))[:, None]
        mirrored = camera.pixels(camera.view(points * np.array((1, -1, 1), np.float32))) - np.array(
            (0, top), np.float32
        )
        at = np.floor(mirrored * np.array((film.shape[1] / w, film.shape[0] / (h - top)), np.float32)).astype(np.int64)
        kept = ((at >= 0) & (at < (film.shape[1], film.shape[0]))).all(1)
        np.add.at(film, (at[kept, 1], at[kept, 0]), light[kept])
    unit = film.shape[1] / 320
    narrow = cv2.GaussianBlur(film, (0, 0), 1.6 * unit, sigmaY=9 * unit)
    return (0.2 * wet) * (narrow + 0.5 * cv2.GaussianBlur(narrow, (0, 0), 4 * unit, sigmaY=12 * unit))


def add_glare(radiance: np.ndarray, strength: float, air: np.ndarray) -> None:
    """Add the lens's halos round bright objects, and the light in the air (at a quarter of the size), in place."""
    h, w = radiance.shape[:2]
    size = air.shape[1], air.shape[0]
    level = cv2.resize(radiance, size, interpolation=cv2.INTER_AREA)
    veil, unit = air, max(h, w) / 1280.0
    for sigma, share in ((2.5, 0.05), (9.0, 0.035), (36.0, 0.03), (110.0, 0.02)):
        # Blur a copy so small that the halo is about three pixels wide.
        small = tuple(max(4, min(level.shape[1 - i], round((w, h)[i] / max(4.0, sigma * unit / 3)))) for i in (0, 1))
        level = cv2.resize(level, small, interpolation=cv2.INTER_AREA)
        halo = cv2.GaussianBlur(level, (0, 0), max(sigma * unit * small[0] / w, 0.4))
        veil = veil + np.float32(strength * share) * cv2.resize(halo, size, interpolation=cv2.INTER_LINEAR)
    cv2.add(radiance, cv2.resize(veil, (w, h), interpolation=cv2.INTER_LINEAR), radiance)


def sensitivity(camera: Camera) -> np.ndarray:
    """Return gain, colour cast and vignette as one factor, float32 (H, W, 3)."""
    y, x = np.mgrid[-1:1:24j, -1:1:32j]
    scale = camera.gain * (1.0 - 0.22 * (x**2 + y**2))[..., None] * np.array(camera.cast_bgr)
    return cv2.resize(scale.astype(np.float32), camera.size_hw[::-1])


def expose(camera: Camera, radiance: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn radiance times scale into the image, uint8 (H, W, 3): blur, shot and read noise, coding.

    After a square root, shot noise has the same deviation at every level (Anscombe's transform). A share of the linear
    signal gives the darker shadows of a dash camera.
    """
    h, w = camera.size_hw
    unit = max(h, w) / 1280.0
    way = np.array(camera.shake_px) * unit / 2
    kernel = np.zeros((2 * int(np.ceil(np.abs(way).max())) + 3,) * 2, np.float32)
    middle = kernel.shape[0] // 2
    ends = [tuple(int(c) for c in np.rint((middle + s * way) * 16)) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    spread = cv2.GaussianBlur(kernel, (0, 0), max(0.35, 0.7 * unit), borderType=cv2.BORDER_CONSTANT)
    image = cv2.filter2D(radiance, -1, spread / spread.sum(), borderType=cv2.BORDER_REPLICATE)
    cv2.multiply(image, scale, image)
    coded = cv2.sqrt(image)
    dy, dx = rng.integers(64, size=2)
    cv2.scaleAdd(_grain(h + 64, w + 64)[dy : dy + h, dx : dx + w], camera.noise, coded, coded)
    return cv2.addWeighted(coded, 255 * ROOT_SHARE, image, 255 * (1 - ROOT_SHARE), 0.0, dtype=cv2.CV_8U)
