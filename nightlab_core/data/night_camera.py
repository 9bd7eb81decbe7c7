# SPDX-License-Identifier: Apache-2.0
"""The camera of the rendered night: projection, painter's order, light upon faces and ground, glare, and the sensor.

Radiance is linear-light float32 BGR, 1.0 where the sensor saturates at exposure 1. Positions are metres relative to the
point of the road below the camera: x right, y up, z forward.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from nightlab_core.data.night_shapes import Mesh

NEAR_M = 0.8
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Camera:
    """A pinhole over a road of constant curvature, and how it exposes."""

    size_hw: tuple[int, int]
    focal_px: float
    pitch_rad: float  # positive looks up
    yaw_rad: float  # positive looks right
    height_m: float
    bend_per_m: float  # the road's curvature; x grows by bend z^2 / 2
    gain: float  # brings the scene to the sensor's range
    cast_bgr: tuple[float, float, float]
    noise: float  # standard deviation in square-root levels
    glare: float  # strength of the lens's veil
    shake_px: tuple[float, float]  # motion during the exposure across the picture
    blur_m: float  # way of the vehicle during the exposure

    @property
    def rotation(self) -> np.ndarray:
        """Road axes to camera axes (x right, y up, z along the optical axis), float32 (3, 3)."""
        cp, sp, cy, sy = np.cos(self.pitch_rad), np.sin(self.pitch_rad), np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        pitch = np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
        return (pitch @ np.array(((cy, 0, -sy), (0, 1, 0), (sy, 0, cy)))).astype(np.float32)

    def bent(self, points: np.ndarray) -> np.ndarray:
        """Lay points of a straight road, (N, 3), along the bend."""
        points = points.copy()
        points[:, 0] += 0.5 * self.bend_per_m * points[:, 2] ** 2
        return points

    def view(self, points: np.ndarray) -> np.ndarray:
        """Road points to camera axes, both (N, 3)."""
        return (points - np.float32((0, self.height_m, 0))) @ self.rotation.T

    def pixels(self, viewed: np.ndarray) -> np.ndarray:
        """Camera axes (N, 3), z > 0, to pixels (N, 2)."""
        h, w = self.size_hw
        scale = self.focal_px / viewed[:, 2:]
        return viewed[:, :2] * scale * np.float32((1, -1)) + np.float32((w / 2 - 0.5, h / 2 - 0.5))

    def ground(self, us: np.ndarray, vs: np.ndarray) -> np.ndarray:
        """Road points that pixels see, float32 (len(vs), len(us), 3); at or above the horizon z is 1000."""
        h, w = self.size_hw
        u, v = np.meshgrid((us - w / 2 + 0.5) / self.focal_px, (h / 2 - 0.5 - vs) / self.focal_px)
        rays = np.stack([u, v, np.ones_like(u)], -1).astype(np.float32) @ self.rotation
        way = np.where(rays[..., 1] < -1e-4, -self.height_m / np.minimum(rays[..., 1], -1e-4), 1000.0)
        points = rays * np.minimum(way, 1000.0)[..., None]
        points[..., 1] = 0.0
        return points


@dataclass
class Faces:
    """Meshes joined into arrays: points (P, 3), `ends` (F,) of each face's points, and the faces' own values (F, ...)."""

    points: np.ndarray
    ends: np.ndarray
    albedo: np.ndarray
    emission: np.ndarray
    labels: np.ndarray
    normals: np.ndarray  # outward; zero where a face has two sides
    lamps: np.ndarray  # (L, 10) as Mesh.lamps

    @classmethod
    def of(cls, mesh: Mesh) -> Faces:
        """Freeze a mesh."""
        points = np.concatenate(mesh.points)
        ends = np.cumsum([len(p) for p in mesh.points], dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]])
        solid = np.array([i is not None for i in mesh.insides])
        inside = np.array([i or (0.0, 0.0, 0.0) for i in mesh.insides], np.float32)
        normals = np.cross(points[starts + 1] - points[starts], points[starts + 2] - points[starts])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        outward = np.einsum("fc,fc->f", normals, points[starts] - inside)
        normals *= (np.where(outward > 0, 1.0, -1.0) * solid)[:, None].astype(np.float32)
        return cls(
            points, ends,
            np.array(mesh.albedo, np.float32), np.array(mesh.emission, np.float32), np.array(mesh.labels, np.int64),
            normals, np.array(mesh.lamps, np.float32).reshape(-1, 10),
        )  # fmt: skip

    def at(self, x: float, z: float, yaw_rad: float = 0.0) -> Faces:
        """Turned about the upright axis (positive turns +z to +x), then moved."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        turn = np.array(((c, 0, -s), (0, 1, 0), (s, 0, c)), np.float32)
        shift, lamps = np.float32((x, 0, z)), self.lamps.copy()
        lamps[:, :3], lamps[:, 3:6] = lamps[:, :3] @ turn + shift, lamps[:, 3:6] @ turn
        return Faces(
            self.points @ turn + shift, self.ends, self.albedo, self.emission, self.labels, self.normals @ turn, lamps
        )

    @classmethod
    def join(cls, parts: list[Faces]) -> Faces:
        """One after the other, in painting order."""
        counts = np.cumsum([0] + [len(p.points) for p in parts])
        ends = [p.ends + c for p, c in zip(parts, counts)]
        names = ("albedo", "emission", "labels", "normals", "lamps")
        return cls(
            np.concatenate([p.points for p in parts]), np.concatenate(ends),
            *(np.concatenate([getattr(p, name) for p in parts]) for name in names),
        )  # fmt: skip


