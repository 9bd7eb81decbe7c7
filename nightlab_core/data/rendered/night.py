# SPDX-License-Identifier: Apache-2.0
"""Render street scenes at night with exact labels: for tests, the demo and as a small share of training data.

Not for claims of accuracy, which need real data. Labels and image are painted with the same polygons, from far to near;
halos, haze and noise do not change labels. The seed decides everything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from nightlab_core.data.rendered import lens
from nightlab_core.data.rendered.camera import Camera, Faces, Placement, light_on, paint
from nightlab_core.data.rendered.scene import BLOCK_M, Street
from nightlab_core.data.rendered.shapes import IDS
from nightlab_core.data.rendered.stock import SIGHT_M, Thing
from nightlab_core.labels import IGNORE_ID

_NEAREST_LAMPS = 28
#: Painting order of the layers from left to right: houses, pavement, road, pavement, houses.
_LAYERS = (0, 1, 2, 1, 0)
_GROUND = ("road", "sidewalk", "terrain")
_UPRIGHT = ("building", "wall", "fence", "vegetation")


@dataclass(frozen=True)
class NightFrame:
    """An image, uint8 (H, W, 3) BGR, its Cityscapes train ids, uint8 (H, W), and seconds since the clip's start.

    Ids are 0-18, or 255 on the vehicle's own bonnet.
    """

    image_bgr: np.ndarray
    labels: np.ndarray
    stamp_s: float


def render_scene(seed: int, size_hw: tuple[int, int] = (720, 1280), exposure: float = 1.0) -> NightFrame:
    """Render the first frame of a seed's clip. Raises ValueError as `render_clip` does."""
    return next(render_clip(1, size_hw, seed, exposure=exposure))


def render_clip(
    num_frames: int, size_hw: tuple[int, int] = (720, 1280), seed: int = 0, fps: float = 10.0, exposure: float = 1.0
) -> Iterator[NightFrame]:
    """Render a drive through one street at night, frame by frame.

    `exposure` scales the light that reaches the sensor; 1 is the camera's own choice. The seed (0 or more) decides
    street, traffic and camera. Raises ValueError for a size below 32 x 32 or a number out of range.
    """
    if num_frames < 0 or seed < 0:
        raise ValueError(f"received num_frames={num_frames}, seed={seed}; expected both to be 0 or more")
    if min(size_hw) < 32:
        raise ValueError(f"received size_hw={tuple(size_hw)}; expected (height, width) of at least 32 pixels each")
    if not (fps > 0 and exposure > 0):
        raise ValueError(f"received fps={fps}, exposure={exposure}; expected both above 0")
    drive = NightDrive(seed, (int(size_hw[0]), int(size_hw[1])))
    return (drive.frame(index, index / fps, exposure) for index in range(num_frames))


