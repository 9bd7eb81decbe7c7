# SPDX-License-Identifier: Apache-2.0
"""The camera of rendered scenes: projection, light on faces, and painting from far to near.

Radiance is linear-light float32 BGR, 1.0 where the sensor saturates at gain 1. Positions are metres relative to the
point of the road below the camera: x right, y up, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from nightlab_core.data.rendered.shapes import Mesh

NEAR_M = 0.8
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over a road of constant curvature, and its exposure."""

    size_hw: tuple[int, int]
    focal_px: float
    pitch_rad: float  # positive looks up
    yaw_rad: float  # positive looks right
    height_m: float
    bend_per_m: float  # the road's curvature; x grows by bend z^2 / 2
    gain: float  # brings the scene to the sensor's range
    cast_bgr: tuple[float, float, float]
    noise: float  # standard deviation in square-root levels
    glare: float  # strength of the lens's halos
    shake_px: tuple[float, float]  # motion during the exposure, in pixels of an image 1280 wide

    @property
    def rotation(self) -> np.ndarray:
        """Matrix from road axes to camera axes (x right, y up, z along the optical axis), float32 (3, 3)."""
        cp, sp, cy, sy = np.cos(self.pitch_rad), np.sin(self.pitch_rad), np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        pitch = np.array(((1, 0, 0), (0, cp, -sp), (0, sp, cp)))
        return (pitch @ np.array(((cy, 0, -sy), (0, 1, 0), (sy, 0, cy)))).astype(np.float32)

    @property
    def horizon(self) -> float:
        """The row of the horizon."""
        return self.size_hw[0] / 2 - 0.5 + self.focal_px * float(np.tan(self.pitch_rad))

    def bent(self, points: np.ndarray) -> np.ndarray:
        """Move points of a straight road, (N, 3), onto the bend."""
        points = points.copy()
        points[:, 0] += 0.5 * self.bend_per_m * points[:, 2] ** 2
        return points

    def view(self, points: np.ndarray) -> np.ndarray:
        """Convert road points to camera axes, both (N, 3)."""
        return (points - np.array((0, self.height_m, 0), np.float32)) @ self.rotation.T

    def pixels(self, viewed: np.ndarray) -> np.ndarray:
        """Project points in camera axes (N, 3), z > 0, to pixels (N, 2)."""
        h, w = self.size_hw
        scale = self.focal_px / viewed[:, 2:]
        return viewed[:, :2] * scale * np.array((1, -1), np.float32) + np.array((w / 2 - 0.5, h / 2 - 0.5), np.float32)

    def rays(self, us: np.ndarray, vs: np.ndarray) -> np.ndarray:
        """Return the directions of pixels in road axes, float32 (len(vs), len(us), 3)."""
        h, w = self.size_hw
        u, v = np.meshgrid((us - w / 2 + 0.5) / self.focal_px, (h / 2 - 0.5 - vs) / self.focal_px)
        return np.stack([u, v, np.ones_like(u)], -1).astype(np.float32) @ self.rotation

    def ground(self, us: np.ndarray, vs: np.ndarray) -> np.ndarray:
        """Return the road points at pixels, float32 (len(vs), len(us), 3), at most 1000 m away."""
        rays = self.rays(us, vs)
        way = np.minimum(self.height_m / np.maximum(-rays[..., 1], 1e-4), 1000.0)
        return rays * way[..., None] * np.array((1, 0, 1), np.float32)


@dataclass(frozen=True)
class Placement:
    """Position, rotation (positive turns +z to +x), scale in xyz and tint in BGR of a mesh."""

    x: float
    z: float
    yaw_rad: float = 0.0
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass
class Faces:
    """Meshes joined into arrays: points (P, 3), `ends` (F,) of each face's points, the faces' own values (F, ...)."""

    points: np.ndarray
    ends: np.ndarray
    albedo: np.ndarray
    emission: np.ndarray
    labels: np.ndarray
    normals: np.ndarray  # outward; zero where a face has two sides
    lamps: np.ndarray  # (L, 10) as Mesh.lamps

    @classmethod
    def of(cls, mesh: Mesh) -> Faces:
        """Convert a mesh to arrays."""
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

    @classmethod
    def placed(cls, parts: list[tuple[Faces, Placement]]) -> Faces:
        """Join meshes in painting order, each scaled, tinted, rotated about the vertical axis, then moved."""
        faces, places = zip(*parts, strict=True)
        table = np.array([(p.x, p.z, np.cos(p.yaw_rad), np.sin(p.yaw_rad), *p.scale) for p in places], np.float32)
        tint = np.array([p.tint for p in places], np.float32)

        def gather(name: str) -> tuple[np.ndarray, np.ndarray]:
            values = [getattr(f, name) for f in faces]
            return np.concatenate(values), np.repeat(table, [len(v) for v in values], axis=0)

        def turned(v: np.ndarray, at: np.ndarray) -> np.ndarray:
            c, s = at[:, 2], at[:, 3]
            return np.stack([v[:, 0] * c + v[:, 2] * s, v[:, 1], v[:, 2] * c - v[:, 0] * s], 1)

        points, at = gather("points")
        points = turned(points * at[:, 4:], at)
        points[:, 0] += at[:, 0]
        points[:, 2] += at[:, 1]
        normals, at = gather("normals")
        lamps, lamp_at = gather("lamps")
        lamps[:, :3] = turned(lamps[:, :3] * lamp_at[:, 4:], lamp_at)
        lamps[:, 3:6] = turned(lamps[:, 3:6] * np.sign(lamp_at[:, 4:]), lamp_at)
        lamps[:, 0] += lamp_at[:, 0]
        lamps[:, 2] += lamp_at[:, 1]
        counts = [len(f.ends) for f in faces]
        offsets = np.cumsum([0] + [len(f.points) for f in faces[:-1]])
        return cls(
            points,
            np.concatenate([f.ends for f in faces]) + np.repeat(offsets, counts),
            np.concatenate([f.albedo for f in faces]) * np.repeat(tint, counts, axis=0),
            np.concatenate([f.emission for f in faces]),
            np.concatenate([f.labels for f in faces]),
            turned(normals * np.sign(at[:, 4:]), at),
            lamps,
        )


