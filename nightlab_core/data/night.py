# SPDX-License-Identifier: Apache-2.0
"""Rendered street scenes at night with exact labels: for tests, the demo, light-level curves and pre-training.

They never stand in for real data in a claim of accuracy. Labels are painted with the very polygons of the picture, in the
painter's order; halos, haze and noise change none. Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from nightlab_core.data.night_camera import Camera, Faces, add_glare, expose, light_on, paint, road_texture
from nightlab_core.data.night_scene import BLOCK_M, SIGHT_M, Street, Thing
from nightlab_core.data.night_shapes import IDS
from nightlab_core.labels import IGNORE_ID

_NEAREST_LAMPS = 28


@dataclass(frozen=True)
class NightFrame:
    """A picture, uint8 (H, W, 3) BGR; Cityscapes train ids, uint8 (H, W), 0-18 or 255 (own bonnet); seconds from the start."""

    image_bgr: np.ndarray
    labels: np.ndarray
    stamp_s: float


def render_scene(seed: int, size_hw: tuple[int, int] = (720, 1280), exposure: float = 1.0) -> NightFrame:
    """One scene of its own per seed: the first frame of that seed's clip. Errors as `render_clip`."""
    return next(render_clip(1, size_hw, seed, exposure=exposure))


def render_clip(
    num_frames: int, size_hw: tuple[int, int] = (720, 1280), seed: int = 0, fps: float = 10.0, exposure: float = 1.0
) -> Iterator[NightFrame]:
    """A drive through one night street, frame by frame.

    `exposure` scales the light that reaches the sensor; 1 is the camera's own choice. The seed (0 or more) fixes street, traffic
    and camera, whatever the size. ValueError for a size below 32 x 32, or numbers that are not positive.
    """
    if num_frames < 0 or seed < 0:
        raise ValueError(f"received num_frames={num_frames}, seed={seed}; expected both to be 0 or more")
    if min(size_hw) < 32:
        raise ValueError(f"received size_hw={tuple(size_hw)}; expected (height, width) of at least 32 pixels each")
    if not (fps > 0 and exposure > 0):
        raise ValueError(f"received fps={fps}, exposure={exposure}; expected both above 0")
    return _frames(num_frames, (int(size_hw[0]), int(size_hw[1])), seed, fps, exposure)


def _frames(num_frames: int, size_hw: tuple[int, int], seed: int, fps: float, exposure: float) -> Iterator[NightFrame]:
    view = _View(seed, size_hw)
    for index in range(num_frames):
        yield view.frame(index / fps, exposure, np.random.default_rng([seed, 9, index]))