class NightDrive:
    """A street, the camera that moves through it, and the weather."""

    def __init__(self, seed: int, size_hw: tuple[int, int]) -> None:
        rng = np.random.default_rng([seed, 0])
        self.seed, self.street = seed, Street(seed)
        self.camera = Camera(
            size_hw=size_hw,
            focal_px=rng.uniform(0.75, 1.0) * max(size_hw),
            pitch_rad=rng.uniform(-0.05, 0.03),
            yaw_rad=rng.normal(0, 0.03),
            height_m=rng.uniform(1.25, 1.6),
            bend_per_m=rng.normal(0, 0.0009),
            gain=rng.lognormal(0.4, 0.4),
            cast_bgr=(rng.uniform(0.75, 1.1), 1.0, rng.uniform(0.95, 1.25)),
            noise=rng.uniform(0.006, 0.026),
            glare=rng.lognormal(0, 0.5),
            shake_px=(abs(rng.normal(0, 1.6)), rng.normal(0, 0.8)),
        )
        self.haze, self.wet = rng.exponential(0.4), max(0.06, rng.uniform(-1.0, 1.3))
        self.ambient = (np.array((1.15, 1.0, 0.95)) * rng.lognormal(-3.5, 0.6)).astype(np.float32)
        self.bonnet = rng.uniform(0.06, 0.12) if rng.random() < 0.35 else 0.0
        dusk = rng.random() < 0.15
        tone = np.array((1.6, 1.0, 0.7) if dusk else (0.8, 0.9, 1.1)) * rng.lognormal(-4.0 if dusk else -6.2, 0.5)
        self._sky = self._make_sky(rng, tone)
        self._scale = lens.sensitivity(self.camera)
        self._grounds = self._texture_maps()

    def frame(self, index: int, time_s: float, exposure: float = 1.0) -> NightFrame:
        """Render the frame at a time in seconds; `index` and the seed decide its noise."""
        camera, ego = self.camera, self.street.speed * time_s
        blocks = [self.street.block(i) for i in range(int(ego // BLOCK_M), int((ego + SIGHT_M) // BLOCK_M) + 1)]
        things = [t for b in blocks for t in b.things] + self.street.vehicles
        faces = Faces.placed([(self.street.far, Placement(0.0, SIGHT_M + 20)), *self._in_order(things, time_s, ego)])
        lamps = faces.lamps[np.argsort(np.abs(faces.lamps[:, 2] - 12.0), kind="stable")[:_NEAREST_LAMPS]]
        lamps[:, :3] = camera.bent(lamps[:, :3])
        canvas = self._sky.copy()
        ground = Faces.placed([(b.ground, Placement(0.0, -ego)) for b in reversed(blocks)])
        paint(camera, ground, None, self.ambient, canvas)
        self._light_ground(canvas, lamps, faces)
        paint(camera, faces, lamps, self.ambient, canvas)
        labels = cv2.extractChannel(canvas, 3).astype(np.uint8)
        radiance = cv2.cvtColor(canvas, cv2.COLOR_BGRA2BGR)
        self._wear(radiance, labels, ego)
        lens.add_glare(radiance, camera.glare, lens.cones(camera, lamps, self.haze))
        self._own_bonnet(radiance, labels)
        rng = np.random.default_rng([self.seed, 9, index])
        return NightFrame(lens.expose(camera, radiance, self._scale * np.float32(exposure), rng), labels, time_s)

    def _in_order(self, things: list[Thing], time_s: float, ego_m: float) -> list[tuple[Faces, Placement]]:
        """Return the meshes in sight, in painting order: houses, then pavements, then the road.

        Seen from the road, each of these layers can only be hidden by the next one. Within a layer, the mesh whose far
        end is furthest away comes first.
        """
        street = self.street
        bounds = (street.line(-1), street.left, street.right, street.line(1))
        placed = [(t, *t.place(time_s, ego_m)) for t in things]
        placed = [p for p in placed if -20.0 < p[2] < SIGHT_M]
        placed.sort(key=lambda p: (_LAYERS[bisect_right(bounds, p[1])], -(p[2] + p[0].behind)))
        return [t.faces(time_s, x, z) for t, x, z in placed]

    def _make_sky(self, rng: np.random.Generator, tone: np.ndarray) -> np.ndarray:
        """Return a canvas of cloudy sky, bright near the horizon and dark above."""
        h, w = self.camera.size_hw
        rows = np.clip((self.camera.horizon - np.arange(64) * h / 64) / self.camera.focal_px, 0, 1)
        glow = np.exp(-rows / 0.18)[:, None, None] * 1.5 + 0.4
        clouds = 0.7 + 0.6 * cv2.resize(rng.random((6, 9), dtype=np.float32), (32, 64), interpolation=cv2.INTER_CUBIC)
        sky = cv2.resize((glow * clouds[..., None] * tone).astype(np.float32), (w, h))
        canvas = cv2.cvtColor(sky, cv2.COLOR_BGR2BGRA)
        canvas[..., 3] = IDS["sky"]
        return canvas

    def _light_ground(self, canvas: np.ndarray, lamps: np.ndarray, faces: Faces) -> None:
        """Turn the ground's albedo into radiance, in place: light by position, and reflections on the wet road."""
        h, w = self.camera.size_hw
        top = int(np.clip(np.ceil(self.camera.horizon), 0, h - 1))
        rows, columns = max(8, (h - top) // 5), max(16, w // 16)
        us, vs = (np.arange(columns) + 0.5) * w / columns - 0.5, top + (np.arange(rows) + 0.5) * (h - top) / rows - 0.5
        at = self.camera.ground(us, vs).reshape(-1, 3)
        light = light_on(at, np.broadcast_to(np.array((0, 1, 0), np.float32), at.shape), lamps, self.ambient)
        light = cv2.cvtColor(light.reshape(rows, columns, 3), cv2.COLOR_BGR2BGRA)  # alpha 1 keeps the labels
        canvas[top:] *= cv2.resize(light, (w, h - top), interpolation=cv2.INTER_LINEAR)
        film = cv2.cvtColor(lens.wet_reflection(self.camera, faces, self.wet, top), cv2.COLOR_BGR2BGRA)
        film[..., 3] = 0.0
        canvas[top:] += cv2.resize(film, (w, h - top), interpolation=cv2.INTER_LINEAR)

    def _texture_maps(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return each half-size pixel's texel on ground and sides, and the texture's contrast there."""
        full_h, full_w = self.camera.size_hw
        h, w = max(16, full_h // 2), max(16, full_w // 2)
        rays = self.camera.rays((np.arange(w) + 0.5) * full_w / w - 0.5, (np.arange(h) + 0.5) * full_h / h - 0.5)
        x, y, z = (np.ascontiguousarray(rays[..., i]) for i in range(3))
        far = self.street.walk + self.street.verge
        sides = np.where(x < 0, x / np.float32(self.street.left - far), x / np.float32(self.street.right + far))
        maps = []
        for inverse, across, depth in ((y / np.float32(-self.camera.height_m), x, 1.0), (sides, y, 0.6)):
            way = 1.0 / np.maximum(inverse, np.float32(1 / 400))
            along, row = ((m * way / np.float32(lens.TEXEL_M)).astype(np.int32) for m in (z, across))
            show = depth / (127 + 127 * (z * way / 25.0) ** 2)
            maps.append((along, (row & (lens.TEXELS - 1)) * lens.TEXELS, show))
        return maps

    def _wear(self, radiance: np.ndarray, labels: np.ndarray, ego: float) -> None:
        """Multiply the ground and the street's sides by a texture that is fixed in the world, in place."""
        h, w = labels.shape
        grain = np.ones((h, w), np.float32)
        for names, (along, across, show) in zip((_GROUND, _UPRIGHT), self._grounds, strict=True):
            texel = ((along + round(ego / lens.TEXEL_M)) & (lens.TEXELS - 1)) + across
            tile = lens.texture().ravel()[texel] * show + 1.0
            tile = cv2.resize(tile, (w, h), interpolation=cv2.INTER_LINEAR)
            table = np.zeros(256, np.uint8)
            table[[IDS[n] for n in names]] = 255
            cv2.copyTo(tile, cv2.LUT(labels, table), grain)
        cv2.multiply(radiance, cv2.merge([grain] * 3), radiance)

    def _own_bonnet(self, radiance: np.ndarray, labels: np.ndarray) -> None:
        """Paint the vehicle's own bonnet along the lower edge, with a dim reflection of the street; unlabelled."""
        if not self.bonnet:
            return
        h, w = labels.shape
        x = np.linspace(-1, 1, 33)
        outline = np.stack([(x + 1) * w / 2, h * (1 - self.bonnet * (1.0 - 0.5 * x**4))], 1)
        outline = np.append(outline, ((w, h), (0, h)), axis=0)
        cv2.fillPoly(labels, [np.rint(outline).astype(np.int32)], IGNORE_ID)
        top, middle = int(outline[:, 1].min()), int(np.clip(self.camera.horizon, 8, h - 8))
        scene = cv2.flip(radiance[max(0, middle - h // 3) : middle + h // 20], 0)
        scene = cv2.resize(scene, (max(8, w // 8), h - top), interpolation=cv2.INTER_AREA)
        mirrored = cv2.resize(cv2.GaussianBlur(scene, (0, 0), 1.0), (w, h - top)) * 0.07 + 0.0012
        band = radiance[top:]
        cv2.copyTo(mirrored, (labels[top:] == IGNORE_ID).astype(np.uint8), band)