def light_on(points: np.ndarray, normals: np.ndarray, lamps: np.ndarray, ambient: np.ndarray) -> np.ndarray:
    """Return irradiance over pi, float32 (N, 3) BGR, from lamps (L, 10), the vehicle's headlights and ambient light.

    Inverse square, cosine and beam. The cosine is softened, since objects are rounder than their faces.
    """
    where, aim = lamps[:, :3], lamps[:, 3:6]
    square = (points**2).sum(1)[:, None] + (where**2).sum(1) - 2.0 * points @ where.T
    square = np.maximum(square, 0.0) + 0.3
    inverse = 1.0 / np.sqrt(square)
    cosine = (normals @ where.T - (normals * points).sum(1)[:, None]) * inverse
    along = (points @ aim.T - (where * aim).sum(1)) * inverse
    strength = np.maximum(0.75 * cosine + 0.25, 0.0) * np.exp((along - 1.0) * lamps[:, 6]) * inverse**2
    return (strength @ lamps[:, 7:] + ambient + _headlights(points)) * np.float32(1 / np.pi)


def _headlights(points: np.ndarray) -> np.ndarray:
    """Return the vehicle's dipped beam at points (N, 3): wide, cut off just below the horizontal, some stray light."""
    z = np.maximum(points[:, 2] + 1.0, 0.5)
    across, up = points[:, 0] / z, (points[:, 1] - 0.65) / z
    cut = 0.08 + 0.92 / (1.0 + np.exp(np.clip((up + 0.012 - 0.02 * across) / 0.008, -30, 30)))
    beam = np.exp(-((across / 0.42) ** 2) - (np.minimum(up, 0) / 0.22) ** 2) + 0.08 * np.exp(-((across / 1.2) ** 2))
    strength = 30.0 * beam * cut / (z**2 + 12.0)
    return strength[:, None] * np.array((0.9, 1.0, 1.0), np.float32)


def paint(
    camera: Camera, faces: Faces, lamps: np.ndarray | None, ambient: np.ndarray, canvas: np.ndarray
) -> None:  # fmt: skip
    """Paint faces in order on a canvas, float32 (H, W, 4): radiance BGR and, with the same polygon, the label.

    Without lamps, paint the albedo alone: the ground's light is added per pixel.
    """
    h, w = camera.size_hw
    points = camera.bent(faces.points)
    starts = np.concatenate([[0], faces.ends[:-1]])
    viewed = camera.view(points)
    nearest, furthest = np.minimum.reduceat(viewed[:, 2], starts), np.maximum.reduceat(viewed[:, 2], starts)
    uv = camera.pixels(np.maximum(viewed, np.array((-np.inf, -np.inf, NEAR_M), np.float32)))
    low, high = np.minimum.reduceat(uv, starts), np.maximum.reduceat(uv, starts)
    extent = high - low
    middle = np.add.reduceat(points, starts) / (faces.ends - starts)[:, None].astype(np.float32)
    to_eye = np.array((0, camera.height_m, 0), np.float32) - middle
    solid = np.abs(faces.normals).max(1) > 0
    # Boards, such as posts and people, are painted even if they are thin.
    large = np.where(solid, extent.prod(1) > 0.8, extent.max(1) > 0.5)
    seen = (furthest > NEAR_M) & large & (~solid | (np.einsum("fc,fc->f", faces.normals, to_eye) > 0))
    # A face whose points all lie beyond one side of the view's pyramid is invisible, even if it reaches behind it.
    reach = viewed[:, 2:] * (np.array([w / 2 + 1, h / 2 + 1], np.float32) / np.float32(camera.focal_px))
    beyond = np.minimum.reduceat(np.concatenate([viewed[:, :2] - reach, -viewed[:, :2] - reach], 1), starts)
    cut = nearest < NEAR_M
    index = np.flatnonzero(seen & (beyond < 0).all(1))
    colour = faces.albedo[index]
    if lamps is not None:
        normals = np.where(solid[index, None], faces.normals[index], to_eye[index] * np.array((1, 0, 1), np.float32))
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
        # A light source smaller than a pixel is painted as a whole pixel: scale its light down.
        cover = np.minimum(extent[index], 1.0).prod(1)[:, None]
        colour = colour * light_on(middle[index], normals, lamps, ambient) + faces.emission[index] * cover
    colour = np.concatenate([colour, faces.labels[index, None]], 1).tolist()
    fixed = np.rint(uv * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    for face, a, b, value in zip(
        index.tolist(), starts[index].tolist(), faces.ends[index].tolist(), colour, strict=True
    ):
        polygon = _clipped(camera, viewed[a:b]) if cut[face] else fixed[a:b]
        cv2.fillConvexPoly(canvas, polygon, value, cv2.LINE_8, _SUBPIXEL_BITS)


def _clipped(camera: Camera, viewed: np.ndarray) -> np.ndarray:
    """Return the part of a polygon in front of the near plane, in fixed-point pixels."""
    kept = []
    for a, b in zip(viewed, np.roll(viewed, -1, axis=0), strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            kept.append(a + (b - a) * ((NEAR_M - a[2]) / (b[2] - a[2])))
    return np.rint(camera.pixels(np.array(kept, np.float32)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
