# SPDX-License-Identifier: Apache-2.0
"""Meshes of vehicles and riders. Metres; every vehicle stands on the origin and heads along +z."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from nightlab_core.data.rendered.shapes import (
    DARK,
    GLASS,
    HEAD_WHITE,
    IDS,
    METAL,
    NO_LIGHT,
    PAINTS,
    TAIL_RED,
    Mesh,
    figure,
)


def _quad(
    mesh: Mesh, x0: float, x1: float, y0: float, y1: float, z: float, albedo: ArrayLike, label: int,
    light: ArrayLike = NO_LIGHT,
) -> None:  # fmt: skip
    """Add a detail at one end of the vehicle, visible from that end."""
    mesh.board(x0, x1, y0, y1, z, albedo, label, light, inside=(0.0, y0, 0.0))


def _lights(
    mesh: Mesh, rng: np.random.Generator, label: int, w: float, zr: float, zf: float, y: float, parked: bool,
    size: float,
) -> None:  # fmt: skip
    """Add tail lamps and plate at zr, headlamps and grille at zf; those of a parked vehicle only reflect."""
    brake = 1.0 if rng.random() < 0.4 else 0.2
    tail = TAIL_RED * (0.0 if parked else 7.0 * brake)
    head = HEAD_WHITE * (0.0 if parked else rng.uniform(25, 60)) * (1.0, 0.97, rng.uniform(0.9, 1.15))
    wide = size * rng.uniform(1.2, 2.2)
    _quad(mesh, -w * 0.55, w * 0.55, y - 0.14, y + 0.04, zf + 0.02, (0.03, 0.03, 0.03), label)
    for s in (-1, 1):
        outer, inner = s * (w - 0.04), s * (w - 0.04 - wide)
        _quad(mesh, outer, inner, y - size / 2, y + size / 2, zr - 0.02, (0.04, 0.04, 0.6), label, tail * 0.25)
        core = outer + (inner - outer) * 0.2, outer + (inner - outer) * 0.75
        _quad(mesh, *core, y - size * 0.28, y + size * 0.28, zr - 0.03, (0.04, 0.04, 0.6), label, tail * 1.5)
        _quad(mesh, outer, inner, y - size / 2, y + size / 2, zf + 0.02, (0.3, 0.3, 0.3), label, head * 0.02)
        _quad(mesh, *core, y - size * 0.4, y + size * 0.4, zf + 0.03, (0.3, 0.3, 0.3), label, head)
    if brake == 1.0 and not parked and label == IDS["car"]:
        _quad(mesh, -0.2, 0.2, y * 1.55, y * 1.55 + 0.05, zr + 0.1, DARK, label, tail * 0.7)
    _quad(
        mesh,
        -0.25,
        0.25,
        y - 0.24,
        y - 0.12,
        zr - 0.03,
        (0.7, 0.9, 0.9),
        label,
        (0.0, 0.0, 0.0) if parked else (0.12, 0.15, 0.15),
    )
    if not parked:
        mesh.lamp((0.0, y, zr - 0.4), TAIL_RED * 0.7 * brake, (0, -0.2, -1), 1.0)
        mesh.lamp((0.0, y, zf + 0.4), HEAD_WHITE * 20.0, (0, -0.06, 1), 14.0)


def _wheels(mesh: Mesh, w: float, axles: tuple[float, ...], radius: float, label: int) -> None:
    a = np.arange(10) * (2 * np.pi / 10)
    for z in axles:
        for s in (-1, 1):
            for r, colour in ((radius, DARK), (radius * 0.6, METAL)):
                ring = np.stack([np.full(10, s * (w + 0.01)), radius + r * np.sin(a), z + r * np.cos(a)], 1)
                mesh.face(ring, colour, label, inside=(0, radius, z))


def _underside(mesh: Mesh, w: float, zr: float, zf: float, label: int) -> None:
    """Add the shadow on the road, and the tyres below the bumpers."""
    x, y = w + 0.1, 0.01
    mesh.face(((-x, y, zr - 0.2), (x, y, zr - 0.2), (x, y, zf + 0.2), (-x, y, zf + 0.2)), (0.015,) * 3, IDS["road"])
    for z, inward in ((zr + 0.5, zf), (zf - 0.5, zr)):
        for s in (-1, 1):
            quad = ((s * w, 0, z), (s * (w - 0.22), 0, z), (s * (w - 0.22), 0.45, z), (s * w, 0.45, z))
            mesh.face(quad, DARK, label, inside=(0, 0.3, inward))


def car(rng: np.random.Generator, parked: bool = False) -> Mesh:
    """Make a saloon, hatchback, off-roader or van, heading along +z."""
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
    for (za, ya), (zb, yb) in pairwise(outline):
        mesh.face(
            ((-w, ya, za), (w, ya, za), (w, yb, zb), (-w, yb, zb)),
            paint * (0.5 if ya < 0.3 else 1),
            label,
            inside=centre,
        )
    for s in (-1, 1):
        mesh.face([(s * w, y, z) for z, y in outline], paint, label, inside=centre)
    for z in (zr - 0.01, zf + 0.01):
        _quad(mesh, -w, w, 0.3, 0.47, z, paint * 0.35, label)
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
        pane = np.array([(s * x, y, z) for (z, y), x in zip(upper, widths, strict=True)])
        mesh.face(pane, paint, label, inside=centre)
        mesh.face(pane.mean(0) + (pane - pane.mean(0)) * (1.001, 0.72, 0.86), GLASS, label, inside=centre)
    _lights(mesh, rng, label, w, zr, zf, belt - 0.2, parked, 0.15)
    return mesh


def heavy(rng: np.random.Generator, kind: str) -> Mesh:
    """Make a "truck" or a "bus" heading along +z; a bus has lit windows."""
    label, length, w, top = IDS[kind], *((8.5, 1.2, 3.4) if kind == "truck" else (11.5, 1.27, 3.1))
    zr, zf = -length / 2, length / 2
    paint = np.array(((0.55, 0.55, 0.55), (0.1, 0.25, 0.5), (0.3, 0.12, 0.05), (0.6, 0.65, 0.65))[rng.integers(4)])
    mesh = Mesh()
    _underside(mesh, w, zr, zf, label)
    if kind == "truck":
        mesh.box((-w, 0.5, zf - 1.9), (w, 2.6, zf), paint * 0.6, label)
        _quad(mesh, -w * 0.85, w * 0.85, 1.5, 2.35, zf + 0.01, GLASS, label)
        mesh.box((-0.5, 0.45, zr + 0.3), (0.5, 0.8, zf - 1.8), DARK, label)
        mesh.box((-w, 0.8, zr), (w, top, zf - 2.1), paint, label)
        _quad(mesh, -0.03, 0.03, 0.9, top - 0.1, zr - 0.01, DARK, label)
        for y in (0.85, top - 0.12):
            _quad(mesh, -w, w, y, y + 0.1, zr - 0.01, (0.1, 0.1, 0.8) if y < 1 else METAL, label)
        _quad(mesh, -w, w, 0.4, 0.8, zr + 0.05, DARK, label)
    else:
        mesh.box((-w, 0.35, zr), (w, top, zf), paint, label)
        lit = np.array((0.55, 0.8, 0.9)) * rng.uniform(0.05, 0.4)
        for z in np.arange(zr + 0.4, zf - 1.2, 1.5):
            for s in (-1, 1):
                mesh.panel(s * (w + 0.01), 1.5, 2.5, z, z + 1.3, GLASS, label, lit * rng.uniform(0.6, 1), (0, 1.5, z))
        for z, y in ((zr - 0.01, 1.7), (zf + 0.01, 1.1)):
            _quad(mesh, -w * 0.85, w * 0.85, y, 2.5, z, GLASS, label, lit * 0.5)
            _quad(mesh, -0.7, 0.7, 2.65, 2.9, z, DARK, label, (0.05, 0.5, 0.9))
    _wheels(mesh, w, (zr + 1.8, zf - 1.4), 0.48, label)
    _lights(mesh, rng, label, w, zr, zf, 1.0, False, 0.22)
    return mesh


def rider(rng: np.random.Generator, motor: bool, way: str) -> Mesh:
    """Make a rider on a bicycle or motorcycle, moving "along" the street, "oncoming", or "across" it towards +x."""
    label, mesh = IDS["motorcycle" if motor else "bicycle"], Mesh()
    radius, base, thick = (0.32, 0.72, 0.09) if motor else (0.34, 0.53, 0.035)
    paint = np.array(PAINTS[rng.integers(len(PAINTS))])
    if way != "across":
        mesh.board(-thick, thick, 0, 2 * radius, 0, DARK, label)
        mesh.board(-0.3, 0.3, 0.98, 1.03, 0, METAL, label)
        mesh.board(-thick * 2, thick * 2, 0.45, 0.98, 0, paint, label)
        figure(mesh, rng, IDS["rider"], 0.85, 0.12, 0.95)
        light = TAIL_RED * 4 if way == "along" else HEAD_WHITE * (40 if motor else 15)
        mesh.disc(0, 0.75, -0.02, 0.07 if motor else 0.04, METAL, label, light)
        return mesh
    for x in (-base, base):
        mesh.disc(x, radius, 0, radius, DARK if motor else METAL, label, sides=14)
        mesh.disc(x, radius, 0, radius * 0.86, (0.02, 0.02, 0.02), label, sides=14)
    frame = ((-0.5, 0.35, 0), (0.1, 0.3, 0), (0.5, 0.85, 0), (-0.25, 0.9, 0))
    mesh.face(frame, paint * (1 if motor else 0.6), label)
    mesh.face(((base, radius, 0), (base + 0.06, radius, 0), (0.46, 1.05, 0), (0.4, 1.05, 0)), METAL, label)
    figure(mesh, rng, IDS["rider"], 0.88, 0.2, 0.95)
    mesh.disc(base + 0.02, 0.85, -0.02, 0.05, METAL, label, HEAD_WHITE * 8)
    mesh.disc(-base - 0.05, 0.75, -0.02, 0.04, METAL, label, TAIL_RED * 4)
    return mesh
