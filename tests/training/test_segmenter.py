# SPDX-License-Identifier: Apache-2.0
"""The segmenter's loss where a label leaves its class open, and what a stage starts from."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CAMVID11, CITYSCAPES19  # noqa: E402
from tiny_training import tiny_settings  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.labels import ambiguous_groups  # noqa: E402
from nightlab_core.models.backbone import Backbone  # noqa: E402
from nightlab_core.models.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from nightlab_core.models.output_labels import OutputLabels  # noqa: E402
from training.combine_checkpoints import CombineRecipe, combine_checkpoints, load_stages  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.stages.segmenter import (  # noqa: E402
    SegmenterRecipe,
    at_pixels,
    freeze,
    load_first_weights,
    loss_weights,
    resolve_ambiguous,
    segmentation_loss,
    start,
)

RECIPES = Path(__file__).parents[2] / "config" / "train"


#: Labels 19 and 20: CamVid's sign and bicyclist.
GROUPS = ambiguous_groups([CAMVID11], CITYSCAPES19)
ALL_CLASSES = OutputLabels.of(CITYSCAPES19, groups=GROUPS)
WEIGHTS = loss_weights({}, ALL_CLASSES)


def test_an_ambiguous_label_becomes_its_most_likely_class() -> None:
    logits = torch.zeros(1, 19, 1, 4)
    logits[0, 11] = 9.0  # person is even more likely, but not among the label's classes
    logits[0, 12, 0, 0] = logits[0, 18, 0, 1] = logits[0, 7, 0, 2] = 1.0
    labels = torch.tensor([[[20, 20, 19, 255]]])
    assert resolve_ambiguous(logits, labels, ALL_CLASSES).tolist() == [[[12, 18, 7, 255]]]


def test_an_ambiguous_label_lowers_its_less_likely_classes() -> None:
    """A probability shared among three classes could be lower than that of a fourth class."""
    logits = torch.zeros(1, 19, 4, 4)
    logits[:, 12] = 1.0
    logits.requires_grad_()
    losses = segmentation_loss(
        _Constant(logits), (torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 20)), WEIGHTS, ALL_CLASSES
    )
    losses["cross_entropy"].value.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 12] < 0).all() and (logits.grad[:, [11, 17, 18]] > 0).all()


def test_any_class_of_an_ambiguous_label_has_no_loss() -> None:
    """CamVid's sign predicted as a traffic light has no loss; predicted as road it has the full loss."""
    labels, weight = torch.full((1, 8, 8), 19), WEIGHTS
    costs = {}
    for name in ("traffic light", "traffic sign", "road"):
        logits = torch.zeros(1, 19, 4, 4)
        logits[:, CITYSCAPES19.id_of(name)] = 20.0
        model = _Constant(logits)
        costs[name] = segmentation_loss(model, (torch.zeros(1, 3, 8, 8), labels), weight, ALL_CLASSES)[
            "cross_entropy"
        ].value.item()
    assert costs["traffic light"] == pytest.approx(costs["traffic sign"]) == pytest.approx(0, abs=1e-6)
    assert costs["road"] > 15


def test_class_weights_equal_hand_computed_values() -> None:
    weight = loss_weights({"pole": 3.0, "traffic light": 3.0, "traffic sign": 2.5, "wall": 2.0}, ALL_CLASSES)
    assert weight[5] == 3 and weight[0] == 1 and len(weight) == 21
    assert weight[19] == 2.5 and weight[20] == 1  # light or sign, rider or bicycle or motorcycle
    logits = torch.zeros(1, 19, 4, 4)
    labels = torch.full((1, 8, 8), 5)
    labels[:, :, 4:] = 255  # unlabelled pixels are no part of the mean
    loss = segmentation_loss(_Constant(logits), (torch.zeros(1, 3, 8, 8), labels), weight, ALL_CLASSES)[
        "cross_entropy"
    ].value
    assert loss.item() == pytest.approx(3 * torch.tensor(19.0).log().item())


