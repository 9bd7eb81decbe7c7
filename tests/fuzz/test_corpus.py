# SPDX-License-Identifier: Apache-2.0
"""Every input of the fuzzer's corpus, among them those that once caused a fault, is read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_targets import TARGETS

INPUTS = sorted((Path(__file__).parent / "corpus").glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_is_read_or_refused(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_each_target_has_a_corpus() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
