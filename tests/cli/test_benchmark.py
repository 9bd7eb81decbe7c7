# SPDX-License-Identifier: Apache-2.0
"""`nightlab benchmark` on the tiny bundle. No test asserts a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from command import nightlab

from nightlab_cli import benchmark_output
from nightlab_core.runtime.bundle import sha256_of
from nightlab_core.runtime.settings import PipelineSettings

QUICK = ("--runs", "2", "--warm-up", "0", "--image-size", "96x64", "--engine", "onnxruntime")


@pytest.fixture(autouse=True)
def known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_output, "matrix_peak_gflops", lambda arithmetic, threads: 100.0)


def test_it_prints_every_configuration_and_writes_json(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    sizes = ("--image-size", "64x64", "--engine", "openvino", "--regions", "0,3")
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, *sizes, "--json", file)
    assert done.status == 0, done.err
    for text in ("image level", "0 regions", "3 regions", "onnxruntime, float32, 96x64", "openvino", "of peak"):
        assert text in done.out
    assert max(map(len, done.out.splitlines())) <= 110
    written = json.loads(file.read_text())
    assert written["machine"] and written["versions"]["python"]
    assert written["bundle"]["sha256"]["image.onnx"] == sha256_of(tiny_bundle / "image.onnx")
    assert written["matrix_peak_gflops"] == {"float32": 100.0}
    found = [(figures["engine"], figures["frame_hw"]) for figures in written["figures"]]
    assert found == [
        ("onnxruntime", [64, 96]),
        ("openvino", [64, 96]),
        ("onnxruntime", [64, 64]),
        ("openvino", [64, 64]),
    ]
    for figures in written["figures"]:
        assert [row["regions"] for row in figures["pipelines"]] == [None, 0, 3]
        assert [network["shape"][0] for network in figures["networks"]] == [1, 1, 1, 3]


def test_a_checkpoint_is_measured_in_eager_pytorch(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from nightlab_core.models import engine as models_engine
    from nightlab_core.runtime.engines.engine import EngineOptions
    from nightlab_core.runtime.engines.open import Engines

    opened = []

    def open_checkpoint(path: Path) -> Engines:
        opened.append(path)
        return Engines.open(tiny_bundle, EngineOptions(engine="onnxruntime"))

    monkeypatch.setattr(models_engine, "open_checkpoint", open_checkpoint)
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, "--regions", "1", "--checkpoint", tmp_path / "a.pt")
    assert done.status == 0, done.err
    assert opened == [tmp_path / "a.pt"] and "image level x " in done.out


def test_accuracy_against_time_is_a_table_and_a_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    for part, channels in (("images", 3), ("labels", 1)):
        (tmp_path / "mine" / part).mkdir(parents=True)
        for index in range(5):
            image = np.full((64, 96, channels), 3 * index, np.uint8)
            cv2.imwrite(str(tmp_path / "mine" / part / f"{index}.png"), image)
    words = (
        "--data",
        tmp_path,
        "--dataset",
        "mine",
        "--frames",
        "3",
        "--regions",
        "0,2",
        "--scale",
        "1",
        "--scale",
        "2",
        "--deadline",
        "1.5",
    )
    out = tmp_path / "speed"
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, *words, "--out", out)
    assert done.status == 0, done.err
    for text in ("mine, 3 frames", "image level, by scale: 2", "both levels, by regions: 2", "time: 1.5", "in time"):
        assert text in done.out
    curves = json.loads((out / "benchmark.json").read_text())["curves"]
    assert [point["name"] for point in curves["mine"]] == ["1", "2", "2", "1.5"]
    kept = json.loads((out / "curve.json").read_text())
    assert kept["curves"] == curves and kept["cpu"] and kept["engine"] == "onnxruntime"
    assert kept["networks"]["image"] == sha256_of(tiny_bundle / "image.onnx")
    root = ElementTree.parse(out / "curve_mine.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "mine" in root.attrib["aria-label"]
    assert len(root.findall("{*}circle")) == 4 + 3  # the points, and the legend


def test_other_settings_are_compared_on_a_data_set(tiny_bundle: Path, tmp_path: Path) -> None:
    for part, channels in (("images", 3), ("labels", 1)):
        (tmp_path / "mine" / part).mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(tmp_path / "mine" / part / f"{index}.png"), np.full((64, 96, channels), index, np.uint8))
    words = ["--data", tmp_path, "--dataset", "mine", "--regions", "2", "--with", "hardness_every=2 carry_frames=4"]
    file = tmp_path / "speed.json"
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, *words, "--json", file)
    assert done.status == 0, done.err
    points = json.loads(file.read_text())["curves"]["mine"]
    assert [point["name"] for point in points] == ["1", "2", "hardness_every=2 carry_frames=4"]
    done = nightlab("benchmark", "--bundle", tiny_bundle, *words[:-1], "hardness=2")
    assert done.status != 0 and "hardness=2: expected NAME=VALUE with a name of" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regions", "0,11"], "expected numbers from 0 to 10"),
        (["--regions", "few"], "expected numbers from 0 to 10"),
        (["--engine", "onnx"], "expected one of auto, tensorrt"),
        (["--precision", "int3"], "expected one of auto, float32"),
        (["--image-size", "96"], "1280x720"),
        (["--runs", "0"], "--runs"),
        (["--data", "."], "--data and --dataset belong together"),
        (["--node", "--plans"], "exclude each other"),
        (["--node", "--checkpoint", "a.pt"], "exclude each other"),
        (["--summary", "--plans", "--node"], "exclude each other"),
        (["--dataset", "camvid/val"], "--data and --dataset belong together"),
        (["--node", "--engine", "openvino", "--engine", "onnxruntime"], "--engine: received 2 values"),
        (["--node", "--image-size", "64x64", "--image-size", "96x64"], "--image-size: received 2 values"),
    ],
)
def test_wrong_options_are_refused(words: list[str], said: str) -> None:
    done = nightlab("benchmark", *words)
    assert done.status == 2 and said in " ".join(done.err.replace("│", " ").split())


def test_more_regions_than_the_bundle_reads_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "small")
    manifest = tmp_path / "small" / "bundle.yaml"
    manifest.write_text(manifest.read_text().replace("max_batch: 10", "max_batch: 4"))
    done = nightlab("benchmark", "--bundle", tmp_path / "small", *QUICK, "--regions", "3,5")
    assert done.status == 2
    assert "--regions: received 5, but this bundle's max_batch is 4" in " ".join(done.err.replace("│", " ").split())


def test_the_summary_is_one_table_of_the_main_figures(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = SimpleNamespace(rate_hz=10.0, sent=100, lost=13)
    node = SimpleNamespace(at_rates=(trial,), overhead=SimpleNamespace(median_ms=2.5))
    monkeypatch.setattr(benchmark_output, "measure_node", lambda request, frame_hw, on_step: node)
    monkeypatch.setattr(benchmark_output, "asdict", lambda figures: {})
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, "--summary", "--node")
    assert done.status == 0, done.err
    lines = [line.strip() for line in done.out.splitlines()]
    default = PipelineSettings().max_regions
    for start, end in (
        (f"both levels, default of {default} regions, over image level", " x"),
        ("ten regions over image level", " x"),
        ("eager PyTorch over image level", "needs --checkpoint"),
        ("share of the matrix peak, image network", " %"),
        ("a region's own time, 10 in a call", " ms"),
        ("image network, pixels doubled", " x"),
        ("masks in time, deadline of 1.3 x image level", " %"),
        ("regions read by that deadline", ""),
        ("second camera on the same engines", " MiB"),
        ("node, 10 Hz: frames answered", "87 of 100"),
        ("node overhead, median", "2.50 ms"),
    ):
        assert [line.endswith(end) for line in lines if line.startswith(start)] == [True], start
    assert "p99" not in done.out and "onnxruntime, float32, 96x64" in done.out


def test_each_library_has_a_column_of_the_summary(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    words = ("--summary", "--engine", "openvino", "--regions", "1", "--json", file)
    done = nightlab("benchmark", "--bundle", tiny_bundle, *QUICK, *words)
    assert done.status == 0, done.err
    (row,) = [line.split() for line in done.out.splitlines() if line.strip().startswith("node overhead")]
    assert row[-4:] == ["needs", "--node"] * 2
    written = json.loads(file.read_text())
    assert len(written["camera_mib"]) == 2 and "regions in" in written["figures"][0]["choice"][0]
    assert [figures["deadline"]["factor"] for figures in written["figures"]] == [1.3, 1.3]


def test_a_json_file_that_is_no_report_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    done = nightlab("benchmark", "--json", tmp_path / "mine.json")
    assert done.status == 1 and "is no earlier report" in done.err
    assert (tmp_path / "mine.json").read_text() == '{"mine": 1}'
