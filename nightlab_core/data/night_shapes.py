# SPDX-License-Identifier: Apache-2.0
"""The things that stand in a rendered street, as flat convex faces with a colour, a light of their own and a class.

Metres; x right, y up, z forward. Colours are linear-light BGR: an albedo (above 1 for retroreflective sheeting) and an
emission, where 1.0 is white at exposure 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nightlab_core.labels import CITYSCAPES19

IDS = {name: index for index, name in enumerate(CITYSCAPES19.names)}
DARK = (0.01, 0.01, 0.01)
GLASS = (0.02, 0.02, 0.02)
METAL = (0.12, 0.12, 0.12)
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
    """Faces in painting order; values of each face in step."""

    points: list[np.ndarray] = field(default_factory=list)
    albedo: list = field(default_factory=list)
    emission: list = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    #: A point within the solid that the face bounds; None for a board, which has no inside and is seen from both sides.
    insides: list = field(default_factory=list)
    #: Lamps as rows of position xyz, direction xyz, sharpness of the beam (0: all round), colour BGR.
    lamps: list[tuple[float, ...]] = field(default_factory=list)

    def face(self, points, albedo, label: int, emission=(0.0, 0.0, 0.0), inside=None) -> None:
        """Add a convex polygon (k, 3); `inside`, a point within the solid that it bounds, makes it one-sided."""
        self.points.append(np.asarray(points, np.float32))
        self.albedo.append(albedo)
        self.emission.append(emission)
        self.labels.append(label)
        self.insides.append(inside)

    def board(self, x0, x1, y0, y1, z, albedo, label: int, emission=(0.0, 0.0, 0.0), top: float = 1.0) -> None:
        """An upright face across the street; `top` narrows its upper edge."""
        m, h = (x0 + x1) / 2, (x1 - x0) / 2 * top
        self.face(((x0, y0, z), (x1, y0, z), (m + h, y1, z), (m - h, y1, z)), albedo, label, emission)

    def disc(self, x, y, z, radius, albedo, label: int, emission=(0.0, 0.0, 0.0), sides: int = 10, stretch=1.0) -> None:
        """An upright round face across the street."""
        a = np.arange(sides) * (2 * np.pi / sides) + np.pi / sides
        ring = np.stack([x + radius * np.cos(a), y + radius * stretch * np.sin(a), np.full(sides, z)], 1)
        self.face(ring, albedo, label, emission)

    def box(self, low, high, albedo, label: int) -> None:
        """The five upper sides of an upright box."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        inside = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        for z in (z0, z1):
            self.face(((x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)), albedo, label, inside=inside)
        for x in (x0, x1):
            self.face(((x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)), albedo, label, inside=inside)
        self.face(((x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)), albedo, label, inside=inside)

    def lamp(self, position, colour, direction=(0.0, -1.0, 0.0), sharpness: float = 0.0) -> None:
        """A source of light upon other things."""
        self.lamps.append((*position, *direction, sharpness, *(float(c) for c in colour)))


def _lights(mesh: Mesh, w: float, zr: float, zf: float, y: float, label: int, rng, parked: bool, size: float) -> None:
    """Tail lamps and plate at zr, headlamps at zf; a parked vehicle's reflect alone."""
    brake = 1.0 if rng.random() < 0.4 else 0.25
    inside = (0.0, y, (zr + zf) / 2)
    tail = TAIL_RED * (0.0 if parked else 3.5 * brake)
    head = HEAD_WHITE * (0.0 if parked else 45.0) * (1.0, 0.97, rng.uniform(0.9, 1.1))
    for s in (-1, 1):
        for z, colour, light in ((zr - 0.02, (0.03, 0.03, 0.5), tail), (zf + 0.02, (0.3, 0.3, 0.3), head)):
            x0, x1 = s * (w - 0.05), s * (w - 0.05 - size * 1.7)
            quad = ((x0, y - size / 2, z), (x1, y - size / 2, z), (x1, y + size / 2, z), (x0, y + size / 2, z))
            mesh.face(quad, colour, label, light, inside)
    plate = (
        (-0.24, y - 0.22, zr - 0.03),
        (0.24, y - 0.22, zr - 0.03),
        (0.24, y - 0.1, zr - 0.03),
        (-0.24, y - 0.1, zr - 0.03),
    )
    mesh.face(plate, (0.9, 1.1, 1.1), label, (0.0, 0.0, 0.0) if parked else (0.1, 0.12, 0.12), inside)
    if not parked:
        mesh.lamp((0.0, y, zr - 0.3), TAIL_RED * 0.5 * brake, (0, -0.2, -1), 1.0)
        mesh.lamp((0.0, y, zf + 0.3), HEAD_WHITE * 18.0, (0, -0.06, 1), 14.0)


