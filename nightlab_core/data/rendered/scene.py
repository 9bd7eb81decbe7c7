# SPDX-License-Identifier: Apache-2.0
"""The rendered street: an endless straight row of blocks, each drawn from its own random stream.

Metres along the road; the vehicle's lane is x = 0, traffic keeps to the right. Blocks are created as they come into
sight.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from nightlab_core.data.rendered import shapes
from nightlab_core.data.rendered.camera import Faces
from nightlab_core.data.rendered.shapes import IDS, Mesh
from nightlab_core.data.rendered.stock import SIGHT_M, Thing, any_of, stock
from nightlab_core.data.rendered.walls import LONG_M

BLOCK_M = 48.0
LANE_M = 3.3
JUNCTION_M = 11.0
_LAMP_COLOURS = ((0.12, 0.48, 1.0), (0.25, 0.62, 1.0), (0.9, 1.0, 1.0), (1.05, 1.0, 0.9))


@dataclass
class Block:
    """A piece of the street: its ground and the things on it."""

    ground: Faces
    things: list[Thing]
    junction: float | None  # where a cross street begins


class Street:
    """The street of one seed: its properties, its blocks, and the vehicles near the camera."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 1])
        self.kind = ("city", "suburb", "park")[rng.choice(3, p=(0.5, 0.3, 0.2))]
        self.speed = rng.uniform(5.0, 12.0)
        self.oncoming, self.more = int(rng.integers(1, 3)), int(rng.random() < 0.4)
        self.parking = {-1: bool(rng.random() < 0.65), 1: bool(rng.random() < 0.65)}
        self.left = -(LANE_M / 2 + self.oncoming * LANE_M + 2.3 * self.parking[-1] + 0.3)
        self.right = LANE_M / 2 + self.more * LANE_M + 2.3 * self.parking[1] + 0.3
        self.walk = rng.uniform(2.2, 4.5)
        self.verge = rng.uniform(1.5, 5) if self.kind != "city" or rng.random() < 0.2 else 0.0
        colour = np.array(_LAMP_COLOURS[rng.integers(len(_LAMP_COLOURS))])
        high, reach = rng.uniform(5.5, 9), rng.uniform(1.0, 2.6)
        self.lamp = Faces.of(shapes.street_lamp(rng, high, -reach, colour))
        self.lamp_step, self.lamp_sides = rng.uniform(18, 36), int(rng.integers(1, 4))
        self.crowd, self.traffic = rng.uniform(0.4, 1.7), rng.uniform(0.4, 1.3)
        self.signal_arm = int(rng.integers(1, 4)) if rng.random() < 0.6 else 0
        self.asphalt = np.array((0.1, 0.1, 0.1)) * rng.uniform(0.6, 1.3)
        self.paving = np.array((0.17, 0.19, 0.2)) * rng.uniform(0.6, 1.3)
        self.far = any_of("woods" if self.kind == "park" else "far", rng)
        self.vehicles = self._traffic(rng)
        self._blocks: dict[int, Block] = {}

    def edge(self, side: int) -> float:
        """Return x of the kerb on a side, -1 or 1."""
        return self.left if side < 0 else self.right

    def line(self, side: int) -> float:
        """Return x of the front of the houses on a side."""
        return self.edge(side) + side * (self.walk + self.verge)

    def block(self, index: int) -> Block:
        """Return the block that begins at index * BLOCK_M; the same at every call."""
        if index not in self._blocks:
            self._blocks = {i: b for i, b in self._blocks.items() if abs(i - index) < 8}
            rng = np.random.default_rng([self.seed, 2, index + 100])
            z0 = index * BLOCK_M
            junction = z0 + rng.uniform(9, 24) if index >= 0 and rng.random() < 0.5 else None
            block = Block(Faces.of(self._ground(rng, z0, junction)), [], junction)
            for side in (-1, 1):
                self._backdrop(rng, side, z0, block)
                self._furniture(rng, side, z0, block)
            if junction is not None:
                self._crossing(rng, junction, block)
            self._blocks[index] = block
        return self._blocks[index]

    def _ground(self, rng: np.random.Generator, z0: float, junction: float | None) -> Mesh:
        """Return pavement, verge, road and markings; faces are at most 8 m long, so that they follow the bend."""
        mesh, end = Mesh(), z0 + BLOCK_M
        paint = np.full(3, 0.3 + 0.3 * rng.random())
        middle_paint = paint * (0.25, 0.8, 1.0) if self.seed % 2 else paint

        def strip(x0: float, x1: float, za: float, zb: float, albedo: ArrayLike, label: str) -> None:
            count = int((zb - za) // 8) + 1
            for a, b in pairwise([za + (zb - za) * i / count for i in range(count + 1)]):
                mesh.face(((x0, 0, a), (x1, 0, a), (x1, 0, b), (x0, 0, b)), albedo, IDS[label])

        for side in (-1, 1):
            kerb = self.edge(side)
            walk, verge = kerb + side * self.walk, self.line(side)
            strip(walk, side * 90, z0, end, (0.03, 0.07, 0.05), "terrain")
            strip(kerb, walk if self.verge else verge + side, z0, end, self.paving, "sidewalk")
        strip(self.left, self.right, z0, end, self.asphalt, "road")
        for side in (-1, 1):
            strip(self.edge(side), self.edge(side) + side * 0.18, z0, end, self.paving * 1.7, "sidewalk")
        for _ in range(5):  # patches of newer asphalt
            x, z, w = rng.uniform(self.left, self.right - 1), rng.uniform(z0, end - 6), rng.uniform(0.4, 1.6)
            strip(x, min(x + w, self.right), z, z + rng.uniform(0.6, 6), self.asphalt * rng.uniform(0.5, 1.35), "road")
        middle = -LANE_M / 2
        for x in (middle - 0.18, middle + 0.08):
            strip(x, x + 0.11, z0, end, middle_paint, "road")
        for x in [middle - LANE_M * i for i in range(1, self.oncoming)] + [LANE_M / 2] * self.more:
            for z in np.arange(z0, end, 8.0):
                strip(x, x + 0.12, z, z + 3.0, paint, "road")
        for side in (-1, 1):
            x = self.edge(side) - side * (2.4 if self.parking[side] else 0.25)
            strip(x, x + 0.11, z0, end, paint * 0.9, "road")
        if junction is not None:
            far = junction + JUNCTION_M
            strip(-90, 90, junction, far, self.asphalt, "road")
            for x in np.arange(self.left + 0.4, self.right - 0.5, 1.0):
                for z in (junction - 4.0, far + 1.0):
                    strip(x, x + 0.5, z, z + 3.0, paint, "road")
            strip(middle + 0.3, self.right - 0.2, junction - 5.6, junction - 5.2, paint, "road")
        return mesh

    def _backdrop(self, rng: np.random.Generator, side: int, z0: float, block: Block) -> None:
        """Add houses, walls, fences and trees behind the pavement of one side."""
        z, end, town = z0, z0 + BLOCK_M, self.kind == "city"
        base = self.line(side)
        gap = (block.junction - 1, block.junction + JUNCTION_M + 1) if block.junction is not None else (end, end)
        while z < end - 3:
            long = min(rng.uniform(10, 22), (gap[0] if z < gap[0] else end) - z)
            if gap[0] - 6 < z < gap[1]:
                z = gap[1]
                continue
            scale = (float(side), 1.0, long / LONG_M)
            if rng.random() < {"city": 0.85, "suburb": 0.5, "park": 0.15}[self.kind]:
                x = base + side * (rng.uniform(0, 0.6) if town else rng.uniform(0, 4))
                shade = tuple((rng.uniform(0.6, 1.4) * rng.uniform(0.85, 1.15, 3)).tolist())
                house = any_of("town house" if town else "house", rng)
                block.things.append(Thing(house, x, z, scale=scale, behind=long, tint=shade))
            else:
                barrier = ("fence", "wall", "hedge", None)[rng.choice(4, p=(0.4, 0.25, 0.15, 0.2))]
                if barrier is not None:
                    what = any_of(barrier, rng)
                    block.things.append(Thing(what, base + side * 0.05, z, scale=scale, behind=long - 0.5))
                for _ in range(int(rng.integers(2, 6))):
                    x, size = base + side * rng.uniform(2.5, 14), rng.uniform(0.7, 1.6)
                    at = z + rng.uniform(0, long)
                    block.things.append(Thing(any_of("tree", rng), x, at, scale=(size,) * 3, behind=long))
            z += long

    def _furniture(self, rng: np.random.Generator, side: int, z0: float, block: Block) -> None:
        """Add lamps, signs, signals, trees, parked cars and people of one side."""
        kerb, end, junction, things = self.edge(side), z0 + BLOCK_M, block.junction, block.things

        def free(z: float, margin: float = 1.0) -> bool:
            return junction is None or not junction - margin < z < junction + JUNCTION_M + margin

        for z in np.arange(np.ceil(z0 / self.lamp_step) * self.lamp_step, end, self.lamp_step):
            if self.lamp_sides & (1 if side < 0 else 2) and free(z):
                things.append(Thing(self.lamp, kerb + side * 0.6, z, scale=(float(side), 1.0, 1.0)))
        for z in rng.uniform(z0, end, int(rng.integers(1, 4))):
            if free(z):
                things.append(Thing(any_of("sign", rng), kerb + side * rng.uniform(0.4, 0.9), z))
        if junction is not None:
            # One state for all signals of a junction.
            state = int(np.random.default_rng([self.seed, 3, int(z0)]).choice(3, p=(0.45, 0.1, 0.45)))
            for z, arm in ((junction - 1.0, 0), (junction + JUNCTION_M + 0.8, self.signal_arm * (side > 0))):
                what = stock("signal", 3 * arm + state)
                things.append(Thing(what, kerb + side * 0.7, z, scale=(float(side), 1.0, 1.0)))
        if rng.random() < (0.3 if self.kind == "city" else 0.7):
            for z in np.arange(z0 + rng.uniform(0, 8), end, rng.uniform(8, 16)):
                if free(z, 2.5):
                    size = rng.uniform(0.6, 1.0)
                    things.append(Thing(any_of("tree", rng), kerb + side * 1.2, z, scale=(size,) * 3))
        z = z0 + rng.uniform(0, 6)
        while self.parking[side] and z < end - 3:
            if rng.random() < 0.75 and free(z, 8.0):
                yaw = rng.normal(0, 0.02) + (np.pi if side < 0 else 0.0)
                things.append(Thing(any_of("parked", rng), kerb - side * 1.1, z, yaw, behind=2.2))
            z += rng.uniform(5.8, 8.5)
        for _ in range(rng.poisson(2.4 * self.crowd)):
            speed = float(rng.choice((-1, 1)) * rng.uniform(0.8, 1.6) * (rng.random() < 0.8))
            x, z = kerb + side * rng.uniform(0.4, self.walk - 0.2), rng.uniform(z0, end)
            since = max(0.0, (z - 30) / self.speed)
            things.append(Thing(int(rng.integers(40)), x, z, velocity=(0.0, speed), since_s=since))

    def _vehicle(self, rng: np.random.Generator) -> Faces:
        return any_of(("car", "truck", "bus")[rng.choice(3, p=(0.84, 0.08, 0.08))], rng)

    def _traffic(self, rng: np.random.Generator) -> list[Thing]:
        """Return vehicles ahead and in the next lane, oncoming vehicles, and riders."""
        out: list[Thing] = []
        for lane in range(-self.oncoming, self.more + 1):
            way = -1 if lane < 0 else 1
            z = rng.uniform(4, 20) if lane else rng.uniform(8, 30)
            while z < SIGHT_M - 10:
                if rng.random() < 0.6 * self.traffic:
                    x, sway = lane * LANE_M + rng.normal(0, 0.15), rng.uniform(0.3, 1.0) * (way > 0)
                    closing, yaw = (way - 1) * self.speed, 0.0 if way > 0 else np.pi
                    what = self._vehicle(rng)
                    out.append(Thing(what, x, z + 3, yaw, (0.0, closing), behind=3.0, relative=True, sway_m=sway))
                z += rng.uniform(12, 30)
        for side, kind in ((-1, "oncoming"), (1, "along")):
            for z in rng.uniform(6, 60, rng.poisson(0.9)):
                x = self.edge(side) - side * (2.9 if self.parking[side] else 0.8)
                speed = (side * 0.7 - 1) * self.speed
                out.append(Thing(any_of(kind, rng), x, z, velocity=(0.0, speed), relative=True))
        return out

    def _crossing(self, rng: np.random.Generator, junction: float, block: Block) -> None:
        """Add people, riders and vehicles that cross the junction when the camera is within 30 m of it."""
        since = max(0.0, (junction - 30) / self.speed)
        for _ in range(rng.poisson(1.5 * self.crowd)):
            speed, x = float(rng.choice((-1, 1)) * rng.uniform(0.9, 1.5)), rng.uniform(self.left, self.right)
            z = rng.choice((junction - 2.5, junction + JUNCTION_M + 2.5)) + rng.normal(0, 0.5)
            block.things.append(Thing(int(rng.integers(40)), x, z, velocity=(speed, 0.0), since_s=since))
        for way in (-1, 1):
            z = junction + JUNCTION_M / 2 - way * 2.0
            if rng.random() < 0.35:
                x, v, yaw = rng.uniform(-14, 14), rng.uniform(2, 6) * way, way * np.pi / 2
                block.things.append(Thing(self._vehicle(rng), x, z, yaw, (v, 0.0), behind=1.0, since_s=since))
            elif rng.random() < 0.5:
                x, mirror = rng.uniform(-6, 6), (float(way), 1.0, 1.0)
                block.things.append(Thing(any_of("across", rng), x, z, 0.0, (way * 3.5, 0.0), mirror, since_s=since))
