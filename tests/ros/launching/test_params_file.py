# SPDX-License-Identifier: Apache-2.0
"""A file of parameters that does not fit the node is an error before the node starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightlab_ros.params_file import check_params_file


@pytest.mark.parametrize("node", ["/nightlab", "/front/nightlab"])
@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("/**", {"/nightlab", "/front/nightlab"}),
        ("nightlab", {"/nightlab"}),
        ("/nightlab", {"/nightlab"}),
        ("/*", {"/nightlab"}),
        ("/front/nightlab", {"/front/nightlab"}),
        ("/front/*", {"/front/nightlab"}),
        ("/*/nightlab", {"/front/nightlab"}),
        ("/**/nightlab", {"/nightlab", "/front/nightlab"}),
        ("nightlab_node", set()),
        ("/rear/nightlab", set()),
    ],
)
def test_the_name_in_the_file_must_match_the_node(tmp_path: Path, node: str, name: str, fits: set[str]) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"{name}:\n  ros__parameters:\n    engine: openvino\nother:\n  ros__parameters: {{a: 1}}\n")
    if node in fits:
        check_params_file(path, node)
    else:
        with pytest.raises(ValueError, match=r"own\.yaml has parameters of .*, /other; expected /"):
            check_params_file(path, node)


def test_a_namespace_may_be_a_level_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("front:\n  nightlab:\n    ros__parameters:\n      engine: openvino\n")
    check_params_file(path, "/front/nightlab")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "expected a mapping of keys to values"),
        ("engine: openvino\n", "no node with ros__parameters"),
        ("nightlab: [1\n", "not readable as YAML"),
    ],
)
def test_a_file_without_parameters_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        check_params_file(path, "/nightlab")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "nope.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"params_file: {path}: {reason}; expected a YAML file of parameters"):
            check_params_file(path, "/nightlab")
