# SPDX-License-Identifier: Apache-2.0
"""A region level whose result is a mixture of both levels' probabilities: its values, its bounds, and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from pydantic import ValidationError  # noqa: E402

from nightlab_core.data.rendered import night  # noqa: E402
from nightlab_core.export.export import export_bundle  # noqa: E402
from nightlab_core.export.parity import check_parity  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard  # noqa: E402
from nightlab_core.models.engine import torch_engines  # noqa: E402
from nightlab_core.models.nightlab import (  # noqa: E402
    DetectorSettings,
    NightLabSettings,
    SegmenterSettings,
    mix,
    probabilities_of,
)

SETTINGS = NightLabSettings(
    segmenter=SegmenterSettings(channels=16, stages=5, strides=(4, 8, 16), detail_channels=8),
    detector=DetectorSettings(channels=16, max_boxes=20),
    relam=None,
    region_hw=(64, 64),
    region_share=0.35,
)
CLASSES = len(SETTINGS.classes)


def test_it_is_the_weighted_mean_of_both_levels_log_probabilities() -> None:
    own, context = torch.tensor([0.64, 0.32, 0.04]), torch.tensor([0.04, 0.02, 0.94])
    found = mix(7 + own.log()[None, :, None, None], context[None, :, None, None], 0.5).flatten().exp()
    torch.testing.assert_close(found, torch.tensor([0.16, 0.08, (0.04 * 0.94) ** 0.5]))  # geometric means


def test_the_level_that_is_more_certain_decides() -> None:
    unsure, certain = torch.tensor([0.6, 0.4]), torch.tensor([0.01, 0.99])
    for own, context in ((unsure, certain), (certain, unsure)):
        found = mix(own.log()[None, :, None, None], context[None, :, None, None], 0.5)
        assert found.argmax(1).item() == 1


def test_probabilities_of_another_size_are_resized() -> None:
    everywhere = torch.zeros(2, CLASSES, 8, 8)
    everywhere[:, 3] = 1
    found = mix(torch.zeros(2, CLASSES, 16, 16), everywhere, 0.5)
    assert found.shape == (2, CLASSES, 16, 16) and (found.argmax(1) == 3).all()


def test_no_class_is_impossible_so_that_every_logarithm_is_finite() -> None:
    certain = torch.zeros(1, CLASSES, 4, 4)
    certain[:, 0] = 1
    found = mix(1000 * certain, certain, 0.35)
    assert torch.isfinite(found).all() and (found.argmax(1) == 0).all()


def test_probabilities_are_bytes_of_every_class() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25]))[None, :, None, None]
    assert probabilities_of(logits).tolist() == [[[[128, 64, 64]]]]


def test_a_region_level_of_some_classes_cannot_read_them() -> None:
    with pytest.raises(ValidationError, match="a region_share below 1 needs a region level of all classes"):
        NightLabSettings(region_share=0.5, region_classes=("pole",))


@pytest.mark.parametrize("further_hw", [(), ((96, 96),)])
def test_engines_of_the_bundle_agree_with_torch(tmp_path: Path, further_hw: tuple[tuple[int, int], ...]) -> None:
    torch.manual_seed(0)
    model = SETTINGS.build()
    for name, parameter in model.named_parameters():
        if "classifier" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    card = ModelCard(
        name="random", hard_classes=("pole",), trained_on=(), licence="", input_hw=(128, 192), further_hw=further_hw
    )
    manifest = export_bundle(model, SETTINGS, card, tmp_path)
    assert manifest.engines.region.context
    frames = [night.render_scene(i, size_hw=(120, 160 + 80 * i)).image_bgr for i in range(2)]
    rows = [
        row for row in check_parity(torch_engines(model, SETTINGS, card), tmp_path, frames) if row.network != "hardness"
    ]
    assert all(row.passed and row.worst_confidence <= 2 for row in rows), rows
    assert len({row.network for row in rows}) == 2 + len(further_hw)
