# SPDX-License-Identifier: Apache-2.0
"""The street of the rendered night: an endless straight row of blocks, each drawn from its own random stream.

Metres along the road; the vehicle's lane is x = 0, traffic keeps to the right. Blocks are made when they come into sight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nightlab_core.data import night_shapes as shapes
from nightlab_core.data.night_camera import Faces
from nightlab_core.data.night_shapes import IDS, Mesh
from nightlab_core.data.night_walls import COLD, WARM, building, fence, wall

BLOCK_M = 48.0
SIGHT_M = 150.0
LANE_M = 3.3
JUNCTION_M = 11.0


@dataclass
class Thing:
    """Something that stands or moves, its faces at a time, and where it is: on the street, or in the vehicle's train.

    On the street (x, z) holds at `since_s`. In the train z is the distance ahead of the vehicle at time 0 and the velocity
    is relative to it; what falls behind comes up again at the end of sight.
    """

    faces: Callable[[float], Faces]
    x: float
    z: float
    yaw_rad: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)
    behind: float = 0.0  # how far its far end lies behind z, for the painter's order
    since_s: float = 0.0
    train: bool = False
    sway_m: float = 0.0

    def place(self, time_s: float, ego_m: float) -> tuple[float, float]:
        """(x, metres ahead of the vehicle) at a time in seconds."""
        x, z = (p + v * (time_s - self.since_s) for p, v in zip((self.x, self.z), self.velocity))
        if not self.train:
            return x, z - ego_m
        z += self.sway_m * (np.sin(0.5 * time_s + self.z) - np.sin(self.z))
        return x, (z + 8.0) % (SIGHT_M + 8.0) - 8.0


def _still(mesh: Mesh) -> Callable[[float], Faces]:
    faces = Faces.of(mesh)
    return lambda time_s: faces


class Street:
    """What one seed's street is like, and its blocks."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 1])
        self.kind = ("city", "suburb", "park")[rng.choice(3, p=(0.5, 0.3, 0.2))]
        self.speed = rng.uniform(5.0, 12.0)
        self.oncoming, self.more = int(rng.integers(1, 3)), int(rng.random() < 0.4)
        self.parking = {-1: rng.random() < 0.65, 1: rng.random() < 0.65}
        self.left = -(LANE_M / 2 + self.oncoming * LANE_M + 2.3 * self.parking[-1] + 0.3)
        self.right = LANE_M / 2 + self.more * LANE_M + 2.3 * self.parking[1] + 0.3
        self.walk, self.verge = (
            rng.uniform(2.2, 4.5),
            rng.uniform(1.5, 5) if self.kind != "city" or rng.random() < 0.2 else 0.0,
        )
        self.lamp_colour = np.array((0.12, 0.48, 1.0)) if rng.random() < 0.5 else np.array((0.9, 1.0, 1.0))
        self.lamp_step, self.lamp_high, self.lamp_sides = (
            rng.uniform(20, 36),
            rng.uniform(6, 9),
            int(rng.integers(1, 4)),
        )
        self.lit = rng.uniform(0.08, 0.45)
        self.crowd, self.traffic = rng.uniform(0.3, 1.6), rng.uniform(0.4, 1.3)
        self.asphalt = np.array((0.1, 0.1, 0.1)) * rng.uniform(0.6, 1.3)
        self.paving = np.array((0.17, 0.19, 0.2)) * rng.uniform(0.6, 1.3)
        self._blocks: dict[int, tuple[Faces, list[Thing], list[Thing]]] = {}
        self.far = self._far(rng)
        self.train = self._traffic(rng)

    def edge(self, side: int) -> float:
        """x of the kerb on a side, -1 or 1."""
        return self.left if side < 0 else self.right

    def block(self, index: int) -> tuple[Faces, list[Thing], list[Thing]]:
        """Ground, what stands behind the pavements, and what stands or moves before it."""
        if index not in self._blocks:
            self._blocks[index] = self._make(index, np.random.default_rng([self.seed, 2, index + 100]))
        return self._blocks[index]

    def _make(self, index: int, rng: np.random.Generator) -> tuple[Faces, list[Thing], list[Thing]]:
        z0 = index * BLOCK_M
        junction = z0 + rng.uniform(8, 20) if index >= 0 and rng.random() < 0.6 else None
        backs: list[Thing] = []
        street: list[Thing] = []
        for side in (-1, 1):
            self._backdrop(rng, side, z0, junction, backs)
            self._furniture(rng, side, z0, junction, street)
        if junction is not None:
            self._crossing(rng, junction, street)
        return Faces.of(self._ground(rng, z0, junction)), backs, street

    def _ground(self, rng: np.random.Generator, z0: float, junction: float | None) -> Mesh:
        """Pavement, verge, road, markings; faces are cut every 8 m so that they follow the bend."""
        mesh = Mesh()
        paint = np.full(3, rng.uniform(0.3, 0.6))
        yellow = paint * (0.25, 0.8, 1.0) if self.seed % 2 else paint

        def strip(x0: float, x1: float, za: float, zb: float, albedo, label: str) -> None:
            cuts = np.linspace(za, zb, max(2, int(np.ceil((zb - za) / 8)) + 1))
            for a, b in zip(cuts[:-1], cuts[1:]):
                mesh.face(((x0, 0, a), (x1, 0, a), (x1, 0, b), (x0, 0, b)), albedo, IDS[label])

        end = z0 + BLOCK_M
        for side in (-1, 1):
            kerb = self.edge(side)
            walk, verge = kerb + side * self.walk, kerb + side * (self.walk + self.verge)
            strip(verge, side * 90, z0, end, (0.04, 0.07, 0.06), "terrain")
            if self.verge:
                strip(walk, verge, z0, end, (0.03, 0.07, 0.05), "terrain")
            strip(kerb, walk if self.verge else verge + side, z0, end, self.paving, "sidewalk")
        strip(self.left, self.right, z0, end, self.asphalt, "road")
        for side in (-1, 1):
            strip(self.edge(side), self.edge(side) + side * 0.18, z0, end, self.paving * 1.7, "sidewalk")
        for _ in range(5):
            x, z, w = rng.uniform(self.left, self.right - 1), rng.uniform(z0, end - 6), rng.uniform(0.4, 1.6)
            strip(x, min(x + w, self.right), z, z + rng.uniform(0.6, 6), self.asphalt * rng.uniform(0.5, 1.35), "road")
        middle = -LANE_M / 2
        for x in (middle - 0.18, middle + 0.08):
            strip(x, x + 0.11, z0, end, yellow, "road")
        lanes = [middle - LANE_M * i for i in range(1, self.oncoming)] + [LANE_M / 2] * self.more
        for x in lanes:
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
            strip(-LANE_M / 2 + 0.3, self.right - 0.2, junction - 5.6, junction - 5.2, paint, "road")
        return mesh

    def _backdrop(self, rng, side: int, z0: float, junction: float | None, out: list[Thing]) -> None:
        """Houses, walls, fences and trees behind the pavement of one side."""
        z, end = z0, z0 + BLOCK_M
        base = self.edge(side) + side * (self.walk + self.verge)
        while z < end - 3:
            long = min(rng.uniform(10, 22), end - z)
            if junction is not None and z < junction + JUNCTION_M + 1 and z + long > junction - 1:
                if junction - 1 - z < 6:
                    z = junction + JUNCTION_M + 1
                    continue
                long = junction - 1 - z
            houses = {"city": 0.85, "suburb": 0.5, "park": 0.15}[self.kind]
            if rng.random() < houses:
                floors = int(rng.integers(3, 9) if self.kind == "city" else rng.integers(2, 4))
                set_back = rng.uniform(0, 0.6) if self.kind == "city" else rng.uniform(0, 4)
                mesh = building(rng, side, long - rng.uniform(0, 1.2), floors, self.lit, self.kind == "city")
                out.append(Thing(_still(mesh), base + side * set_back, z, behind=long))
            else:
                barrier = rng.choice(4, p=(0.35, 0.25, 0.2, 0.2))
                if barrier < 3:
                    mesh = fence(rng, long) if barrier == 0 else wall(rng, long, hedge=barrier == 2)
                    out.append(Thing(_still(mesh), base + side * 0.05, z, behind=long - 0.5))
                for _ in range(int(rng.integers(2, 6))):
                    x, height = base + side * rng.uniform(2.5, 14), rng.uniform(5, 12)
                    out.append(Thing(_still(shapes.tree(rng, height)), x, z + rng.uniform(0, long), behind=long))
            z += long

    def _furniture(self, rng, side: int, z0: float, junction: float | None, out: list[Thing]) -> None:
        """Lamps, signs, signals, trees, parked cars and people of one side."""
        kerb, end = self.edge(side), z0 + BLOCK_M

        def free(z: float, margin: float = 1.0) -> bool:
            return junction is None or not junction - margin < z < junction + JUNCTION_M + margin

        step = self.lamp_step
        for z in np.arange(np.ceil(z0 / step) * step, end, step):
            if self.lamp_sides & (1 if side < 0 else 2) and free(z):
                mesh = shapes.street_lamp(rng, self.lamp_high, -side * rng.uniform(1.5, 2.6), self.lamp_colour)
                out.append(Thing(_still(mesh), kerb + side * 0.6, z))
        for _ in range(int(rng.integers(1, 4))):
            z = rng.uniform(z0, end)
            if free(z):
                out.append(Thing(_still(shapes.sign(rng)), kerb + side * rng.uniform(0.4, 0.9), z))
        if junction is not None:
            reach = 0.0 if side < 0 or rng.random() < 0.4 else -rng.uniform(3.5, 5.5)
            state = int(np.random.default_rng([self.seed, 3, int(z0)]).choice(3, p=(0.45, 0.1, 0.45)))
            for z in (junction - 1.0, junction + JUNCTION_M + 0.8):
                out.append(Thing(_still(shapes.traffic_light(rng, state, reach)), kerb + side * 0.7, z))
        if rng.random() < (0.3 if self.kind == "city" else 0.7):
            for z in np.arange(z0 + rng.uniform(0, 8), end, rng.uniform(8, 16)):
                if free(z, 2.5):
                    out.append(Thing(_still(shapes.tree(rng, rng.uniform(4.5, 8))), kerb + side * 1.2, z))
        if self.parking[side]:
            z = z0 + rng.uniform(0, 6)
            while z < end - 3:
                if rng.random() < 0.75 and free(z, 8.0):
                    yaw = rng.normal(0, 0.02) + (np.pi if side < 0 else 0.0)
                    out.append(Thing(_still(shapes.car(rng, parked=True)), kerb - side * 1.1, z, yaw, behind=2.2))
                z += rng.uniform(5.8, 8.5)
        for _ in range(rng.poisson(2.2 * self.crowd)):
            speed = rng.choice((-1, 1)) * rng.uniform(0.8, 1.6) * (rng.random() < 0.8)
            x, z = kerb + side * rng.uniform(0.4, self.walk - 0.2), rng.uniform(z0, end)
            out.append(Thing(_walker(rng, speed), x, z, velocity=(0.0, speed), since_s=max(0.0, (z - 30) / self.speed)))

    def _vehicle(self, rng: np.random.Generator) -> Mesh:
        kind = rng.choice(3, p=(0.84, 0.09, 0.07))
        return shapes.car(rng) if kind == 0 else shapes.heavy(rng, ("truck", "bus")[kind - 1])

    def _traffic(self, rng: np.random.Generator) -> list[Thing]:
        """Vehicles that keep with us ahead and in the next lane, the oncoming ones, and riders."""
        out: list[Thing] = []
        for lane in range(-self.oncoming, self.more + 1):
            way, z = (
                (-1, rng.uniform(4, 20)) if lane < 0 else (1, rng.uniform(7, 30) if lane == 0 else rng.uniform(2, 20))
            )
            while z < SIGHT_M - 10:
                if rng.random() < 0.6 * self.traffic:
                    faces, x = _still(self._vehicle(rng)), lane * LANE_M + rng.normal(0, 0.15)
                    sway, yaw = (rng.uniform(0.3, 1.0), 0.0) if way > 0 else (0.0, np.pi)
                    out.append(Thing(faces, x, z + 3, yaw, (0.0, (way - 1) * self.speed), 3.0, train=True, sway_m=sway))
                z += rng.uniform(12, 30)
        for side in (-1, 1):
            for z in rng.uniform(6, 60, rng.poisson(0.8)):
                x = self.edge(side) - side * (2.9 if self.parking[side] else 0.8)
                faces = _still(shapes.rider(rng, rng.random() < 0.25, True, side))
                out.append(Thing(faces, x, z, velocity=(0.0, (side * 0.7 - 1) * self.speed), train=True))
        return out

    def _crossing(self, rng: np.random.Generator, junction: float, out: list[Thing]) -> None:
        """People, riders and vehicles across the junction, there when we come within 30 m of it."""
        since = max(0.0, (junction - 30) / self.speed)
        for _ in range(rng.poisson(1.5 * self.crowd)):
            speed = rng.choice((-1, 1)) * rng.uniform(0.9, 1.5)
            z = rng.choice((junction - 2.5, junction + JUNCTION_M + 2.5)) + rng.normal(0, 0.5)
            out.append(
                Thing(_walker(rng, speed), rng.uniform(self.left, self.right), z, 0.0, (speed, 0.0), since_s=since)
            )
        for way in (-1, 1):
            z = junction + JUNCTION_M / 2 - way * 2.0
            if rng.random() < 0.35:
                x, v = rng.uniform(-14, 14), rng.uniform(2, 6) * way
                out.append(Thing(_still(self._vehicle(rng)), x, z, way * np.pi / 2, (v, 0.0), 1.0, since))
            elif rng.random() < 0.5:
                faces = _still(shapes.rider(rng, rng.random() < 0.25, False, way))
                out.append(Thing(faces, rng.uniform(-6, 6), z, 0.0, (way * 3.5, 0.0), since_s=since))

    def _far(self, rng: np.random.Generator) -> Faces:
        """What closes the street in the distance: dark blocks, towers with lit windows, woods."""
        mesh, x = Mesh(), -170.0
        while x < 170:
            wide = rng.uniform(8, 22)
            if self.kind == "park" or rng.random() < 0.3:
                for _ in range(6):
                    r = rng.uniform(3, 6)
                    mesh.disc(
                        x + rng.uniform(0, wide),
                        r * 0.8,
                        SIGHT_M + 20,
                        r,
                        (0.03, 0.06, 0.05),
                        IDS["vegetation"],
                        sides=9,
                    )
            else:
                high = rng.uniform(8, 20) if rng.random() < 0.8 else rng.uniform(25, 60)
                mesh.board(x, x + wide, 0, high, SIGHT_M + 20, (0.06, 0.06, 0.06), IDS["building"])
                for _ in range(int(high * wide * self.lit * 0.12)):
                    wx, wy = x + rng.uniform(0.05, 0.9) * wide, rng.uniform(2, high - 1.5)
                    light = (WARM if rng.random() < 0.7 else COLD) * rng.uniform(0.1, 1.0)
                    mesh.board(wx, wx + 1.0, wy, wy + 1.0, SIGHT_M + 19.9, shapes.DARK, IDS["building"], light)
            x += wide * rng.uniform(0.7, 1.0)
        mesh.board(-200, 200, -0.5, 3.5, SIGHT_M + 21, (0.03, 0.04, 0.03), IDS["vegetation"])
        return Faces.of(mesh)


def _walker(rng: np.random.Generator, speed: float) -> Callable[[float], Faces]:
    seed, phase = int(rng.integers(2**31)), rng.uniform(0, 6.3)

    def at(time_s: float) -> Faces:
        stride = 0.32 * np.sin(phase + abs(speed) * 4.2 * time_s) if speed else 0.05
        return Faces.of(shapes.person(np.random.default_rng(seed), stride))

    return at
