# SPDX-License-Identifier: Apache-2.0
"""The networks: shapes, switches, costs, and errors that say what to do."""

import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from nightlab_core.models.backbone import Backbone  # noqa: E402
from nightlab_core.models.deform import DeformConv2d  # noqa: E402
from nightlab_core.models.detector import RegionDetector  # noqa: E402
from nightlab_core.models.nightlab import (  # noqa: E402
    DetectorSettings,
    NightLab,
    NightLabSettings,
    ReLAMSettings,
    SegmenterSettings,
    to_image,
    to_labels,
)
from nightlab_core.models.relam import ReLAM  # noqa: E402
from nightlab_core.models.segmenter import DeepLabV3Plus, Segmenter  # noqa: E402

SMALL = NightLabSettings(
    segmenter=SegmenterSettings(channels=16),
    detector=DetectorSettings(channels=16),
    region_hw=(64, 64),
)


def _flops(model: torch.nn.Module, image: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(image)
    return counter.get_total_flops()


class TestReLAM:
    def test_starts_as_identity_and_keeps_size_and_range(self) -> None:
        image = torch.rand(2, 3, 37, 50)
        module = ReLAM()
        assert torch.equal(module(image), image)
        torch.nn.init.normal_(module.light.weight, std=5.0)
        adapted = module(image)
        assert adapted.shape == image.shape and adapted.min() >= 0 and adapted.max() <= 1
        assert not torch.equal(adapted, image)

    def test_is_residual(self) -> None:
        module, image = ReLAM(), torch.rand(1, 3, 32, 32) * 0.2 + 0.4
        torch.nn.init.normal_(module.light.weight, std=0.01)
        assert torch.allclose(module(image), image + module.light_map(image))

    def test_light_map_is_smooth(self) -> None:
        # A reduced light map cannot draw edges: between two neighbours it moves by less than a step of its own grid.
        module = ReLAM(reduction=8)
        torch.nn.init.normal_(module.light.weight, std=1.0)
        light = module.light_map(torch.rand(1, 3, 64, 64))
        assert (light[..., 1:] - light[..., :-1]).abs().max() < 2 / 8

    def test_costs_less_than_a_quarter_of_the_segmenter(self) -> None:
        level, image = NightLabSettings().build_level(), torch.rand(1, 3, 128, 256)
        assert _flops(level.relam, image) < 0.25 * _flops(level.segmenter, image)

    def test_full_size_builds(self) -> None:
        assert ReLAM(channels=64, blocks=9, reduction=1)(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)


class TestSegmenter:
    @pytest.mark.parametrize("size_hw", [(64, 64), (96, 160)])
    def test_logits_lie_on_the_finest_stride(self, size_hw: tuple[int, int]) -> None:
        model = Segmenter("tf_efficientnet_lite0", 19, 16, stages=6).eval()
        logits = model(torch.rand(2, 3, *size_hw))
        assert logits.shape == (2, 19, size_hw[0] // 8, size_hw[1] // 8)

    @pytest.mark.parametrize(("places", "count"), [((), 0), (("head",), 1), (("fpn",), 2), (("fpn", "head"), 3)])
    def test_the_ablation_switches_each_place(self, places: tuple, count: int) -> None:
        model = Segmenter("tf_efficientnet_lite0", 19, 16, deformable=places)
        assert sum(isinstance(m, DeformConv2d) for m in model.modules()) == count

    @pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet18", "swin_tiny_patch4_window7_224"])
    def test_other_backbones(self, backbone: str) -> None:
        strides = (4, 8, 16, 32)
        model = Segmenter(backbone, 5, 16, strides).eval()
        size_hw = (64, 96)
        assert model(torch.rand(1, 3, *size_hw)).shape == (1, 5, size_hw[0] // 4, size_hw[1] // 4)

    def test_swins_last_windows_see_their_neighbours(self) -> None:
        """At the size that it was trained at, one window covers the last stage: timm leaves out the shift there."""
        torch.manual_seed(0)
        # The stage alone: in those before it windows are shifted in any case.
        stage = Backbone("swin_tiny_patch4_window7_224", (32,)).eval().net.get_submodule("layers_3")
        features = torch.rand(1, 28, 28, 384)  # of 448 x 448; the stage halves them to 14 x 14, four windows of 7 x 7
        changed = features.clone()
        changed[:, 12:14, 12:14] += 0.5  # the last place of the first window
        with torch.inference_mode():
            difference = (stage(changed) - stage(features)).abs().amax(-1)[0]
        assert difference.shape == (14, 14) and (difference[7:, 7:] > 0).any()

    def test_gradients_reach_every_weight(self) -> None:
        model = Segmenter("tf_efficientnet_lite0", 4, 16, stages=6)
        # One image at 64x64 has 2x2 pixels at stride 32: enough for the pyramid's normalisation.
        model(torch.rand(2, 3, 64, 64)).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []

    def test_a_wrong_size_names_the_size_to_pad_to(self) -> None:
        with pytest.raises(ValueError, match=r"100x130.*multiples of 32.*128x160"):
            Segmenter("tf_efficientnet_lite0", 19, 16)(torch.rand(1, 3, 100, 130))

    def test_a_missing_stride_names_those_there_are(self) -> None:
        with pytest.raises(ValueError, match=r"\[64\].*\[2, 4, 8, 16, 32\]"):
            Segmenter("tf_efficientnet_lite0", 19, 16, (8, 64))

    @pytest.mark.parametrize(("stages", "channels"), [(0, [40, 112, 320]), (6, [40, 112, 192]), (5, [40, 112])])
    def test_stages_keep_the_strides_they_reach(self, stages: int, channels: list[int]) -> None:
        strides = (8, 16, 32)[: len(channels)]
        backbone = Backbone("tf_efficientnet_lite0", strides, stages=stages)
        features = backbone(torch.rand(1, 3, 64, 64))
        assert [f.shape[1] for f in features] == backbone.channels == channels
        assert [64 // f.shape[2] for f in features] == list(strides)
        with pytest.raises(ValueError, match=r"\[32\].*\[2, 4, 8, 16\]"):
            Backbone("tf_efficientnet_lite0", (32,), stages=5)

    def test_stages_are_for_efficientnets(self) -> None:
        with pytest.raises(ValueError, match="resnet18"):
            Segmenter("resnet18", 19, 16, stages=3)


class TestDeepLab:
    @pytest.mark.parametrize(("output_stride", "dilations"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
    def test_logits_lie_on_stride_four(self, output_stride: int, dilations: list[int]) -> None:
        model = DeepLabV3Plus("resnet18", 5, 16, output_stride).eval()
        features = model.backbone(torch.rand(1, 3, 64, 96))
        assert [tuple(f.shape[1:]) for f in features] == [(64, 16, 24), (512, 64 // output_stride, 96 // output_stride)]
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, 5, 16, 24)
        assert [branch[0].dilation[0] for branch in model.head.pooling.atrous] == dilations
        with pytest.raises(ValueError, match=f"multiples of {output_stride}"):
            model(torch.rand(1, 3, 60, 97))

    def test_one_image_trains_every_weight(self) -> None:
        model = DeepLabV3Plus("resnet18", 4, 16)
        model(torch.rand(1, 3, 64, 64)).square().sum().backward()
        used = [n for n, p in model.named_parameters() if not n.startswith("backbone.net.fc")]
        assert [n for n, p in model.named_parameters() if n in used and p.grad is None] == []


class TestLibrarySegmenter:
    def test_any_network_of_the_library_gives_logits(self) -> None:
        pytest.importorskip("segmentation_models_pytorch")
        settings = SegmenterSettings(architecture="library", library_model="FPN", backbone="mobilenet_v2")
        model = settings.build(7).eval()
        assert model.multiple == 32 and model(torch.rand(1, 3, 64, 96)).shape == (1, 7, 64, 96)
        with pytest.raises(ValueError, match="128x160"):
            model(torch.rand(1, 3, 100, 130))

    def test_an_unknown_network_is_refused(self) -> None:
        pytest.importorskip("segmentation_models_pytorch")
        with pytest.raises((ValueError, KeyError), match="NoNet"):
            SegmenterSettings(architecture="library", library_model="NoNet", backbone="resnet18").build(7)


class TestRegionDetector:
    def test_boxes_are_normalised_sorted_and_limited(self) -> None:
        torch.manual_seed(0)
        model = RegionDetector("tf_efficientnet_lite0", 16, stages=5, max_boxes=50).eval()
        boxes, scores = model(torch.rand(2, 3, 128, 192))
        assert boxes.shape == (2, 50, 4) and scores.shape == (2, 50)
        assert boxes.min() >= 0 and boxes.max() <= 1
        assert (boxes[..., 2:] >= boxes[..., :2]).all()
        assert (scores[:, :-1] >= scores[:, 1:]).all()

    def test_small_images_give_as_many_boxes_as_anchors(self) -> None:
        model = RegionDetector("tf_efficientnet_lite0", 16, (16,), ((32,),), (1.0,), stages=5, max_boxes=300).eval()
        assert (
            model(torch.rand(1, 3, 64, 64))[0].shape[1] == 4
        )  # 2x2 places at half size and stride 16, one anchor each

    def test_learns_one_box(self) -> None:
        torch.manual_seed(0)
        model = RegionDetector("tf_efficientnet_lite0", 16, stages=5)
        model.backbone.eval()
        image = torch.full((1, 3, 128, 128), 0.2)
        image[:, :, 20:110, 40:84] = 0.9
        truth = torch.tensor([[40.0, 20.0, 84.0, 110.0]])
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for _ in range(40):
            losses = model.loss(image, [truth])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        boxes, scores = model.eval()(image)
        assert scores[0, 0] > 0.5
        assert torch.allclose(boxes[0, 0] * 128, truth[0], atol=8)

    def test_mixed_precision_leaves_anchors_where_they_are(self) -> None:
        """Anchors in bfloat16 would be rounded to 4 pixels at the far end of a frame 1024 wide."""
        model = RegionDetector("tf_efficientnet_lite0", 16, stages=5).eval()
        image = torch.rand(1, 3, 64, 1024)
        with torch.inference_mode():
            exact = model._predict(*model._features(image))[2]
            with torch.autocast("cpu", torch.bfloat16):
                _, deltas, anchors = model._predict(*model._features(image))
        assert torch.equal(anchors[0], exact[0]) and anchors[0].dtype == deltas.dtype == torch.float32

    def test_images_without_boxes_have_a_loss_too(self) -> None:
        model = RegionDetector("tf_efficientnet_lite0", 16, stages=5)
        losses = model.loss(torch.rand(2, 3, 64, 64), [torch.zeros(0, 4), torch.tensor([[4.0, 4.0, 40.0, 60.0]])])
        assert set(losses) == {"objectness", "box"} and all(torch.isfinite(v) for v in losses.values())

    def test_what_nobody_labelled_is_no_background(self) -> None:
        model = RegionDetector("tf_efficientnet_lite0", 16, (16,), ((32,),), (1.0,), stages=5, reduction=1).eval()
        image, truth = torch.rand(1, 3, 128, 128), [torch.tensor([[4.0, 4.0, 36.0, 36.0]])]
        known = torch.zeros(1, 128, 128, dtype=torch.bool)
        known[:, :40] = True

        def sampled(known: torch.Tensor | None) -> list[int]:
            """Rows of the 8 x 8 places whose objectness has a gradient."""
            seen: list[torch.Tensor] = []
            hook = model.rpn.head.cls_logits.register_forward_hook(
                lambda *a: (a[2].retain_grad(), seen.append(a[2]))[0]
            )
            model.loss(image, truth, known)["objectness"].backward()
            hook.remove()
            return sorted(set(seen[0].grad[0, 0].nonzero()[:, 0].tolist()))

        assert sampled(None) == sampled(torch.ones_like(known)) == list(range(8))
        assert sampled(known) == [0, 1, 2]  # row i is that of anchors from y = 16 i - 16 to 16 i + 16
        assert sampled(~known) == [1, 3, 4, 5, 6, 7]  # the box itself is told of, wherever it lies
        nothing = model.loss(image, [torch.zeros(0, 4)], torch.zeros_like(known))
        assert [v.item() for v in nothing.values()] == [0, 0]


@pytest.fixture(scope="module")
def model() -> NightLab:
    torch.manual_seed(0)
    return SMALL.build().eval()


class TestNightLab:
    def test_bytes_become_rgb(self) -> None:
        frame = torch.tensor([[[[255, 51, 0]]]], dtype=torch.uint8)  # BGR: blue
        assert to_image(frame).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])

    def test_confidence_is_the_softmax_at_its_maximum(self) -> None:
        logits = torch.randn(1, 5, 4, 6)
        labels, confidence = to_labels(logits, (4, 6))
        top, index = logits.softmax(1).max(1)
        assert torch.equal(labels.long(), index)
        assert ((top * 255).round() - confidence).abs().max() <= 1
        assert labels.dtype == confidence.dtype == torch.uint8

    @pytest.mark.parametrize("size_hw", [(3, 5), (6, 10), (12, 20)])
    def test_labels_are_those_of_the_enlarged_logits(self, size_hw: tuple[int, int]) -> None:
        logits = 3 * torch.randn(2, 5, 3, 5, generator=torch.Generator().manual_seed(0))
        enlarged = torch.nn.functional.interpolate(logits, size=size_hw, mode="bilinear").softmax(1)
        labels, confidence = to_labels(logits, size_hw)
        top, index = enlarged.max(1)
        assert torch.equal(labels.long(), index)
        assert ((top * 255).round() - confidence).abs().max() <= 1

    def test_rows_that_are_no_multiple_of_the_logits_are_refused(self) -> None:
        with pytest.raises(ValueError, match="7 rows of labels, expected a multiple of the 3 of logits"):
            to_labels(torch.zeros(1, 5, 3, 5), (7, 10))

    def test_settings_without_light_adaptation(self) -> None:
        level = NightLabSettings(relam=None, segmenter=SegmenterSettings(channels=16)).build_level()
        assert isinstance(level.relam, torch.nn.Identity)

    def test_region_level_with_its_own_classes_says_their_ids(self) -> None:
        settings = SMALL.model_copy(update={"region_classes": ("person", "pole")})
        model = settings.build().eval()
        assert model.region.segmenter.head.classifier[-1].out_channels == 3
        assert model.image.segmenter.head.classifier[-1].out_channels == 19
        assert not any("region_ids" in key for key in model.state_dict())  # old checkpoints load
        logits = torch.zeros(1, 3, 2, 2)
        logits[0, [1, 0, 2, 2], [0, 0, 1, 1], [0, 1, 0, 1]] = 9.0
        labels, _ = to_labels(logits, (2, 2), model.region_ids)
        assert labels[0].tolist() == [[5, 11], [255, 255]]

    def test_unknown_region_classes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="lamp post"):
            NightLabSettings(region_classes=("lamp post",))

    def test_levels_may_differ(self) -> None:
        deeplab = SegmenterSettings(architecture="deeplabv3plus", backbone="resnet18", channels=16)
        settings = SMALL.model_copy(update={"region_segmenter": deeplab})
        assert isinstance(settings.build_level("image").segmenter, Segmenter)
        assert isinstance(settings.build_level("region").segmenter, DeepLabV3Plus)

    def test_paper_sizes_build(self) -> None:
        settings = NightLabSettings(
            segmenter=SegmenterSettings(
                backbone="swin_base_patch4_window7_224", stages=0, channels=512, strides=(4, 8, 16, 32)
            ),
            relam=ReLAMSettings(channels=64, blocks=9, reduction=1),
        )
        with torch.device("meta"):
            level = settings.build_level()
        assert 100e6 < sum(p.numel() for p in level.parameters()) < 250e6
