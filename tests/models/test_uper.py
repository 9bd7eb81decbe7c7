# SPDX-License-Identifier: Apache-2.0
"""The decoder's detail branch."""

import pytest

torch = pytest.importorskip("torch")

from nightlab_core.models.uper import UPerHead  # noqa: E402


def test_the_detail_branch_has_the_finest_size_and_affects_the_result() -> None:
    features = [torch.rand(2, c, s, s) for c, s in ((8, 32), (12, 16), (16, 8))]
    head = UPerHead([8, 12, 16], 16, 5, detail_channels=10).eval()
    logits = head(features)
    assert logits.shape == (2, 5, 32, 32)
    assert len(head.laterals) == 1  # the finest features stay out of the pyramid
    head.train().zero_grad()
    features[0].requires_grad_()
    head(features).square().sum().backward()
    assert features[0].grad.abs().sum() > 0


def test_without_a_detail_branch_the_pyramid_gives_the_finest_features() -> None:
    head = UPerHead([8, 12, 16], 16, 5).eval()
    assert len(head.laterals) == 2 and not hasattr(head, "refine")
    assert head([torch.rand(1, c, s, s) for c, s in ((8, 32), (12, 16), (16, 8))]).shape == (1, 5, 32, 32)