def test_a_stage_starts_from_another_stage_or_a_level_of_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, fresh = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.save({"model": source.state_dict()}, tmp_path / "stage.pt")
    whole = {
        f"{level}.{k}": v + i for i, level in enumerate(("image", "region")) for k, v in source.state_dict().items()
    }
    torch.save({"weights": whole, "settings": {}, "card": {}}, tmp_path / "whole.pt")

    start(fresh, tmp_path / "stage.pt", "image")
    assert torch.equal(fresh[0].weight, source[0].weight)
    assert "lacks 1: fresh weights" in capsys.readouterr().out
    start(fresh, tmp_path / "whole.pt", "region")
    assert torch.equal(fresh[0].weight, source[0].weight + 1)
    with pytest.raises(FileNotFoundError, match="train that stage first"):
        start(fresh, tmp_path / "missing.pt", "image")
    with pytest.raises(ValueError, match="no weight that fits"):
        start(nn.Conv2d(3, 8, 3), tmp_path / "stage.pt", "image")


def test_offsets_of_a_bundle_are_removed_before_further_training(tmp_path: Path) -> None:
    settings = tiny_settings()
    shipped = load_recipe(RECIPES / "lite_bundle.yaml", CombineRecipe)
    save_checkpoint(tmp_path / "plain.pt", settings.build(), settings, shipped.card)
    parts = dict.fromkeys(("image", "region", "detector"), str(tmp_path / "plain.pt"))
    combine_checkpoints(replace(shipped, model=settings, region_offsets={"pole": 0.5}, **parts), tmp_path / "raised.pt")
    plain, raised = (load_checkpoint(tmp_path / f"{name}.pt")[0] for name in ("plain", "raised"))
    for level in ("image", "region"):
        model, unchanged = settings.build_level(level), getattr(plain, level).state_dict()
        start(model, tmp_path / "raised.pt", level)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, unchanged[key], msg=key)
    region = load_stages(replace(shipped, model=settings, **dict.fromkeys(parts, str(tmp_path / "raised.pt")))).region
    for key, value in region.state_dict().items():  # a bundle made of a bundle does not add it twice
        torch.testing.assert_close(value, plain.region.state_dict()[key], msg=key)
    different = [k for k, v in raised.region.state_dict().items() if not torch.equal(v, plain.region.state_dict()[k])]
    assert len(different) == 1 and different[0].endswith("bias")


def test_a_stage_starts_from_the_mean_of_several_levels(tmp_path: Path) -> None:
    settings = tiny_settings()
    card = load_recipe(RECIPES / "lite_bundle.yaml", CombineRecipe).card
    wholes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        wholes.append(settings.build())
        save_checkpoint(tmp_path / f"{seed}.pt", wholes[-1], settings, card)
    paths = tuple(str(tmp_path / f"{seed}.pt") for seed in (1, 2))
    recipe = replace(load_recipe(RECIPES / "lite_region.yaml", SegmenterRecipe), model=settings, start_from=paths)
    model = settings.build_level("region")
    load_first_weights(model, recipe)
    first, second = (whole.region.state_dict() for whole in wholes)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[key] + second[key]) / 2, atol=1e-3, rtol=1e-3, msg=key)


