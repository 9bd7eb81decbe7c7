# SPDX-License-Identifier: Apache-2.0
"""A stock of meshes that all streets share, and the things that are placed in a street."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from nightlab_core.data.rendered import shapes, vehicles, walls
from nightlab_core.data.rendered.camera import Faces, Placement

SIGHT_M = 150.0
_GAITS = 8
#: Number of variants of each kind. Making one takes milliseconds, so all streets share the stock.
_STOCK = {
    "car": 72, "parked": 72, "truck": 12, "bus": 12, "person": 40, "along": 24, "oncoming": 24, "across": 24,
    "tree": 48, "sign": 48, "town house": 56, "house": 28, "fence": 12, "wall": 12, "hedge": 12, "signal": 12,
    "far": 12, "woods": 8,
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def stock(kind: str, variant: int, gait: int = 0) -> Faces:
    """Return a mesh of the stock; `gait`, 0-7, is the phase of a person's step."""
    rng = np.random.default_rng([list(_STOCK).index(kind), variant])
    if kind in ("car", "parked"):
        mesh = vehicles.car(rng, kind == "parked")
    elif kind in ("truck", "bus"):
        mesh = vehicles.heavy(rng, kind)
    elif kind == "person":
        mesh = shapes.person(rng, 0.05 if gait == 0 else 0.34 * float(np.sin(np.pi * (gait - 0.5) / (_GAITS - 1))))
    elif kind in ("along", "oncoming", "across"):
        mesh = vehicles.rider(rng, variant % 4 == 0, kind)
    elif kind == "tree":
        mesh = shapes.tree(rng)
    elif kind == "sign":
        mesh = shapes.sign(rng)
    elif kind in ("town house", "house"):
        town = kind == "town house"
        mesh = walls.building(rng, int(rng.integers(3, 9) if town else rng.integers(1, 4)), town)
    elif kind == "signal":
        mesh = shapes.traffic_light(variant % 3, (0.0, -3.5, -4.5, -5.5)[variant // 3])
    elif kind == "fence":
        mesh = walls.fence(rng)
    elif kind in ("wall", "hedge"):
        mesh = walls.wall(rng, kind == "hedge")
    else:
        mesh = walls.far_end(rng, kind == "woods")
    return Faces.of(mesh)


def any_of(kind: str, rng: np.random.Generator) -> Faces:
    """Return a mesh of the stock, drawn at random."""
    return stock(kind, int(rng.integers(_STOCK[kind])))


@dataclass
class Thing:
    """An object in the street: its faces, its position and its velocity.

    (x, z) is the position at `since_s`. For a `relative` thing, z is the distance ahead of the camera at time 0, and
    the velocity is relative to the camera; when it falls behind, it reappears at the end of sight.
    """

    what: Faces | int  #: or the number of a person in the stock, who walks
    x: float
    z: float
    yaw_rad: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    behind: float = 0.0  #: distance from z to its far end, for the painting order
    since_s: float = 0.0
    relative: bool = False
    sway_m: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def place(self, time_s: float, ego_m: float) -> tuple[float, float]:
        """Return (x, metres ahead of the camera) at a time in seconds."""
        x, z = (p + v * (time_s - self.since_s) for p, v in zip((self.x, self.z), self.velocity, strict=True))
        if not self.relative:
            return x, z - ego_m
        z += self.sway_m * float(np.sin(0.5 * time_s + self.z) - np.sin(self.z))
        return x, (z + 8.0) % (SIGHT_M + 8.0) - 8.0

    def faces(self, time_s: float, x: float, z: float) -> tuple[Faces, Placement]:
        """Return its mesh at a time, placed at (x, z)."""
        what = self.what
        if not isinstance(what, Faces):
            speed = max(abs(v) for v in self.velocity)
            phase = int((self.x + self.z + time_s * speed * 0.75) % 1 * (2 * _GAITS - 2))
            what = stock("person", what, 1 + min(phase, 2 * _GAITS - 3 - phase) if speed else 0)
        return what, Placement(x, z, self.yaw_rad, self.scale, self.tint)