def light_on(points: np.ndarray, normals: np.ndarray, lamps: np.ndarray, ambient: np.ndarray) -> np.ndarray:
    """Irradiance, float32 (N, 3) BGR, of lamps (L, 10): inverse square, cosine (softened, for things are round), beam."""
    to = lamps[None, :, :3] - points[:, None]
    square = np.einsum("nlc,nlc->nl", to, to) + 0.3
    distance = np.sqrt(square)
    cosine = np.einsum("nlc,nc->nl", to, normals) / distance
    beam = -np.einsum("nlc,lc->nl", to, lamps[:, 3:6]) / distance - 1.0
    strength = np.maximum(0.75 * cosine + 0.25, 0.0) * np.exp(beam * lamps[None, :, 6]) / square
    return strength.astype(np.float32) @ lamps[:, 7:] + ambient + _headlights(points)


def _headlights(points: np.ndarray) -> np.ndarray:
    """The vehicle's own dipped beam upon (N, 3): wide, cut off a little below the horizontal, with stray light above."""
    z = np.maximum(points[:, 2] + 1.0, 0.5)
    across, up = points[:, 0] / z, (points[:, 1] - 0.65) / z
    cut = 0.03 + 0.97 / (1.0 + np.exp(np.clip((up + 0.012 - 0.02 * across) / 0.008, -30, 30)))
    strength = 22.0 * np.exp(-((across / 0.42) ** 2) - (np.minimum(up, 0) / 0.22) ** 2) * cut / (z**2 + 12.0)
    # A road lit at a grazing angle scatters back more than a cosine would have it.
    return (strength[:, None] * np.float32((0.9, 1.0, 1.0))).astype(np.float32)


