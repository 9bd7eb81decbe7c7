# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from class_sets import CITYSCAPES19
from pydantic import ValidationError

from nightlab_core.labels import MAX_CLASSES
from nightlab_core.runtime.bundle import (
    Bundle,
    BundleError,
    EngineFile,
    EngineKind,
    Manifest,
    default_bundle,
    load_bundle,
    sha256_of,
    write_manifest,
)
from nightlab_core.runtime.engines.contract import check_contract
from nightlab_core.runtime.engines.engine import TensorSpec
from nightlab_core.runtime.engines.open import open_network


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.yaml"
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def _classes(count: int) -> dict[str, Any]:
    return {"names": [f"class {i}" for i in range(count)], "colors_rgb": [[i, 1, 2] for i in range(count)]}


def test_the_largest_number_of_classes_gives_a_class_set(copy: Path) -> None:
    edit(copy, lambda m: (m["classes"].update(_classes(MAX_CLASSES)), m.update(hard_classes=[])))
    assert len(load_bundle(copy).class_set) == MAX_CLASSES


def test_a_bundle_is_read_completely(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert bundle.class_set is CITYSCAPES19
    assert bundle.hard_class_ids == (5, 6)  # pole, traffic light
    assert bundle.path("region") == tiny_bundle / "region.onnx"
    assert bundle.manifest.engines.image.input_hw == (64, 96)
    assert bundle.manifest.engines.image.sha256 == sha256_of(tiny_bundle / "image.onnx")


def test_unknown_classes_form_a_class_set_named_after_the_bundle(copy: Path) -> None:
    edit(copy, lambda m: m["classes"].update(names=["pole", "rest"], colors_rgb=[[1, 2, 3], [4, 5, 6]]))
    edit(copy, lambda m: m.update(hard_classes=["pole"]))
    bundle = load_bundle(copy)
    assert bundle.class_set.key == "tiny"
    assert bundle.class_set.names == ("pole", "rest")
    assert bundle.hard_class_ids == (0,)


def test_sha256_of_a_file_equals_the_published_test_value(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_writing_and_reading_a_manifest_keeps_its_values_and_leaves_no_temporary_file(copy: Path) -> None:
    before = sorted(p.name for p in copy.iterdir())
    manifest = load_bundle(copy).manifest
    assert write_manifest(copy, manifest) == manifest
    assert load_bundle(copy).manifest == manifest
    assert sorted(p.name for p in copy.iterdir()) == before


def test_writing_a_manifest_without_its_onnx_files_fails(copy: Path) -> None:
    manifest = load_bundle(copy).manifest
    (copy / "region.onnx").unlink()
    text = (copy / "bundle.yaml").read_text()
    with pytest.raises(FileNotFoundError, match=r"region\.onnx"):
        write_manifest(copy, manifest)
    assert (copy / "bundle.yaml").read_text() == text


def test_a_folder_without_a_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.yaml: no such file; expected the folder of a bundle"):
        load_bundle(tmp_path / "nowhere")


def test_a_changed_file_is_refused(copy: Path) -> None:
    with (copy / "image.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(
        BundleError, match=r"image\.onnx: received SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; .* again"
    ):
        load_bundle(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "hardness.onnx").unlink()
    with pytest.raises(BundleError, match=r"hardness\.onnx: no such file; the hardness network"):
        load_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused_although_its_sha256_fits(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "image.onnx", tmp_path / "elsewhere.onnx")
    (copy / "image.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"received a link to .*elsewhere\.onnx, outside the bundle; copy the file"):
        load_bundle(copy)


def test_links_within_the_bundle_and_to_the_bundle_are_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "image.onnx").rename(copy / "network.onnx")
    (copy / "image.onnx").symlink_to("network.onnx")
    (tmp_path / "current").symlink_to(copy)
    assert load_bundle(tmp_path / "current").manifest.name == "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "received format 2, expected 1; export the bundle again, or update"),
        (lambda m: m.pop("format"), "received format None, expected 1"),
        (lambda m: m.update(format=True), "received format True, expected 1"),
        (lambda m: m.update(format=1.0), r"received format 1\.0, expected 1"),
        (lambda m: m.update(colour="red"), "key 'colour': received an unknown key"),
        (lambda m: m["engines"]["image"].update(widht=3), "key 'engines.image.widht': received an unknown key"),
        (lambda m: m["engines"]["image"].update(sha256=""), "expected one in bundle.yaml"),
        (lambda m: m["engines"]["image"].update(input_hw=[481, 640]), r"input_hw \(481, 640\) is not a multiple of 32"),
        (lambda m: m["engines"]["image"].update(input_hw=[0, 640]), "greater than or equal to 1"),
        (lambda m: m["engines"]["image"].update(input_hw=[64000, 64000]), "less than or equal to 4096"),
        (lambda m: m["engines"]["image"].update(input_hw=[4096, 4096]), "received 16777216 pixels .* at most 8388608"),
        (lambda m: m["engines"]["image"].update(input_hw=[10**9, 10**9], multiple=10**9), "less than or equal to 4096"),
        (lambda m: m["engines"]["region"].update(input_hw=[1024, 1024]), "received 10485760 pixels"),
        (lambda m: m["engines"]["region"].update(max_batch=True), "key 'engines.region.max_batch': received True"),
        (lambda m: m["engines"]["region"].update(max_batch=11), "less than or equal to 10"),
        (lambda m: m["engines"].pop("region"), "key 'engines.region': received nothing"),
        (lambda m: m["classes"].update(names=["pole"]), "1 names but 19 colours"),
        (lambda m: m["classes"].update(names=["road"] * 19), "distinct names"),
        (lambda m: m["classes"].update(_classes(MAX_CLASSES + 1)), "expected 1 to 254 distinct names"),
        (lambda m: m["classes"].update(ignore_id=254), "key 'classes.ignore_id'"),
        (lambda m: m["classes"].update(ignore_id=255.0), "key 'classes.ignore_id'"),
        (lambda m: m["classes"]["colors_rgb"].__setitem__(3, [0, 0, 256]), "less than or equal to 255"),
        (lambda m: m.update(hard_classes=["pole", "unicorn"]), r"\['unicorn'\] are not among the classes"),
        (lambda m: m.update(accuracy={"miou": "good"}), "key 'accuracy.miou': received 'good'"),
        (lambda m: m.update(weights="int4"), "key 'weights': received 'int4'"),
        (lambda m: m.update(name="x" * 101), "key .name.: received .* at most 100 characters"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_bundle(copy)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("file", ["../image.onnx", "/etc/passwd", "a/../../b.onnx", "C:\\b.onnx", "..\\b.onnx", ""])
def test_file_names_outside_the_folder_are_refused(file: str) -> None:
    with pytest.raises(ValidationError, match="inside the bundle's folder"):
        EngineFile(file=file, input_hw=(32, 32), multiple=32)


def test_a_file_in_a_subfolder_of_the_bundle_is_accepted() -> None:
    assert EngineFile(file="v1/image..onnx", input_hw=(32, 32), multiple=32).file == "v1/image..onnx"


def test_a_manifest_that_cannot_be_parsed_is_a_bundle_error(copy: Path) -> None:
    (copy / "bundle.yaml").write_text("a: [")
    with pytest.raises(BundleError, match="not readable as YAML"):
        load_bundle(copy)


def spec(dtype: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(np.dtype(dtype), shape)


GOOD = {
    "image": (
        {"frame": spec("uint8", 1, None, None, 3)},
        {"labels": spec("uint8", 1, None, None), "confidence": spec("uint8", None, None, None)},
    ),
    "hardness": (
        {"frame": spec("uint8", 1, None, None, 3)},
        {"boxes": spec("float32", 1, 300, 4), "scores": spec("float32", 1, None)},
    ),
    "region": (
        {"crops": spec("uint8", None, 256, 256, 3)},
        {"labels": spec("uint8", None, 256, 256), "confidence": spec("uint8", None, 256, 256)},
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_engines_that_keep_the_contract_are_accepted(kind: EngineKind) -> None:
    inputs, outputs = GOOD[kind]
    check_contract(kind, SimpleNamespace(inputs=inputs, outputs=outputs))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "side", "change", "message"),
    [
        ("image", 0, {"frame": spec("float32", 1, None, None, 3)}, r"input 'frame': received float32 \(1, \?, \?, 3\)"),
        ("image", 0, {"frame": spec("uint8", 1, 3, None, None)}, r"expected uint8 \(1, \?, \?, 3\)"),
        (
            "image",
            0,
            {"frame": spec("uint8", 1, 480, 640, 3)},
            r"received uint8 \(1, 480, 640, 3\), expected uint8 \(1, \?",
        ),
        ("image", 0, {"extra": spec("uint8", 1)}, r"inputs: received \['extra', 'frame'\], expected \['frame'\]"),
        ("image", 1, {"labels": spec("int64", 1, None, None)}, r"output 'labels': received int64"),
        (
            "hardness",
            1,
            {"boxes": spec("float32", 300, 4)},
            r"output 'boxes': received float32 \(300, 4\), expected float32",
        ),
        ("hardness", 1, {"boxes": spec("float32", 1, 300, 5)}, r"expected float32 \(\?, \?, 4\)"),
        (
            "region",
            0,
            {"crops": spec("uint8", 4, 256, 256, 3)},
            r"received uint8 \(4, 256, 256, 3\), expected uint8 \(\?",
        ),
    ],
)
def test_the_error_names_the_broken_part_of_the_contract(
    kind: EngineKind, side: int, change: dict[str, TensorSpec], message: str
) -> None:
    sides = list(GOOD[kind])
    sides[side] = {**sides[side], **change}
    with pytest.raises(BundleError, match=f"the {kind} network's .*{message}.*export the bundle again"):
        check_contract(kind, SimpleNamespace(inputs=sides[0], outputs=sides[1]))  # type: ignore[arg-type]


def test_real_engines_keep_the_contract(tiny_bundle: Path) -> None:
    bundle, make = load_bundle(tiny_bundle), open_network
    check_contract("image", make(bundle.path("image")))
    with pytest.raises(BundleError, match=r"the image network's inputs: received \['crops'\]"):
        check_contract("image", make(bundle.path("region")))


def test_a_loaded_bundle_cannot_be_changed(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    with pytest.raises(AttributeError):
        bundle.dir = Path()  # type: ignore[misc]
    assert isinstance(bundle, Bundle)
    assert isinstance(bundle.manifest, Manifest)


def test_the_shipped_bundle_loads() -> None:
    folder = default_bundle()
    assert folder.parts[-3:] == ("nightlab_core", "bundles", "nightlab-lite")
    assert load_bundle(folder).hard_class_ids