def _wheels(mesh: Mesh, w: float, axles: tuple[float, ...], radius: float, label: int) -> None:
    a = np.arange(10) * (2 * np.pi / 10)
    for z in axles:
        for s in (-1, 1):
            for r, colour in ((radius, DARK), (radius * 0.6, METAL)):
                ring = np.stack([np.full(10, s * (w + 0.01)), radius + r * np.sin(a), z + r * np.cos(a)], 1)
                mesh.face(ring, colour, label, inside=(0, radius, z))


def _underside(mesh: Mesh, w: float, zr: float, zf: float, label: int) -> None:
    """The shadow on the road, and the tyres below the bumpers."""
    x, y = w + 0.1, 0.01
    mesh.face(((-x, y, zr - 0.2), (x, y, zr - 0.2), (x, y, zf + 0.2), (-x, y, zf + 0.2)), (0.004,) * 3, IDS["road"])
    for z, inward in ((zr + 0.5, zf), (zf - 0.5, zr)):
        for s in (-1, 1):
            quad = ((s * w, 0, z), (s * (w - 0.22), 0, z), (s * (w - 0.22), 0.45, z), (s * w, 0.45, z))
            mesh.face(quad, DARK, label, inside=(0, 0.3, inward))


def car(rng: np.random.Generator, parked: bool = False) -> Mesh:
    """A saloon, hatchback, off-roader or van, heading along +z."""
    style = rng.choice(4, p=(0.4, 0.25, 0.25, 0.1))
    length, roof, boot, bonnet = (
        (4.7, 1.45, 0.7, 1.2),
        (4.2, 1.5, 0.15, 1.0),
        (4.7, 1.75, 0.1, 1.2),
        (5.2, 2.1, 0.03, 0.8),
    )[style]
    roof *= rng.uniform(0.96, 1.06)
    w, belt, label = rng.uniform(0.85, 0.96), roof * 0.64, IDS["car"]
    paint = np.array(PAINTS[rng.integers(len(PAINTS))]) if rng.random() < 0.85 else np.array((0.02, 0.4, 0.65))
    zr, zf = -length / 2, length / 2
    mesh = Mesh()
    _underside(mesh, w, zr, zf, label)
    deck = (zr + 0.08, belt - 0.04), (zf - bonnet - 0.1, belt), (zf - 0.15, belt - 0.2)
    outline = ((zr + 0.1, 0.25), (zr, 0.45), *deck, (zf, 0.5), (zf - 0.1, 0.25))
    centre = (0.0, 0.6, 0.0)
    for (za, ya), (zb, yb) in zip(outline[:-1], outline[1:]):
        mesh.face(
            ((-w, ya, za), (w, ya, za), (w, yb, zb), (-w, yb, zb)),
            paint * (0.5 if ya < 0.3 else 1),
            label,
            inside=centre,
        )
    for s in (-1, 1):
        mesh.face([(s * w, y, z) for z, y in outline], paint, label, inside=centre)
    _wheels(mesh, w, (zr + 0.85, zf - 0.85), 0.33, label)
    rear, front, top = zr + 0.08 + boot, zf - bonnet, w * 0.8
    upper = ((rear, belt - 0.05), (rear + (0.55 if style < 2 else 0.25), roof), (front - 0.75, roof), (front, belt))
    centre = (0.0, belt + 0.1, (rear + front) / 2)
    widths = (w * 0.96, top, top, w * 0.96)
    for i in range(3):
        (za, ya), (zb, yb), wa, wb = upper[i], upper[i + 1], widths[i], widths[i + 1]
        pane = np.array(((-wa, ya, za), (wa, ya, za), (wb, yb, zb), (-wb, yb, zb)))
        mesh.face(pane, paint, label, inside=centre)
        if i != 1:
            mesh.face(pane.mean(0) + (pane - pane.mean(0)) * (0.86, 0.76, 0.76), GLASS, label, inside=centre)
    for s in (-1, 1):
        pane = np.array([(s * x, y, z) for (z, y), x in zip(upper, widths)])
        mesh.face(pane, paint, label, inside=centre)
        mesh.face(pane.mean(0) + (pane - pane.mean(0)) * (1.001, 0.72, 0.86), GLASS, label, inside=centre)
    _lights(mesh, w, zr, zf, belt - 0.22, label, rng, parked, 0.15)
    return mesh