def paint(
    camera: Camera,
    faces: Faces,
    lamps: np.ndarray | None,
    ambient: np.ndarray,
    radiance: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Paint faces in order on radiance, float32 (H, W, 3), and on labels, uint8 (H, W), with the same polygons.

    Without lamps the bare albedo is painted, for the ground, whose light is put on by pixel.
    """
    h, w = camera.size_hw
    points = camera.bent(faces.points)
    starts = np.concatenate([[0], faces.ends[:-1]])
    counts = (faces.ends - starts)[:, None]
    middle = np.add.reduceat(points, starts) / counts
    viewed = camera.view(points)
    depth = viewed[:, 2]
    nearest, furthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    uv = camera.pixels(np.maximum(viewed, np.float32((-np.inf, -np.inf, NEAR_M))))
    low, high = np.minimum.reduceat(uv, starts), np.maximum.reduceat(uv, starts)
    to_eye = np.float32((0, camera.height_m, 0)) - middle
    facing = np.einsum("fc,fc->f", faces.normals, to_eye)
    solid = np.abs(faces.normals).sum(1) > 0
    extent = high - low
    seen = (furthest > NEAR_M) & (~solid | (facing > 0)) & (extent.max(1) > 0.4)
    inside = (high > -1).all(1) & (low[:, 0] < w + 1) & (low[:, 1] < h + 1)
    cut = nearest < NEAR_M
    index = np.flatnonzero(seen & (inside | cut))
    colour = faces.albedo[index]
    if lamps is not None:
        normals = np.where(solid[index, None], faces.normals[index], to_eye[index] * np.float32((1, 0, 1)))
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        # Light smaller than a pixel must not grow to a whole one.
        cover = np.clip(np.prod(np.minimum(extent[index], 1.0), axis=1), 0.0, 1.0)[:, None]
        colour = colour * light_on(middle[index], normals, lamps, ambient) / np.pi + faces.emission[index] * cover
    fixed = np.rint(uv * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    for face, bgr, label in zip(index.tolist(), colour.tolist(), faces.labels[index].tolist()):
        a, b = starts[face], faces.ends[face]
        polygon = _clipped(camera, viewed[a:b]) if cut[face] else fixed[a:b]
        cv2.fillConvexPoly(radiance, polygon, bgr, cv2.LINE_8, _SUBPIXEL_BITS)
        cv2.fillConvexPoly(labels, polygon, label, cv2.LINE_8, _SUBPIXEL_BITS)


def _clipped(camera: Camera, viewed: np.ndarray) -> np.ndarray:
    """The part of a polygon in front of the near plane, in fixed-point pixels."""
    kept = []
    for a, b in zip(viewed, np.roll(viewed, -1, axis=0)):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            kept.append(a + (b - a) * ((NEAR_M - a[2]) / (b[2] - a[2])))
    return np.rint(camera.pixels(np.array(kept, np.float32)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _grain(height: int, width: int) -> np.ndarray:
    """Unit noise, float32 (height, width, 3), part fine and part blotched as denoisers leave it; the same every time."""
    noise = np.random.default_rng(20).standard_normal((height, width, 3), dtype=np.float32)
    coarse = cv2.GaussianBlur(noise[::-1], (0, 0), 1.2)
    return np.ascontiguousarray(0.75 * noise + 0.6 * coarse / coarse.std())


@functools.lru_cache(maxsize=4)
def road_texture() -> np.ndarray:
    """A tile of 512 x 512 at 2.5 cm: grains, cracks and stains of asphalt, float32 about 1; it wraps round."""
    rng = np.random.default_rng(21)
    tile = np.ones((512, 512), np.float32)
    for cell, depth in ((1, 0.25), (4, 0.15), (32, 0.16), (128, 0.14)):
        noise = rng.standard_normal((512 // cell, 512 // cell)).astype(np.float32)
        noise = cv2.resize(np.tile(noise, (3, 3)), (1536, 1536), interpolation=cv2.INTER_CUBIC)[512:1024, 512:1024]
        tile += depth * noise
    return np.clip(tile, 0.3, 2.0)


def add_glare(radiance: np.ndarray, strength: float, extra: np.ndarray) -> None:
    """Add to radiance, in place, the lens's halos about bright things, and `extra` light in the air at a quarter size."""
    h, w = radiance.shape[:2]
    small = cv2.resize(radiance, (extra.shape[1], extra.shape[0]), interpolation=cv2.INTER_AREA)
    veil = extra
    unit = max(h, w) / 1280.0
    level = small
    for sigma, share in ((2.5, 0.05), (9.0, 0.035), (36.0, 0.03)):
        target = max(8.0, 4.0 * sigma * unit / 1.5)  # blur where sigma is about 1.5 pixels
        size = max(2, round(w / target)), max(2, round(h / target))
        level = cv2.resize(small, size, interpolation=cv2.INTER_AREA) if size[0] < small.shape[1] else small
        sigma_here = sigma * unit * level.shape[1] / w
        halo = cv2.GaussianBlur(level, (0, 0), max(sigma_here, 0.4))
        veil = veil + strength * share * cv2.resize(
            halo, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_LINEAR
        )
    radiance += cv2.resize(veil, (w, h), interpolation=cv2.INTER_LINEAR)


def expose(camera: Camera, radiance: np.ndarray, exposure: float, rng: np.random.Generator) -> np.ndarray:
    """Radiance to the picture, uint8 (H, W, 3): blur, cast, vignette, shot and read noise, square-root coding.

    After a square root shot noise is the same at every level, so one sheet of noise serves (Anscombe's transform).
    """
    h, w = radiance.shape[:2]
    unit = max(h, w) / 1280.0
    length = 1 + round(float(np.hypot(*camera.shake_px)) * unit)
    kernel = np.zeros((length | 1, length | 1), np.float32)
    half = np.array(camera.shake_px) * unit / 2
    centre = (length | 1) // 2
    ends = [tuple(int(round(c)) for c in centre + s * half) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    kernel = cv2.GaussianBlur(np.pad(kernel, 1), (0, 0), max(0.35, 0.75 * unit))
    image = cv2.filter2D(radiance, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    y, x = np.mgrid[-1:1:24j, -1:1:32j]
    vignette = 1.0 - 0.22 * (x**2 + y**2)
    scale = camera.gain * exposure * np.asarray(camera.cast_bgr) * vignette[..., None]
    image *= cv2.resize(scale.astype(np.float32), (w, h))
    image += 0.0004
    cv2.sqrt(image, image)
    sheet = _grain(h + 64, w + 64)
    dy, dx = rng.integers(64, size=2)
    cv2.scaleAdd(np.ascontiguousarray(sheet[dy : dy + h, dx : dx + w]), camera.noise, image, image)
    return cv2.convertScaleAbs(cv2.max(image, 0.02), alpha=262.0, beta=-5.0)