def test_statistics_that_are_not_finite_are_reset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variance that was stored in half precision can be infinite; its channel would then be 0 in inference."""
    source, fresh = (nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))
    source[1].running_var[:] = torch.tensor([torch.inf, 7.0])
    torch.save({"model": source.state_dict()}, tmp_path / "stage.pt")
    start(fresh, tmp_path / "stage.pt", "image")
    assert fresh[1].running_var.tolist() == [1.0, 7.0] and torch.equal(fresh[0].weight, source[0].weight)
    assert "1.running_var holds numbers that are not finite, which are reset" in capsys.readouterr().out
    source[0].bias.data[0] = torch.nan
    torch.save({"model": source.state_dict()}, tmp_path / "stage.pt")
    with pytest.raises(ValueError, match=r"0\.bias holds numbers that are not finite; start from another"):
        start(fresh, tmp_path / "stage.pt", "image")


@pytest.mark.parametrize("number", [float("inf"), 1e6])
def test_a_network_that_is_not_finite_writes_no_checkpoint(tmp_path: Path, number: float) -> None:
    """Weights too large for half precision count as not finite, since a checkpoint stores half precision."""
    settings = tiny_settings()
    card, model = load_recipe(RECIPES / "lite_bundle.yaml", CombineRecipe).card, settings.build()
    weight = next(m for m in model.image.modules() if isinstance(m, nn.Conv2d)).weight
    weight.data.view(-1)[0] = number
    with pytest.raises(ValueError, match=r"image\.\S+ and 0 other tensors hold numbers that are not finite"):
        save_checkpoint(tmp_path / "dead.pt", model, settings, card)
    assert not (tmp_path / "dead.pt").exists()


def test_lovasz_loss_is_0_for_correct_and_1_for_wrong_predictions() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[..., 4:] = 20
    right = torch.zeros(1, 19, 4, 4)
    right[:, 0, :, :2] = right[:, 18, :, 2:] = 50.0  # a bicycle is as good as its rider
    batch = (torch.zeros(1, 3, 8, 8), labels)
    for logits, expected in ((right, 0.0), (right.flip(3), 1.0)):
        losses = segmentation_loss(_Constant(logits.repeat_interleave(8, 2).repeat_interleave(8, 3)), batch,
                                   WEIGHTS, ALL_CLASSES, lovasz_weight=2.0)  # fmt: skip
        assert losses["lovasz"].item() == pytest.approx(2 * expected, abs=0.01)


def test_the_loss_reads_logits_at_the_positions_of_the_mask() -> None:
    """A mask is computed from logits enlarged to the image; an offset of half a pixel would misplace thin objects."""
    torch.manual_seed(0)
    for shape, size_hw in (((2, 3, 8, 12), (32, 48)), ((1, 2, 5, 7), (37, 43)), ((1, 4, 16, 16), (16, 16))):
        logits = torch.randn(shape)
        enlarged = F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)
        for stride in (1, 2):
            found = at_pixels(logits, size_hw, stride)
            torch.testing.assert_close(found, enlarged[..., ::stride, ::stride], rtol=1e-4, atol=1e-5)
    # A network that is right at every pixel has no loss, wherever the borders are.
    labels = torch.randint(0, 19, (1, 16, 24))
    exact = 50.0 * F.one_hot(labels, 19).permute(0, 3, 1, 2)
    found = segmentation_loss(_Constant(exact), (torch.zeros(1, 3, 16, 24), labels), WEIGHTS, ALL_CLASSES)
    assert found["cross_entropy"].value.item() < 1e-3  # type: ignore[union-attr]


def test_a_batch_without_labels_has_zero_loss_and_a_gradient() -> None:
    logits = torch.zeros(1, 19, 8, 8, requires_grad=True)
    batch = torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 255)
    losses = segmentation_loss(_Constant(logits), batch, WEIGHTS, ALL_CLASSES, lovasz_weight=1.0)
    assert losses["lovasz"].shape == () and losses["lovasz"].item() == 0
    (losses["lovasz"] + losses["cross_entropy"].value).backward()
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("statistics", [True, False])
def test_fixed_stages_keep_their_statistics_and_a_setting_decides_for_the_others(statistics: bool) -> None:
    backbone = Backbone("tf_efficientnet_lite0", (8, 16), stages=5, pretrained=False).train()
    freeze(backbone, 2, statistics)
    net = backbone.net
    norms = {name: m.training for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    fixed = {name for name in norms if name == "bn1" or name.startswith(("blocks.0.", "blocks.1."))}
    assert not any(norms[name] for name in fixed)
    assert {norms[name] for name in norms.keys() - fixed} == {not statistics}
    assert not net.conv_stem.weight.requires_grad and net.blocks[2][0].conv_pw.weight.requires_grad


class _Constant(nn.Module):
    """A model that always answers with these logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_a_region_level_with_class_other_is_trained() -> None:
    """CamVid's sign is a traffic sign or other: predicting either has no loss, predicting a pole has a high one."""
    outputs = OutputLabels.of(CITYSCAPES19, ("pole", "traffic sign"), GROUPS)
    weight = loss_weights({"pole": 3.0, "other": 2.0}, outputs)
    assert weight.tolist() == [3.0, 1.0, 2.0, 1.0]  # the open label takes the least of its classes'
    costs = {}
    for channel, name in enumerate(outputs.names):
        logits = torch.zeros(1, 3, 8, 8)
        logits[:, channel] = 20.0
        batch = torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 19)
        costs[name] = segmentation_loss(_Constant(logits), batch, weight, outputs)["cross_entropy"].value.item()
    assert costs["traffic sign"] == pytest.approx(0, abs=1e-4) and costs["other"] == pytest.approx(0, abs=1e-4)
    assert costs["pole"] > 10
    with pytest.raises(KeyError, match=r"'car'.*pole, traffic sign, other"):
        loss_weights({"car": 2.0}, outputs)