def heavy(rng: np.random.Generator, kind: str) -> Mesh:
    """A "truck" or a "bus" heading along +z; buses show their lit saloon."""
    label, length, w, top = IDS[kind], *((8.5, 1.2, 3.4) if kind == "truck" else (11.5, 1.27, 3.1))
    zr, zf = -length / 2, length / 2
    paint = np.array(((0.55, 0.55, 0.55), (0.1, 0.25, 0.5), (0.3, 0.12, 0.05), (0.6, 0.65, 0.65))[rng.integers(4)])
    mesh = Mesh()
    _underside(mesh, w, zr, zf, label)
    if kind == "truck":
        mesh.box((-w, 0.5, zf - 1.9), (w, 2.6, zf), paint * 0.6, label)
        pane = (
            (-w * 0.85, 1.5, zf + 0.01),
            (w * 0.85, 1.5, zf + 0.01),
            (w * 0.85, 2.35, zf + 0.01),
            (-w * 0.85, 2.35, zf + 0.01),
        )
        mesh.face(pane, GLASS, label, inside=(0, 1.5, 0))
        mesh.box((-w, 0.8, zr), (w, top, zf - 2.1), paint, label)
        mesh.face(
            (
                (-0.03, 0.9, zr - 0.01),
                (0.03, 0.9, zr - 0.01),
                (0.03, top - 0.1, zr - 0.01),
                (-0.03, top - 0.1, zr - 0.01),
            ),
            DARK,
            label,
            inside=(0, 1, 0),
        )
    else:
        mesh.box((-w, 0.35, zr), (w, top, zf), paint, label)
        lit = np.array((0.55, 0.8, 0.9)) * rng.uniform(0.1, 0.5)
        for z in np.arange(zr + 0.4, zf - 1.2, 1.5):
            for s in (-1, 1):
                x = s * (w + 0.01)
                mesh.face(
                    ((x, 1.5, z), (x, 1.5, z + 1.3), (x, 2.5, z + 1.3), (x, 2.5, z)), GLASS, label, lit, (0, 1.5, z)
                )
        for z, y0 in ((zr - 0.01, 1.7), (zf + 0.01, 1.1)):
            pane = ((-w * 0.85, y0, z), (w * 0.85, y0, z), (w * 0.85, 2.5, z), (-w * 0.85, 2.5, z))
            mesh.face(pane, GLASS, label, lit * 0.6, (0, 1.5, 0))
            sign = ((-0.7, 2.65, z), (0.7, 2.65, z), (0.7, 2.9, z), (-0.7, 2.9, z))
            mesh.face(sign, DARK, label, (0.05, 0.5, 0.9), (0, 1.5, 0))
    _wheels(mesh, w, (zr + 1.8, zf - 1.4), 0.48, label)
    _lights(mesh, w, zr, zf, 1.0, label, rng, False, 0.2)
    return mesh


