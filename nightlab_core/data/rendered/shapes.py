# SPDX-License-Identifier: Apache-2.0
"""Meshes of street furniture, trees and people: flat convex faces with a colour, an emission and a class.

Metres; x right, y up, z forward. Colours are linear-light BGR: an albedo (above 1 for retroreflective sheeting) and an
emission, where 1.0 is white at exposure 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from nightlab_core.classes import load_class_set

#: The class set of all rendered labels.
CLASSES = load_class_set("cityscapes19")
IDS = {name: index for index, name in enumerate(CLASSES.names)}
DARK = (0.01, 0.01, 0.01)
GLASS = (0.02, 0.02, 0.02)
METAL = (0.12, 0.12, 0.12)
NO_LIGHT = (0.0, 0.0, 0.0)
WARM, COLD = np.array((0.3, 0.62, 1.0)), np.array((1.0, 1.0, 0.9))
#: Sharpness of street lamps' beams; `lens.cones` recognises street lamps by it.
DOWNWARD = 1.2
TAIL_RED = np.array((0.05, 0.06, 1.0))
HEAD_WHITE = np.array((0.95, 1.0, 1.0))
PAINTS = (
    (0.5, 0.5, 0.5),
    (0.02, 0.02, 0.02),
    (0.25, 0.25, 0.25),
    (0.03, 0.02, 0.25),
    (0.2, 0.06, 0.03),
    (0.7, 0.7, 0.7),
)
CLOTHES = (
    (0.03, 0.03, 0.03),
    (0.2, 0.1, 0.06),
    (0.3, 0.3, 0.3),
    (0.05, 0.05, 0.3),
    (0.12, 0.2, 0.25),
    (0.6, 0.6, 0.55),
)


@dataclass
class Mesh:
    """Faces in painting order; entry i of each list belongs to face i."""

    points: list[np.ndarray] = field(default_factory=list)
    albedo: list = field(default_factory=list)
    emission: list = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    #: A point within the solid that the face bounds; None for a board, which is visible from both sides.
    insides: list = field(default_factory=list)
    #: Lamps as rows of position xyz, direction xyz, sharpness of the beam (0: all round), colour BGR.
    lamps: list[tuple[float, ...]] = field(default_factory=list)

    def face(
        self, points: ArrayLike, albedo: ArrayLike, label: int, emission: ArrayLike = NO_LIGHT,
        inside: tuple[float, float, float] | None = None,
    ) -> None:  # fmt: skip
        """Add a convex polygon (k, 3); `inside`, a point within the solid, makes it visible from outside only."""
        self.points.append(np.asarray(points, np.float32))
        self.albedo.append(albedo)
        self.emission.append(emission)
        self.labels.append(label)
        self.insides.append(inside)

    def board(
        self, x0: float, x1: float, y0: float, y1: float, z: float, albedo: ArrayLike, label: int,
        emission: ArrayLike = NO_LIGHT, top: float = 1.0, inside: tuple[float, float, float] | None = None,
    ) -> None:  # fmt: skip
        """Add an upright face across the street; `top` scales the length of its upper edge."""
        m, h = (x0 + x1) / 2, (x1 - x0) / 2 * top
        self.face(((x0, y0, z), (x1, y0, z), (m + h, y1, z), (m - h, y1, z)), albedo, label, emission, inside)

    def panel(
        self, x: float, y0: float, y1: float, z0: float, z1: float, albedo: ArrayLike, label: int,
        emission: ArrayLike = NO_LIGHT, inside: tuple[float, float, float] | None = None,
    ) -> None:  # fmt: skip
        """Add an upright face along the street."""
        self.face(((x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)), albedo, label, emission, inside)

    def disc(
        self, x: float, y: float, z: float, radius: float, albedo: ArrayLike, label: int,
        emission: ArrayLike = NO_LIGHT, sides: int = 10, stretch: float = 1.0,
    ) -> None:  # fmt: skip
        """Add an upright round face across the street."""
        a = np.arange(sides) * (2 * np.pi / sides) + np.pi / sides
        ring = np.stack([x + radius * np.cos(a), y + radius * stretch * np.sin(a), np.full(sides, z)], 1)
        self.face(ring, albedo, label, emission)

    def box(self, low: ArrayLike, high: ArrayLike, albedo: ArrayLike, label: int) -> None:
        """Add the five upper sides of an upright box."""
        (x0, y0, z0), (x1, y1, z1) = np.asarray(low).tolist(), np.asarray(high).tolist()
        inside = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        for z in (z0, z1):
            self.board(x0, x1, y0, y1, z, albedo, label, inside=inside)
        for x in (x0, x1):
            self.panel(x, y0, y1, z0, z1, albedo, label, inside=inside)
        self.face(((x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)), albedo, label, inside=inside)

    def lamp(
        self, position: tuple[float, float, float], colour: ArrayLike,
        direction: tuple[float, float, float] = (0.0, -1.0, 0.0), sharpness: float = 0.0,
    ) -> None:  # fmt: skip
        """Add a lamp that lights other faces: intensity BGR, and exp(-sharpness (1 - cos)) off its direction."""
        self.lamps.append((*position, *direction, sharpness, *np.asarray(colour).tolist()))


def figure(mesh: Mesh, rng: np.random.Generator, label: int, hip: float, stride: float, tall: float) -> None:
    """Add trunk, arms and head above the hip, and legs whose feet are `stride` metres apart."""
    coat, legs = (np.array(CLOTHES[i]) * rng.uniform(0.6, 1.2) for i in rng.integers(len(CLOTHES), size=2))
    skin = np.array((0.12, 0.18, 0.3)) * rng.uniform(0.4, 1.2)
    shoulder, w = hip + 0.56 * tall, rng.uniform(0.19, 0.25)
    for s in (-1, 1):
        foot = s * (0.05 + stride / 2)
        leg = ((s * 0.01, hip + 0.05, 0), (s * 0.16, hip + 0.05, 0), (foot + 0.07, 0.02, 0), (foot - 0.07, 0.02, 0))
        mesh.face(leg, legs, label)
        hand = s * (w + 0.05) - stride * s * 0.35
        arm = ((s * w, shoulder, 0), (s * (w - 0.1), shoulder, 0), (hand - 0.05, hip, 0), (hand + 0.05, hip, 0))
        mesh.face(arm, coat * 0.8, label)
    mesh.board(-w * 0.8, w * 0.8, hip - 0.05, shoulder, 0, coat, label, top=1.15)
    mesh.board(-0.05, 0.05, shoulder - 0.02, shoulder + 0.1, 0, skin, label)
    mesh.disc(0, shoulder + 0.2 * tall, 0, 0.115, skin, label, stretch=1.25)
    mesh.disc(0, shoulder + 0.26 * tall, 0, 0.11, DARK, label, stretch=0.8)


def person(rng: np.random.Generator, stride: float) -> Mesh:
    """Make a pedestrian as a flat figure; `stride` is the distance between the feet in metres."""
    tall, mesh = rng.uniform(0.85, 1.06), Mesh()
    figure(mesh, rng, IDS["person"], 0.88 * tall, stride, tall)
    return mesh


def tree(rng: np.random.Generator) -> Mesh:
    """Make a tree of about 7 m, with a crown of overlapping tufts or of bare branches."""
    mesh, label, height = Mesh(), IDS["vegetation"], rng.uniform(6, 8)
    trunk = height * rng.uniform(0.28, 0.42)
    mesh.board(-0.16, 0.16, 0, trunk * 1.3, 0, (0.05, 0.06, 0.08), label, top=0.6)
    green = np.array((0.03, rng.uniform(0.07, 0.13), rng.uniform(0.04, 0.1)))
    bare, middle, spread = rng.random() < 0.2, (trunk + height) / 2, (height - trunk) / 2
    for _ in range(30 if bare else 34):
        a, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        x, y = spread * 0.95 * r * np.cos(a), middle + spread * r * np.sin(a)
        if bare:
            mesh.face(((0, trunk, 0), (0.07, trunk, 0), (x + 0.03, y, 0), (x, y, 0)), (0.05, 0.06, 0.07), label)
        else:
            z, size = rng.uniform(-0.6, 0.6), spread * rng.uniform(0.16, 0.36)
            mesh.disc(x, y, z, size, green * rng.uniform(0.4, 1.5), label, sides=int(rng.integers(5, 9)), stretch=0.8)
    return mesh


def street_lamp(rng: np.random.Generator, height: float, reach: float, colour: np.ndarray) -> Mesh:
    """Make a column with an arm over the road and a lamp that points down."""
    mesh, label = Mesh(), IDS["pole"]
    mesh.board(-0.09, 0.09, 0, height, 0, METAL, label, top=0.6)
    mesh.face(
        ((0, height - 0.1, 0), (reach, height + 0.1, 0), (reach, height + 0.2, 0), (0, height + 0.02, 0)), METAL, label
    )
    x = reach * 1.05
    mesh.board(x - 0.35, x + 0.35, height + 0.06, height + 0.24, 0, METAL, label)
    mesh.board(x - 0.28, x + 0.28, height - 0.06, height + 0.08, -0.01, DARK, label, colour * 55)
    mesh.lamp((x, height, 0), colour * rng.uniform(12, 36) * (height / 7) ** 2, (0, -1, 0), DOWNWARD)
    return mesh


def traffic_light(state: int, reach: float) -> Mesh:
    """Make a signal on a column (reach 0), and on an arm over the road; state 0 red, 1 amber, 2 green."""
    mesh, high = Mesh(), 5.6
    mesh.board(-0.07, 0.07, 0, high if reach else 3.4, 0, METAL, IDS["pole"])
    places = [(0.0, 2.5)]
    if reach:
        mesh.face(((0, high - 0.15, 0), (reach, high, 0), (reach, high + 0.1, 0), (0, high, 0)), METAL, IDS["pole"])
        places += [(reach, high - 0.5), (reach * 0.55, high - 0.5)]
    light = ((0.05, 0.05, 1.0), (0.02, 0.5, 1.0), (0.6, 1.0, 0.1))[state]
    for x, y in places:
        mesh.board(x - 0.21, x + 0.21, y, y + 1.1, -0.05, (0.03, 0.05, 0.05), IDS["traffic light"])
        for i in range(3):
            lit = np.asarray(light) * 22.0 if i == state else np.zeros(3)
            mesh.disc(x, y + 0.91 - 0.36 * i, -0.08, 0.13, DARK, IDS["traffic light"], lit)
    mesh.lamp((places[-1][0], places[-1][1], -0.4), np.asarray(light) * 0.5, (0, -0.3, -1), 1.0)
    return mesh


def sign(rng: np.random.Generator) -> Mesh:
    """Make a post with one or two retroreflective plates."""
    mesh, y, label = Mesh(), rng.uniform(2.1, 2.7), IDS["traffic sign"]
    mesh.board(-0.04, 0.04, 0, y + 0.4, 0, METAL, IDS["pole"])
    kind, size = rng.integers(5), rng.uniform(0.32, 0.42)
    white, red, blue, green = (1.6, 1.6, 1.6), (0.1, 0.1, 1.3), (1.0, 0.3, 0.08), (0.25, 0.6, 0.05)
    if kind == 4:
        mesh.board(-0.9, 0.9, y - 0.3, y + 0.5, -0.02, green, label)
        for row in (0.1, 0.3):
            mesh.board(-0.7, rng.uniform(0, 0.7), y - 0.3 + row, y - 0.2 + row, -0.03, white, label)
        return mesh
    sides, face = ((16, white), (3, white), (8, red), (4, blue))[kind]
    outer = {16: red, 3: red, 8: white, 4: white}[sides]
    for r, colour, z in ((size, outer, -0.02), (size * 0.82, face, -0.03)):
        a = np.arange(sides) * (2 * np.pi / sides) + (np.pi / 2 if sides in (3, 16) else np.pi / sides)
        mesh.face(np.stack([r * np.cos(a), y + r * np.sin(a), np.full(sides, z)], 1), colour, label)
    mesh.board(-0.06, 0.06, y - size * 0.5, y + size * 0.4, -0.04, DARK if face is white else white, label)
    if rng.random() < 0.4:
        mesh.board(-0.3, 0.3, y - size - 0.4, y - size - 0.08, -0.02, white, label)
        mesh.board(-0.22, 0.18, y - size - 0.3, y - size - 0.2, -0.03, DARK, label)
    return mesh
