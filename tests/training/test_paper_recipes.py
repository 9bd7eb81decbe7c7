# SPDX-License-Identifier: Apache-2.0
"""The paper's recipes are whole: every stage, of one model, each reading what another writes; and they build."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_msssim")

from class_sets import CITYSCAPES19  # noqa: E402

from nightlab_core.config import Settings, replace  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, NightLabSettings, ReLAMSettings  # noqa: E402
from nightlab_core.models.nightlab import SegmenterSettings as Segmenter  # noqa: E402
from training import combine_checkpoints as combining  # noqa: E402
from training import smoke  # noqa: E402
from training.evaluation.ladder import Ablation  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.stages import detector, hdm, joint, relam, segmenter  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
NAMES = ("nightcity_plus_swin_b", "bdd100k_night_swin_b", "nightcity_plus_deeplabv3plus_r101")
#: The paper's columns of night data alone; of DeepLabV3+ it has one figure, `plain_night_only`.
NIGHT_ONLY = tuple(f"{name}_night_only" for name in NAMES[:2])
STAGES: dict[str, type[Settings]] = {
    "relam_image": relam.ReLAMRecipe,
    "relam_region": relam.ReLAMRecipe,
    "image": segmenter.SegmenterRecipe,
    "region": segmenter.SegmenterRecipe,
    "detector": detector.DetectorRecipe,
    "bundle": combining.CombineRecipe,
    "hdm": hdm.HdmRecipe,
    "hdm_bundle": combining.CombineRecipe,
    "joint": joint.JointRecipe,
}
RUNGS = dict.fromkeys(("upernet", "deform_head", "deform", "region_plain"), segmenter.SegmenterRecipe)
PLAIN = dict.fromkeys(("plain", "plain_night_only", "region_plain"), segmenter.SegmenterRecipe)
PLAIN |= {"bundle_plain": combining.CombineRecipe, "hdm_plain": hdm.HdmRecipe}  # type: ignore[dict-item]
#: What recipes extend: none by itself.
PARTS = {"model", "sources", "hard_classes", "card", "light"}


def _recipes(name: str) -> dict[str, Any]:
    classes: dict[str, Any] = {**STAGES, **(PLAIN if "deeplab" in name else RUNGS)}
    if name in NIGHT_ONLY:
        classes = {stage: cls for stage, cls in classes.items() if "relam" not in stage and stage != "joint"}
    return {stage: load_recipe(RECIPES / name / f"{stage}.yaml", cls) for stage, cls in classes.items()}


@pytest.mark.parametrize("name", [*NAMES, *NIGHT_ONLY])
def test_every_stage_exists_and_reads_files_that_another_writes(name: str) -> None:
    recipes = _recipes(name)
    assert {p.stem for p in (RECIPES / name).glob("*.yaml")} - PARTS == {*recipes, "ladder"}
    written = {f"runs/{name}/{stage}/checkpoint.pt" for stage in recipes}
    # Light adaptation learns from day images without labels in both columns: once.
    written |= {f"runs/{name.removesuffix('_night_only')}/relam_{level}/checkpoint.pt" for level in ("image", "region")}
    written |= {f"runs/{name}/rdn.pt", f"runs/{name}/rdn_plain.pt", ""}
    for stage, recipe in recipes.items():
        model = replace(recipe.model, detector=replace(recipe.model.detector, hdm_channels=0))
        if stage in (*RUNGS, *PLAIN):
            assert model.relam is None and not getattr(recipe, "relam_from", "")
            deformable = {"upernet": (), "deform_head": ("head",)}.get(stage, ("fpn", "head"))
            assert model.segmenter.deformable == deformable
            model = replace(model, relam=recipes["image"].model.relam)
            model = replace(model, segmenter=replace(model.segmenter, deformable=("fpn", "head")))
        assert model == recipes["image"].model, stage
        for key in ("start_from", "relam_from", "image", "region", "detector", "levels"):
            assert getattr(recipe, key, "") in written, (stage, key)
        for hard in getattr(recipe, "hard_classes", ()):
            CITYSCAPES19.id_of(hard)
        day, night = ("bdd100k", "bdd100k_night") if "bdd" in name else ("cityscapes", "nightcity_plus")
        if sources := getattr(recipe, "sources", ()):
            assert {s.kind for s in sources} == ({night} if "night_only" in name + stage else {night, day}), stage


@pytest.mark.parametrize("name", [*NAMES, *NIGHT_ONLY])
def test_ablation_recipes_differ_from_the_full_one_in_the_model_only(name: str) -> None:
    recipes = _recipes(name)
    for stage in {*RUNGS, "plain"} & set(recipes):
        whole = recipes["region" if "region" in stage else "image"]
        same = {key: getattr(whole, key) for key in ("model", "relam_from", "start_from")}
        assert replace(recipes[stage], **same) == whole, stage


#: The paper's rows (and the patent's), as they follow one another.
LADDERS = {
    NAMES[0]: (
        "UPerNet, Swin-B", "+ deformable head", "+ deformable FPN", "boxes from the prediction", "RDN", "HDM",
        "+ ReLAM, image level", "+ ReLAM, both levels",
    ),
    NAMES[2]: ("DeepLabV3+, night data alone", "DeepLabV3+", "boxes from the prediction", "RDN", "HDM"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *NIGHT_ONLY])
def test_every_row_of_the_papers_tables_has_a_recipe(name: str) -> None:
    ablation = load_recipe(RECIPES / name / "ladder.yaml", Ablation)
    assert tuple(row.name for row in ablation.rows) == LADDERS.get(name, LADDERS[NAMES[0]])
    assert {path.split("/")[1] for row in ablation.rows for path in row.paths()} == {name}


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_is_the_papers(name: str) -> None:
    for recipe in (_recipes(name)["image"], _recipes(name)["region"]):
        assert recipe.loop.steps == 80_000 and recipe.loop.warmup_steps == 1500
        assert not recipe.frozen_stages and not recipe.frozen_statistics  # SyncBN has statistics to bring together
        assert recipe.model.relam == ReLAMSettings(channels=64, blocks=9, reduction=1)
    image = _recipes(name)["image"]
    assert image.crop_hw == (512, 1024) and image.scale == (0.5, 2.0)


@pytest.mark.parametrize(("name", "millions"), [(NAMES[0], (120, 180)), (NAMES[2], (60, 90))])
def test_the_networks_have_the_papers_sizes(name: str, millions: tuple[int, int]) -> None:
    with torch.device("meta"):
        level = _recipes(name)["image"].model.build_level("image")
        _recipes(name)["detector"].model.build_detector()
    count = sum(p.numel() for p in level.parameters()) / 1e6
    assert millions[0] < count < millions[1], count


@pytest.mark.parametrize(
    "stage",
    ["detector", *(pytest.param(s, marks=pytest.mark.slow) for s in ("image", "region", "relam_image", "joint"))],
)
def test_the_smoke_run_trains_and_reports_memory(stage: str, tmp_path: Path) -> None:
    """Run the command on a reduced recipe; schedule, losses and loop are those of the stage."""
    recipe = load_recipe(RECIPES / NAMES[2] / f"{stage}.yaml", STAGES[stage])
    small = NightLabSettings(
        segmenter=Segmenter(architecture="deeplabv3plus", backbone="resnet18", channels=16),
        relam=ReLAMSettings(channels=4, blocks=1),
        detector=DetectorSettings(channels=16),
        region_hw=(64, 64),
    )
    changes: dict[str, Any] = {"model": small}
    if hasattr(recipe, "crop_hw"):
        changes["crop_hw"] = (64, 96)
    if stage == "joint":
        small = replace(small, detector=replace(small.detector, hdm_channels=8))
        small_discriminator = relam.DiscriminatorSettings(channels=4, layers=1)
        changes |= {"model": small, "per_frame": 2}
        changes |= {
            k: replace(getattr(recipe, k), discriminator=small_discriminator) for k in ("image_light", "region_light")
        }
    if stage == "relam_image":
        changes["crop_hw"] = (96, 96)
        changes["discriminator"] = relam.DiscriminatorSettings(channels=4, layers=2)
    path = tmp_path / f"{stage}.yaml"
    path.write_text(replace(recipe, **changes).model_dump_json())  # JSON is YAML
    figures = smoke.smoke(path, steps=2, batch_size=2)  # in bfloat16, as the recipes say
    assert figures["batch_size"] == 2 and figures["peak_process_gb"] > 0.1
    assert 0.001 < figures["weights_million"] < 40


def test_the_smoke_run_reports_the_seconds_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time before the first step and after the last one is not counted."""
    clock, given = [0.0], []

    def fit(model: Any, loss: Any, *others: Any) -> None:
        given.append(model)
        clock[0] += 60
        for seconds in (5, 2, 2):
            loss(model, None)
            clock[0] += seconds
        clock[0] += 30

    monkeypatch.setattr(smoke, "fit", fit)
    monkeypatch.setattr(smoke.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(detector, "detection_loss", lambda model, batch: {})
    figures = smoke.smoke(RECIPES / "lite_detector.yaml", steps=3)
    assert figures["seconds_per_step"] == 3.5  # the median of two
    # As the stage does: its backbone's statistics stay, and the first stage of it.
    of_backbone = [m for m in given[0].detector.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert of_backbone and not any(m.training for m in of_backbone)
    assert not given[0].detector.backbone.net.conv_stem.weight.requires_grad


def test_a_recipe_that_trains_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 'bundle'"):
        smoke.recipe_class(RECIPES / NAMES[0] / "bundle.yaml")
