# SPDX-License-Identifier: Apache-2.0
"""Meshes along the sides of the rendered street: buildings with windows, fences, walls, hedges, the far end.

Each begins at the origin, extends along +z, and stands to the right of the road: its front faces -x.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from nightlab_core.data.rendered.shapes import COLD, DARK, GLASS, IDS, METAL, NO_LIGHT, WARM, Mesh

LONG_M = 16.0
BRICKS = ((0.06, 0.08, 0.16), (0.12, 0.14, 0.16), (0.2, 0.22, 0.24), (0.08, 0.1, 0.12), (0.14, 0.2, 0.26))
_LABEL = IDS["building"]


def building(rng: np.random.Generator, floors: int, shops: bool) -> Mesh:
    """Make a house of LONG_M metres along the street, one face for each bay of a storey."""
    mesh, storey, deep = Mesh(), rng.uniform(2.9, 3.5), 4.0
    brick, bays, lit = np.array(BRICKS[rng.integers(len(BRICKS))]) * rng.uniform(0.6, 1.2), 5, rng.uniform(0.04, 0.4)
    shop, high = shops and rng.random() < 0.5, floors * storey
    inside = (5.0, high / 2, LONG_M / 2)
    half, tall = rng.uniform(0.17, 0.3) * LONG_M / bays, rng.uniform(0.4, 0.62) * storey
    tone = COLD if rng.random() < 0.2 else WARM
    for floor in range(floors):  # the end wall, seen through gaps
        for i in range(3):
            x, y = i * deep, floor * storey
            mesh.board(x, x + deep, y, y + storey, 0.0, brick * 0.8, _LABEL, inside=inside)
            if floors > 2 and rng.random() < 0.4:
                light = tone * rng.uniform(0.1, 0.6) if rng.random() < lit else NO_LIGHT
                mesh.board(x + 1.3, x + 2.5, y + 1, y + storey - 0.7, -0.02, GLASS, _LABEL, light, inside=inside)
    edges = np.linspace(0, LONG_M, bays + 1)
    for floor in range(floors):
        y = floor * storey
        for z0, z1 in pairwise(edges):
            tint = brick * rng.uniform(0.92, 1.08)
            for part in (0.0, 0.5) if floor == 0 else (0.0,):  # light falls off fast near the pavement
                mesh.panel(0.0, y + storey * part, y + storey, z0, z1, tint, _LABEL, inside=inside)
            if floor == 0 and shop:
                _shop_window(mesh, rng, z0, z1, storey, inside)
                continue
            z, top, foot = (z0 + z1) / 2, y + 0.9 * storey, y + 0.9 * storey - tall
            on = rng.random() < lit
            shade = (tone if rng.random() < 0.8 else COLD) * rng.lognormal(-1.8, 0.8)
            mesh.panel(-0.02, foot - 0.1, top + 0.1, z - half - 0.1, z + half + 0.1, brick * 1.5, _LABEL, inside=inside)
            mesh.panel(-0.03, foot, top, z - half, z + half, GLASS, _LABEL, shade if on else NO_LIGHT, inside)
            if on and rng.random() < 0.6:
                blind = top - tall * rng.uniform(0.2, 0.7)
                mesh.panel(-0.04, blind, top, z - half, z + half, GLASS, _LABEL, shade * 0.5, inside)
            mesh.panel(-0.05, foot, top, z - 0.04, z + 0.04, brick, _LABEL, inside=inside)
    mesh.panel(-0.15, high - 0.1, high + 0.25, 0.0, LONG_M, brick * 0.7, _LABEL, inside=inside)
    if not shop:  # the door, sometimes with a lamp over it
        door = LONG_M * rng.uniform(0.2, 0.8)
        mesh.panel(-0.06, 0.0, 2.2, door, door + 1.1, brick * 0.3, _LABEL, inside=inside)
        if rng.random() < 0.4:
            mesh.panel(-0.1, 2.5, 2.7, door + 0.4, door + 0.7, DARK, _LABEL, tone * 12, inside)
            mesh.lamp((-0.7, 2.5, door + 0.5), tone * 2.5, (-0.4, -1, 0), 0.8)
    return mesh


def _shop_window(
    mesh: Mesh, rng: np.random.Generator, z0: float, z1: float, storey: float, inside: tuple[float, float, float]
) -> None:  # fmt: skip
    """Add a display window and, if the shop is open late, goods in front of the light and a lit name board."""
    open_late = rng.random() < 0.5
    light = (WARM if rng.random() < 0.5 else COLD) * (rng.uniform(0.08, 0.7) if open_late else 0.003)
    mesh.panel(-0.02, 0.5, storey - 0.8, z0 + 0.15, z1 - 0.15, GLASS, _LABEL, light, inside)
    if not open_late:
        return
    for _ in range(6):
        z, y = rng.uniform(z0 + 0.2, z1 - 0.9), rng.uniform(0.5, 1.3)
        shade = light * rng.uniform(0.1, 0.8) * rng.uniform(0.5, 1, 3)
        mesh.panel(-0.03, y, y + rng.uniform(0.3, 0.9), z, z + rng.uniform(0.15, 0.6), GLASS, _LABEL, shade, inside)
    neon = rng.dirichlet((0.6, 0.6, 0.6)) * rng.uniform(0.3, 2.0)
    mesh.panel(-0.05, storey - 0.7, storey - 0.2, z0 + 0.1, z1 - 0.1, DARK, _LABEL, neon * 0.15, inside)
    for z in np.arange(z0 + 0.4, z1 - 0.5, 0.35):
        mesh.panel(-0.06, storey - 0.6, storey - 0.3, z, z + rng.uniform(0.1, 0.25), DARK, _LABEL, neon, inside)
    mesh.lamp((-0.8, 1.8, (z0 + z1) / 2), light * 9.0, (-1, -0.3, 0), 1.0)


def fence(rng: np.random.Generator) -> Mesh:
    """Make a fence of rails and pickets; its gaps are labelled fence too, as annotators draw it."""
    mesh, label, high = Mesh(), IDS["fence"], rng.uniform(1.1, 2.2)
    tone = METAL if rng.random() < 0.5 else (0.12, 0.18, 0.22)
    for z in np.arange(0, LONG_M, 2.0):
        mesh.panel(0.0, 0.0, high, z, z + 2.0, (0.02, 0.025, 0.02), label)
        for picket in np.arange(z, z + 1.9, 0.33):
            mesh.panel(0.0, 0.0, high, picket, picket + 0.08, tone, label)
        for y in (0.2, high - 0.15):
            mesh.panel(0.0, y, y + 0.08, z, z + 2.0, tone, label)
    return mesh


def wall(rng: np.random.Generator, hedge: bool) -> Mesh:
    """Make a wall with a coping, or a hedge."""
    mesh, high = Mesh(), rng.uniform(1.0, 2.4)
    tone = np.array((0.03, 0.07, 0.05)) if hedge else np.array(BRICKS[rng.integers(len(BRICKS))])
    label = IDS["vegetation" if hedge else "wall"]
    for z in np.arange(0, LONG_M, 1.0):
        for y in np.arange(4) * high / 4:
            shade = tone * (rng.uniform(0.5, 1.5) if hedge else rng.uniform(0.9, 1.1))
            mesh.panel(0.0, y, y + high / 4, z, z + 1.0, shade, label)
        mesh.panel(0.0, high, high + (rng.uniform(0, 0.25) if hedge else 0.12), z, z + 1.0, tone * 1.3, label)
    return mesh


def far_end(rng: np.random.Generator, wooded: bool) -> Mesh:
    """Make the far end of the street, across it at z = 0: dark blocks, towers with lit windows, woods."""
    mesh, x, lit = Mesh(), -170.0, rng.uniform(0.02, 0.06)
    while x < 170:
        wide = rng.uniform(8, 22)
        if wooded or rng.random() < 0.3:
            for _ in range(6):
                r = rng.uniform(3, 6)
                mesh.disc(x + rng.uniform(0, wide), r * 0.8, 0.0, r, (0.03, 0.06, 0.05), IDS["vegetation"], sides=9)
        else:
            high = rng.uniform(8, 20) if rng.random() < 0.8 else rng.uniform(25, 60)
            mesh.board(x, x + wide, 0, high, 0.0, (0.06, 0.06, 0.06), _LABEL)
            for _ in range(int(high * wide * lit)):
                wx, wy = x + rng.uniform(0.05, 0.9) * wide, rng.uniform(2, high - 1.5)
                light = (WARM if rng.random() < 0.7 else COLD) * rng.uniform(0.1, 1.0)
                mesh.board(wx, wx + 1.0, wy, wy + 1.0, -0.1, DARK, _LABEL, light)
        x += wide * rng.uniform(0.7, 1.0)
    mesh.board(-200, 200, -0.5, 3.5, 1.0, (0.03, 0.04, 0.03), IDS["vegetation"])
    return mesh
