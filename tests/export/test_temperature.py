# SPDX-License-Identifier: Apache-2.0
"""Temperature: the search finds the minimum, and both levels of a checkpoint are fitted on labelled frames."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_training import tiny_settings  # noqa: E402

from nightlab_core.export.temperature import fit_temperature, fit_temperatures  # noqa: E402
from nightlab_core.models.checkpoint import ModelCard  # noqa: E402


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits, labels)
    assert found.value == pytest.approx(true, rel=0.05)
    assert found.nll_after <= found.nll_before + 1e-9
    assert (found.nll_before - found.nll_after > 0.01) == (true != 1.0)


def test_no_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="no labelled pixel"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_both_levels_are_fitted() -> None:
    torch.manual_seed(0)
    settings = tiny_settings()
    model = settings.build()
    card = ModelCard(name="tiny", hard_classes=("pole",), trained_on=(), licence="none", input_hw=(64, 96))
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(2):
        labels = np.full((70, 100), 255, np.uint8)
        labels[40:] = 0
        labels[10:60, 50:55] = settings.classes.id_of("pole")
        frames.append((rng.integers(0, 256, (70, 100, 3), np.uint8), labels))
    found = fit_temperatures(model, settings, card, frames, pixels_per_image=200)
    assert set(found) == {"image", "region"}
    assert all(0.1 < t.value < 10.1 and t.nll_after <= t.nll_before + 1e-9 for t in found.values())
    again = fit_temperatures(model, settings, card, frames, pixels_per_image=200)
    assert again == found
    unlabelled = [(image, np.full_like(labels, 255)) for image, labels in frames]
    assert fit_temperatures(model, settings, card, unlabelled) == {}