def _figure(mesh: Mesh, rng: np.random.Generator, label: int, hip: float, stride: float, tall: float) -> None:
    """Trunk, arms and head above the hip, legs from the hip by `stride` metres apart."""
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
    """Somebody on foot, seen flat; `stride` is the distance between the feet in metres."""
    tall, mesh = rng.uniform(0.85, 1.06), Mesh()
    _figure(mesh, rng, IDS["person"], 0.88 * tall, stride, tall)
    return mesh


def rider(rng: np.random.Generator, motor: bool, along: bool, sign: float) -> Mesh:
    """Somebody on a bicycle or motorcycle, riding along the street (sign -1: oncoming) or across it."""
    label, mesh = IDS["motorcycle" if motor else "bicycle"], Mesh()
    radius, base, thick = (0.32, 0.72, 0.09) if motor else (0.34, 0.53, 0.035)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))])
    if along:
        mesh.board(-thick, thick, 0, 2 * radius, 0, DARK, label)
        mesh.board(-0.3, 0.3, 0.98, 1.03, 0, METAL, label)
        mesh.board(-thick * 2, thick * 2, 0.45, 0.98, 0, paint, label)
        _figure(mesh, rng, IDS["rider"], 0.85, 0.12, 0.95)
        light = TAIL_RED * 4 if sign > 0 else HEAD_WHITE * (40 if motor else 15)
        mesh.disc(0, 0.75, -0.02, 0.07 if motor else 0.04, METAL, label, light)
        return mesh
    for x in (-base, base):
        mesh.disc(x, radius, 0, radius, DARK if motor else METAL, label, sides=14)
        mesh.disc(x, radius, 0, radius * 0.86, (0.02, 0.02, 0.02), label, sides=14)
    frame = ((-0.5, 0.35, 0), (0.1, 0.3, 0), (0.5, 0.85, 0), (-0.25, 0.9, 0))
    mesh.face(frame, paint * (1 if motor else 0.6), label)
    mesh.face(((base, radius, 0), (base + 0.06, radius, 0), (0.46, 1.05, 0), (0.4, 1.05, 0)), METAL, label)
    _figure(mesh, rng, IDS["rider"], 0.88, 0.2, 0.95)
    mesh.disc(base + 0.02, 0.85, -0.02, 0.05, METAL, label, HEAD_WHITE * 8)
    mesh.disc(-base - 0.05, 0.75, -0.02, 0.04, METAL, label, TAIL_RED * 4)
    mesh.points = [p * np.float32((sign, 1, 1)) for p in mesh.points]
    return mesh


def tree(rng: np.random.Generator, height: float) -> Mesh:
    """A trunk and a crown of overlapping tufts, or of bare branches."""
    mesh, label, trunk = Mesh(), IDS["vegetation"], height * rng.uniform(0.28, 0.42)
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


def street_lamp(rng: np.random.Generator, height: float, reach: float, colour) -> Mesh:
    """A column with an arm that reaches over the road and a lamp that shines down."""
    mesh, label = Mesh(), IDS["pole"]
    mesh.board(-0.09, 0.09, 0, height, 0, METAL, label, top=0.6)
    mesh.face(
        ((0, height - 0.1, 0), (reach, height + 0.1, 0), (reach, height + 0.2, 0), (0, height + 0.02, 0)), METAL, label
    )
    x = reach * 1.05
    mesh.board(x - 0.35, x + 0.35, height + 0.06, height + 0.24, 0, METAL, label)
    mesh.board(x - 0.28, x + 0.28, height - 0.06, height + 0.08, -0.01, DARK, label, np.asarray(colour) * 55)
    mesh.lamp((x, height, 0), np.asarray(colour) * rng.uniform(1.6, 3.2) * (height / 7) ** 2, (0, -1, 0), 1.2)
    return mesh


def traffic_light(rng: np.random.Generator, state: int, reach: float) -> Mesh:
    """A signal on a column (reach 0) or on an arm over the road as well; state 0 red, 1 amber, 2 green."""
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
    """One or two plates of retroreflective sheeting on a post."""
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
