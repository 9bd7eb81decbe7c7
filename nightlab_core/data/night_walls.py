# SPDX-License-Identifier: Apache-2.0
"""What lines the rendered street: buildings with lit and dark windows, fences, walls and hedges.

Each begins at the origin, runs along +z, and faces the road, which lies at -side x.
"""

from __future__ import annotations

import numpy as np

from nightlab_core.data.night_shapes import DARK, GLASS, IDS, METAL, Mesh

WARM, COLD = np.array((0.3, 0.62, 1.0)), np.array((1.0, 1.0, 0.9))
BRICKS = ((0.06, 0.08, 0.16), (0.12, 0.14, 0.16), (0.2, 0.22, 0.24), (0.08, 0.1, 0.12), (0.14, 0.2, 0.26))


def building(rng: np.random.Generator, side: int, long: float, floors: int, lit: float, shops: bool) -> Mesh:
    """A house `long` metres along the street: storeys cut into bays so that lamps light each on its own."""
    mesh, label, storey = Mesh(), IDS["building"], rng.uniform(2.9, 3.5)
    brick, bays = np.array(BRICKS[rng.integers(len(BRICKS))]) * rng.uniform(0.6, 1.2), max(2, round(long / 3.3))
    bay, shop = long / bays, shops and rng.random() < 0.45
    inside = (side * 5.0, floors * storey / 2, long / 2)
    window = rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.62)
    tone = COLD if rng.random() < 0.2 else WARM
    for floor in range(floors):
        for i in range(3):  # the end wall, seen from afar through gaps
            x0, x1 = side * i * 4.0, side * (i + 1) * 4.0
            y0, y1 = floor * storey, (floor + 1) * storey
            mesh.face(((x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)), brick * 0.8, label, inside=inside)
            if floors > 2 and rng.random() < 0.4:
                light = tone * rng.uniform(0.1, 0.6) if rng.random() < lit else np.zeros(3)
                a, b = x0 + side * 1.3, x0 + side * 2.5
                pane = ((a, y0 + 1, -0.02), (b, y0 + 1, -0.02), (b, y1 - 0.7, -0.02), (a, y1 - 0.7, -0.02))
                mesh.face(pane, GLASS, label, light, inside)
    for floor in range(floors):
        y0, y1 = floor * storey, (floor + 1) * storey
        for i in range(bays):
            z0, z1 = i * bay, (i + 1) * bay
            _panel(mesh, 0.0, y0, y1, z0, z1, brick * rng.uniform(0.92, 1.08), (0, 0, 0), inside)
            if floor == 0 and shop:
                open_late = rng.random() < 0.55
                light = (WARM if rng.random() < 0.5 else COLD) * (rng.uniform(0.15, 0.9) if open_late else 0.004)
                _panel(mesh, -side * 0.02, 0.5, y1 - 0.8, z0 + 0.15, z1 - 0.15, GLASS, light, inside)
                for _ in range(3 * open_late):
                    za, ya = rng.uniform(z0 + 0.2, z1 - 0.9), rng.uniform(0.5, 1.2)
                    dim = light * rng.uniform(0.1, 0.6)
                    _panel(
                        mesh,
                        -side * 0.03,
                        ya,
                        ya + rng.uniform(0.4, 1),
                        za,
                        za + rng.uniform(0.2, 0.6),
                        GLASS,
                        dim,
                        inside,
                    )
                if open_late:
                    neon = rng.dirichlet((0.6, 0.6, 0.6)) * rng.uniform(0.3, 2.0)
                    _panel(mesh, -side * 0.05, y1 - 0.7, y1 - 0.2, z0 + 0.1, z1 - 0.1, DARK, neon * 0.3, inside)
                    for za in np.arange(z0 + 0.4, z1 - 0.5, 0.35):
                        _panel(
                            mesh, -side * 0.06, y1 - 0.6, y1 - 0.3, za, za + rng.uniform(0.1, 0.25), DARK, neon, inside
                        )
                    mesh.lamp((-side * 0.8, 1.8, (z0 + z1) / 2), light * 3.0, (-side, -0.3, 0), 1.0)
                continue
            half = window[0] * bay / 2
            ya, yb = y0 + (y1 - y0) * (0.9 - window[1]), y0 + (y1 - y0) * 0.9
            on = rng.random() < lit
            light = (tone if rng.random() < 0.8 else COLD) * rng.lognormal(-1.6, 0.8) if on else np.full(3, 0.0015)
            z = (z0 + z1) / 2
            _panel(
                mesh, -side * 0.02, ya - 0.1, yb + 0.1, z - half - 0.1, z + half + 0.1, brick * 1.5, (0, 0, 0), inside
            )
            _panel(mesh, -side * 0.03, ya, yb, z - half, z + half, GLASS, light, inside)
            if on and rng.random() < 0.6:
                blind = yb - (yb - ya) * rng.uniform(0.2, 0.7)
                _panel(mesh, -side * 0.04, blind, yb, z - half, z + half, GLASS, light * 0.5, inside)
            _panel(mesh, -side * 0.05, ya, yb, z - 0.04, z + 0.04, brick, (0, 0, 0), inside)
    return mesh


def _panel(mesh: Mesh, x: float, y0: float, y1: float, z0: float, z1: float, albedo, light, inside) -> None:
    mesh.face(((x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)), albedo, IDS["building"], light, inside)


def fence(rng: np.random.Generator, long: float) -> Mesh:
    """Rails and pickets before the dark; the whole panel is fence, as annotators draw it."""
    mesh, label, high = Mesh(), IDS["fence"], rng.uniform(1.1, 2.2)
    tone = METAL if rng.random() < 0.5 else (0.12, 0.18, 0.22)
    for z in np.arange(0, long - 1.9, 2.0):
        mesh.face(((0, 0, z), (0, 0, z + 2), (0, high, z + 2), (0, high, z)), (0.02, 0.025, 0.02), label)
        for a in np.arange(z, z + 1.9, 0.25):
            mesh.face(((0, 0, a), (0, 0, a + 0.07), (0, high, a + 0.07), (0, high, a)), tone, label)
        for y in (0.2, high - 0.15):
            mesh.face(((0, y, z), (0, y, z + 2), (0, y + 0.08, z + 2), (0, y + 0.08, z)), tone, label)
    return mesh


def wall(rng: np.random.Generator, long: float, hedge: bool) -> Mesh:
    """A wall with a coping, or a hedge."""
    mesh, high = Mesh(), rng.uniform(1.0, 2.4)
    tone = np.array((0.03, 0.07, 0.05)) if hedge else np.array(BRICKS[rng.integers(len(BRICKS))])
    label = IDS["vegetation" if hedge else "wall"]
    for z in np.arange(0, long - 0.9, 1.0):
        for y in np.arange(0, 1, 0.25) * high:
            shade = tone * (rng.uniform(0.5, 1.5) if hedge else rng.uniform(0.9, 1.1))
            mesh.face(((0, y, z), (0, y, z + 1), (0, y + high / 4, z + 1), (0, y + high / 4, z)), shade, label)
        top = high + (rng.uniform(0, 0.25) if hedge else 0.12)
        mesh.face(((0, high, z), (0, high, z + 1), (0, top, z + 1), (0, top, z)), tone * 1.3, label)
    return mesh