class _View:
    """A street, the camera that drives through it, and the weather."""

    def __init__(self, seed: int, size_hw: tuple[int, int]) -> None:
        rng = np.random.default_rng([seed, 0])
        self.street = Street(seed)
        self.camera = Camera(
            size_hw=size_hw,
            focal_px=rng.uniform(0.75, 1.0) * max(size_hw),
            pitch_rad=rng.uniform(-0.05, 0.03),
            yaw_rad=rng.normal(0, 0.03),
            height_m=rng.uniform(1.25, 1.6),
            bend_per_m=rng.normal(0, 0.0009),
            gain=rng.lognormal(0.5, 0.35),
            cast_bgr=(rng.uniform(0.75, 1.1), 1.0, rng.uniform(0.95, 1.25)),
            noise=rng.uniform(0.008, 0.028),
            glare=rng.lognormal(0, 0.5),
            shake_px=tuple(np.abs(rng.normal(0, 1, 2)) * (1.6, 0.8)),
            blur_m=self.street.speed / 60,
        )
        self.haze, self.wet = rng.exponential(0.35), max(0.0, rng.uniform(-0.5, 1.0))
        self.ambient = (np.array((1.15, 1.0, 0.95)) * rng.lognormal(-3.4, 0.5)).astype(np.float32)
        self.dusk = rng.random() < 0.15
        self.sky_bgr = np.array((1.6, 1.0, 0.7) if self.dusk else (0.8, 0.9, 1.1)) * rng.lognormal(
            -6.0 + 1.6 * self.dusk, 0.5
        )
        self.bonnet = rng.uniform(0.06, 0.12) if rng.random() < 0.35 else 0.0
        self.clouds = cv2.resize(rng.random((6, 9), dtype=np.float32), (64, 32), interpolation=cv2.INTER_CUBIC)

    def frame(self, time_s: float, exposure: float, rng: np.random.Generator) -> NightFrame:
        camera, ego = self.camera, self.street.speed * time_s
        h, w = camera.size_hw
        first = int(np.floor((ego - 8) / BLOCK_M))
        blocks = [self.street.block(i) for i in range(first, int((ego + SIGHT_M) // BLOCK_M) + 1)]
        backs = _in_order([t for b in blocks for t in b[1]], time_s, ego)
        things = _in_order([t for b in blocks for t in b[2]] + self.street.train, time_s, ego)
        faces = Faces.join([self.street.far, *backs, *things])
        lamps = self._lamps(faces.lamps)
        radiance, labels = self._sky(), np.full((h, w), IDS["sky"], np.uint8)
        ground = Faces.join([b[0] for b in reversed(blocks)]).at(0.0, -ego)
        paint(camera, ground, None, self.ambient, radiance, labels)
        self._light_ground(radiance, labels, lamps, ego)
        paint(camera, faces, lamps, self.ambient, radiance, labels)
        add_glare(radiance, camera.glare, self._haze(faces.lamps))
        self._own_bonnet(radiance, labels)
        return NightFrame(expose(camera, radiance, exposure, rng), labels, time_s)

    def _lamps(self, lamps: np.ndarray) -> np.ndarray:
        """The lamps nearest to what the camera sees, along the bend."""
        lamps = lamps[np.argsort(np.abs(lamps[:, 2] - 12.0), kind="stable")[:_NEAREST_LAMPS]].copy()
        lamps[:, :3] = self.camera.bent(lamps[:, :3])
        return lamps

    def _horizon(self) -> float:
        """The row of the horizon."""
        return self.camera.size_hw[0] / 2 - 0.5 + self.camera.focal_px * np.tan(self.camera.pitch_rad)

    def _sky(self) -> np.ndarray:
        """Dark above, aglow with the town's light near the horizon, cloudy: radiance, float32 (H, W, 3)."""
        h, w = self.camera.size_hw
        rows = np.clip((self._horizon() - np.arange(64) * h / 64) / self.camera.focal_px, 0, 1)
        glow = np.exp(-rows / 0.18)[:, None, None] * 1.5 + 0.4
        clouds = 0.7 + 0.6 * cv2.resize(self.clouds, (32, 64))[..., None]
        return cv2.resize((glow * clouds * self.sky_bgr).astype(np.float32), (w, h))

    def _light_ground(self, radiance: np.ndarray, labels: np.ndarray, lamps: np.ndarray, ego: float) -> None:
        """Turn the ground's albedo to radiance, in place: light by position, and the texture of asphalt."""
        h, w = self.camera.size_hw
        top = int(np.clip(np.floor(self._horizon()) - 1, 0, h - 2))
        rows, columns = max(8, (h - top) // 5), max(16, w // 16)
        us = (np.arange(columns) + 0.5) * w / columns - 0.5
        vs = top + (np.arange(rows) + 0.5) * (h - top) / rows - 0.5
        at = self.camera.ground(us, vs).reshape(-1, 3)
        up = np.broadcast_to(np.float32((0, 1, 0)), at.shape)
        light = (light_on(at, up, lamps, self.ambient) / np.pi).reshape(rows, columns, 3)
        light = cv2.resize(light, (w, h - top), interpolation=cv2.INTER_LINEAR)
        light[labels[top:] == IDS["sky"]] = 1.0
        radiance[top:] *= light

    def _haze(self, lamps: np.ndarray) -> np.ndarray:
        """Cones of light below the lamps, at a quarter of the size: radiance, float32 (h, w, 3)."""
        h, w = self.camera.size_hw
        air = np.zeros((max(16, h // 4), max(16, w // 4), 3), np.float32)
        return air

    def _own_bonnet(self, radiance: np.ndarray, labels: np.ndarray) -> None:
        """The vehicle's own bonnet along the lower edge, mirroring a little of the street; unlabelled."""
        if self.bonnet:
            h, w = labels.shape
            x = np.linspace(-1, 1, 33)
            y = h * (1 - self.bonnet * (1.0 - 0.5 * x**4))
            outline = np.append(np.stack([(x + 1) * w / 2, y], 1), ((w, h), (0, h)), axis=0)
            polygon = [np.rint(outline).astype(np.int32)]
            cv2.fillPoly(radiance, polygon, (0.004, 0.004, 0.004))
            cv2.fillPoly(labels, polygon, IGNORE_ID)


def _in_order(things: list[Thing], time_s: float, ego_m: float) -> list[Faces]:
    """Faces of what is in sight, the furthest first."""
    placed = [(t, *t.place(time_s, ego_m)) for t in things]
    placed = [p for p in placed if -20.0 < p[2] < SIGHT_M]
    placed.sort(key=lambda p: -(p[2] + p[0].behind))
    return [t.faces(time_s).at(x, z, t.yaw_rad) for t, x, z in placed]
