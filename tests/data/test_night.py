# SPDX-License-Identifier: Apache-2.0
"""Rendered night scenes: repeatable by seed, exact labels, plausible light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest
from class_sets import CITYSCAPES19

from nightlab_core.data.rendered.camera import light_on
from nightlab_core.data.rendered.lens import ROOT_SHARE
from nightlab_core.data.rendered.night import NightDrive, NightFrame, render_clip, render_scene
from nightlab_core.labels import IGNORE_ID

SIZE = (180, 320)
IDS = {name: index for index, name in enumerate(CITYSCAPES19.names)}
EVERYWHERE = (
    "road", "sidewalk", "building", "pole", "traffic light", "traffic sign", "vegetation", "sky", "person", "rider",
    "car", "bicycle",
)  # fmt: skip
SOMETIMES = ("truck", "bus", "motorcycle", "wall", "fence", "terrain")


@pytest.fixture(scope="module")
def scenes() -> list[NightFrame]:
    return [render_scene(seed, SIZE) for seed in range(20)]


def bare(seed: int, **changes: object) -> NightFrame:
    """A scene through a perfect camera: no noise, halo or motion."""
    drive = NightDrive(seed, SIZE)
    changes = {"noise": 0.0, "glare": 0.0, "shake_px": (0.0, 0.0), **changes}
    drive.camera = dataclasses.replace(drive.camera, **changes)
    return drive.frame(0, 0.0)


def test_the_seed_fixes_every_byte() -> None:
    first, again, other = (list(render_clip(3, SIZE, seed)) for seed in (4, 4, 5))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.image_bgr, b.image_bgr)
        assert np.array_equal(a.labels, b.labels)
    assert (first[0].labels != other[0].labels).mean() > 0.1
    assert np.array_equal(render_scene(4, SIZE).image_bgr, first[0].image_bgr)


def test_stock_made_for_one_street_leaves_the_next_unchanged() -> None:
    """Streets share meshes: to render others in between must not alter a scene."""
    before = render_scene(7, SIZE)
    for seed in range(30, 34):
        render_scene(seed, SIZE)
    assert np.array_equal(before.image_bgr, render_scene(7, SIZE).image_bgr)


@pytest.mark.parametrize("size_hw", [(64, 64), (90, 240), (240, 90), (33, 47), (360, 640)])
def test_any_size_and_shape(size_hw: tuple[int, int]) -> None:
    frame = render_scene(3, size_hw)
    assert frame.image_bgr.shape == (*size_hw, 3)
    assert frame.image_bgr.dtype == np.uint8
    assert frame.labels.shape == size_hw
    assert frame.labels.dtype == np.uint8
    assert len(np.unique(frame.labels)) >= 6


def test_size_changes_sharpness_and_not_the_scene() -> None:
    small, large = render_scene(11, (90, 160)), render_scene(11, (360, 640))
    shrunk = cv2.resize(large.labels, (160, 90), interpolation=cv2.INTER_NEAREST)
    assert (small.labels == shrunk).mean() > 0.9


def test_labels_are_train_ids(scenes: list[NightFrame]) -> None:
    ids = set(np.unique([f.labels for f in scenes]).tolist())
    assert ids <= set(range(19)) | {IGNORE_ID}


def test_main_classes_are_in_every_twenty_scenes_and_the_others_in_some(scenes: list[NightFrame]) -> None:
    pixels = np.bincount(np.concatenate([f.labels.ravel() for f in scenes]), minlength=256)
    assert not [name for name in EVERYWHERE if pixels[IDS[name]] < 200]
    assert not [name for name in SOMETIMES if pixels[IDS[name]] < 20]


def test_scenes_are_dark_with_bright_lights(scenes: list[NightFrame]) -> None:
    """Mean levels, dark pixels and blown-out lamps lie where real night drives have them."""
    means = [f.image_bgr.mean() for f in scenes]
    assert 10 < np.median(means) < 50
    assert max(means) < 90
    assert np.median([np.percentile(f.image_bgr, 50) for f in scenes]) < 40
    assert np.median([f.image_bgr.max() for f in scenes]) == 255


def test_sky_is_above_and_road_below(scenes: list[NightFrame]) -> None:
    rows = {n: np.mean([np.nonzero(f.labels == IDS[n])[0].mean() for f in scenes]) for n in ("sky", "building", "road")}
    assert rows["sky"] < rows["building"] < rows["road"]
    assert np.mean([(f.labels[SIZE[0] * 2 // 3 : -25] == IDS["road"]).mean() for f in scenes]) > 0.6


def test_consecutive_frames_move_a_little() -> None:
    frames = list(render_clip(4, SIZE, seed=2, fps=10.0))
    assert [f.stamp_s for f in frames] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for a, b in pairwise(frames):
        assert 0.8 < (a.labels == b.labels).mean() < 0.9999
        assert not np.array_equal(a.image_bgr, b.image_bgr)


def test_a_frame_depends_on_its_time_and_not_on_those_before_it() -> None:
    """A drive that jumps into a later street shows what one that drove there shows."""
    last = list(render_clip(13, SIZE, seed=6, fps=1.0))[-1]
    jumped = NightDrive(6, SIZE).frame(12, 12.0)
    assert np.array_equal(last.labels, jumped.labels)
    assert np.array_equal(last.image_bgr, jumped.image_bgr)


def test_road_grows_towards_the_camera_as_it_drives() -> None:
    """A mark on the road ahead comes nearer: the image expands from the vanishing point."""
    drive = NightDrive(9, SIZE)
    camera = drive.camera
    rows = [camera.pixels(camera.view(np.array([[0.0, 0.0, z]], np.float32)))[0, 1] for z in (60.0, 20.0, 10.0, 6.0)]
    assert all(a < b for a, b in pairwise(rows))
    assert rows[0] > camera.horizon
    seen = camera.ground(np.array([100.0, 250.0]), np.array([rows[2]]))
    back = camera.pixels(camera.view(seen.reshape(-1, 3)))
    assert back == pytest.approx(np.array([[100.0, rows[2]], [250.0, rows[2]]]), abs=0.05)


def test_mean_luminance_rises_with_exposure() -> None:
    for seed in (1, 8, 17):
        means = [render_scene(seed, (90, 160), exposure=e).image_bgr.mean() for e in (0.02, 0.1, 0.3, 1.0, 3.0, 10.0)]
        assert all(b > a * 1.05 for a, b in pairwise(means)), means


def test_exposure_and_lens_do_not_change_labels() -> None:
    want = bare(5).labels
    assert np.array_equal(want, bare(5, glare=8.0, noise=0.2, gain=9.0, shake_px=(5.0, 3.0)).labels)
    assert np.array_equal(want, render_scene(5, SIZE, exposure=0.05).labels)


def test_glare_only_adds_light() -> None:
    plain, glared = bare(5).image_bgr.astype(int), bare(5, glare=3.0).image_bgr.astype(int)
    assert (glared - plain).min() >= -1
    assert (glared - plain).mean() > 0.5


def test_noise_has_the_requested_strength() -> None:
    clean, noisy = bare(5, gain=4.0).image_bgr.astype(float), bare(5, gain=4.0, noise=0.03).image_bgr.astype(float)
    well_lit = (clean > 30) & (clean < 200)
    spread = (noisy - clean)[well_lit].std()
    assert 0.8 < spread / (0.03 * 255 * ROOT_SHARE) < 1.2


@pytest.mark.parametrize("axis", [0, 1])
def test_label_borders_coincide_with_image_edges(axis: int) -> None:
    """In an image without noise, steps of brightness gather at label borders; labels shifted by one pixel fit worse."""
    offsets = (-3, -2, -1, 0, 1, 2, 3)
    fit = np.zeros(len(offsets))
    for seed in range(12):
        frame = bare(seed, gain=6.0)
        steps = np.abs(np.diff(cv2.cvtColor(frame.image_bgr, cv2.COLOR_BGR2GRAY).astype(float), axis=axis))
        inner = (slice(8, -30), slice(8, -8))  # clear of the rolled edges and of the bonnet
        for i, offset in enumerate(offsets):
            border = np.diff(np.roll(frame.labels, offset, axis=axis).astype(int), axis=axis) != 0
            fit[i] += steps[inner][border[inner]].mean() / steps[inner].mean() / 12
    assert offsets[int(fit.argmax())] == 0, fit
    assert fit.max() > 3.0
    assert fit.max() > 2.0 * fit[0]


def test_bright_pixels_have_the_label_of_their_light_source(scenes: list[NightFrame]) -> None:
    """Signal lamps are the brightest of signals; lamps and lit windows, not sky or terrain, are blown out."""
    clean = [bare(seed) for seed in range(20)]
    level = np.concatenate([f.image_bgr.max(2).ravel() for f in clean])
    labels = np.concatenate([f.labels.ravel() for f in clean])
    share = {name: (level[labels == IDS[name]] > 240).mean() for name in CITYSCAPES19.names if name != "train"}
    assert share["traffic light"] > 0.02
    assert share["car"] > 0.002
    assert share["pole"] > 0.002
    assert share["sky"] < 1e-3
    assert share["terrain"] < 1e-2


def test_headlights_light_the_road_ahead() -> None:
    for seed in range(6):
        drive = NightDrive(seed, SIZE)
        z = np.array([5.0, 12.0, 30.0, 80.0], np.float32)
        points = np.stack([np.zeros(4), np.zeros(4), z], 1).astype(np.float32)
        up = np.tile(np.array([0, 1, 0], np.float32), (4, 1))
        light = light_on(points, up, np.zeros((0, 10), np.float32), drive.ambient)[:, 1]
        assert light[0] > light[1] > light[2] > light[3] >= drive.ambient[1] / np.pi * 0.999


@pytest.mark.parametrize(
    "arguments", [{"num_frames": -1}, {"seed": -1}, {"size_hw": (16, 64)}, {"fps": 0.0}, {"exposure": 0.0}]
)
def test_bad_arguments_are_refused_with_the_expected_value(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"received .*expected"):
        render_clip(**{"num_frames": 1, "size_hw": SIZE, **arguments})


@pytest.mark.slow
def test_rendering_does_not_import_torch() -> None:
    code = "import sys, nightlab_core.data.rendered.night; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
