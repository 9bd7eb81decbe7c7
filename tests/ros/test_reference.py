# SPDX-License-Identifier: Apache-2.0
"""The reference pages of parameters, topics and inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightlab_core.data.images import ENCODINGS
from nightlab_core.runtime.pipeline import STAGES as PIPELINE_STAGES
from nightlab_ros.parameters import NodeSettings
from nightlab_ros.reference import PAGES, main
from nightlab_ros.topics import PUBLICATIONS, STAGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    if not DOCS.is_dir():
        pytest.skip("the package is tested without docs")
    current = (DOCS / name).read_text(encoding="utf-8")
    assert current == PAGES[name](), "run: python -m nightlab_ros.reference docs"


def test_the_command_writes_every_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(PAGES)
    assert main([]) == 2 and "expected the folder of the pages" in capsys.readouterr().err


def test_every_parameter_topic_and_stage_is_described() -> None:
    parameters, topics = PAGES["parameters.md"](), PAGES["topics.md"]()
    for name in NodeSettings.model_fields:
        assert f"## `{name}`\n" in parameters
    for topic in PUBLICATIONS:
        assert f"### `{topic.name}`\n" in topics
    assert set(PIPELINE_STAGES) < set(STAGES)


def test_every_encoding_and_the_rule_for_palettes_are_described() -> None:
    page = PAGES["what-is-read.md"]()
    for name in ENCODINGS:
        assert f"`{name}`" in page
    assert all(f"\n{number}. " in page for number in range(1, 5))
