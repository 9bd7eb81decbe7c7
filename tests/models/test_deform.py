# SPDX-License-Identifier: Apache-2.0
"""One deformable convolution, two forms that agree, borders included."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from nightlab_core.models.deform import DeformConv2d, sample_conv2d, set_deform_form  # noqa: E402


def _layer(kernel_size: int = 3, bias: bool = False, spread: float = 3.0) -> DeformConv2d:
    torch.manual_seed(1)
    layer = DeformConv2d(5, 7, kernel_size, bias=bias)
    # Offsets of several pixels: many samples fall outside, between the border and one pixel beyond, and far away.
    torch.nn.init.normal_(layer.offset.weight, std=spread / 5)
    torch.nn.init.normal_(layer.offset.bias, std=spread)
    return layer


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 6), (2, 3), (9, 11), (16, 8)])
@pytest.mark.parametrize(("kernel_size", "bias"), [(1, False), (3, False), (3, True), (5, True)])
def test_both_forms_agree_to_1e_4(size_hw: tuple[int, int], kernel_size: int, bias: bool) -> None:
    layer, x = _layer(kernel_size, bias), torch.randn(2, 5, *size_hw)
    layer.form = "deform_conv"
    expected = layer(x)
    layer.form = "grid_sample"
    assert (layer(x) - expected).abs().max() < 1e-4


def test_gradients_of_both_forms_agree() -> None:
    layer, x = _layer(spread=0.7), torch.randn(2, 5, 7, 9)
    gradients = []
    for form in ("deform_conv", "grid_sample"):
        layer.form = form  # type: ignore[assignment]
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        layer(inputs).square().sum().backward()
        gradients.append([inputs.grad, *(p.grad.clone() for p in layer.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-3)


def test_zero_offsets_give_a_plain_convolution() -> None:
    layer, x = DeformConv2d(4, 6), torch.randn(1, 4, 10, 12)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, padding=1), atol=1e-5)


def test_a_sample_at_the_border_equals_the_hand_computed_value() -> None:
    # A 1x1 kernel moved by (-0.25, 0) on a column [4, 8]: row 0 blends 3/4 of 4 with 1/4 of the zero above it.
    x, offset = torch.tensor([[[[4.0], [8.0]]]]), torch.zeros(1, 2, 2, 1)
    offset[:, 0] = -0.25
    out = sample_conv2d(x, offset, torch.ones(1, 1, 1, 1), None)
    assert out.flatten().tolist() == pytest.approx([3.0, 7.0])


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        DeformConv2d(3, 3, 2)


def test_the_form_is_set_in_every_layer_of_a_model() -> None:
    model = torch.nn.Sequential(DeformConv2d(3, 3), torch.nn.Sequential(DeformConv2d(3, 3)))
    set_deform_form(model, "grid_sample")
    assert {m.form for m in model.modules() if isinstance(m, DeformConv2d)} == {"grid_sample"}
