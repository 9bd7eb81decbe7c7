# SPDX-License-Identifier: Apache-2.0
"""The tables of degradations and faults: each row has its test, and diagnostics name the worst mode."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from nightlab_ros.monitoring import degradation
from nightlab_ros.monitoring.degradation import DEGRADATIONS, Degradation, Finding, worst_mode
from nightlab_ros.monitoring.health import ERROR, OK, WARN, Health
from nightlab_ros.monitoring.health_rules import LOADING_S, Facts, HealthLimits, judge

ROOT = Path(__file__).parents[2]
LIMITS = HealthLimits(age_ms=500.0)


FAULTS = (ROOT / "docs/reliability.md").read_text(encoding="utf-8").split("\n### ")[1:]


def exists(test: str) -> bool:
    """Return True if the file and the function of a test exist."""
    file, _, name = test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", DEGRADATIONS, ids=lambda row: row.fault[:40])
def test_each_row_names_a_test_that_exists(row: Degradation) -> None:
    assert exists(row.test)


def test_each_row_is_used_by_the_node() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nightlab_ros").rglob("*.py"))
    names = {name for name, value in vars(degradation).items() if isinstance(value, Degradation)}
    assert names and {name for name in names if f"dg.{name}(" not in sources} == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.splitlines()[0][:40])
def test_each_fault_of_the_page_has_what_was_seen_and_tests_that_exist(fault: str) -> None:
    assert "\n- expected: " in fault and "\n- seen: " in fault
    tests = re.findall(r"^- test: `(.*)`$", fault, re.M)
    assert tests and all(map(exists, tests))


def test_the_page_has_all_faults() -> None:
    assert len(FAULTS) > 30


def test_no_fault_stands_twice() -> None:
    assert len({row.fault for row in DEGRADATIONS}) == len(DEGRADATIONS) > 15


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(), (OK, "running", "full")),
        (
            Facts(refinement_error="NaN", refinement_lost_s=7.0),
            (WARN, "only the image level's mask, for 7 s: NaN", "image level only"),
        ),
        (
            Facts(failures=("bad",), refinement_error="NaN"),
            (ERROR, "a frame failed: bad; only the image level", "no masks"),
        ),
        (Facts(waited_s=3.0), (WARN, "images arrive, but no mask came out for 3 s", "no masks")),
        (Facts(waited_s=11.0), (ERROR, "images arrive, but no mask came out for 11 s", "no masks")),
        (Facts(waited_s=59.0, delay_reason="preparing"), (WARN, "preparing: no mask for 59 s", "no masks")),
        (Facts(waited_s=60.0, delay_reason="preparing"), (ERROR, "preparing: no mask for 60 s", "no masks")),
        (Facts(waited_s=60.0, delay_reason="loading", delay_s=LOADING_S), (WARN, "loading: no mask", "no masks")),
        (Facts(silence_s=None), (WARN, "no images yet", "no masks")),
        (Facts(age_ms=2000.0), (WARN, "masks are 2000 ms old", "full")),
    ],
)
def test_the_mode_is_the_worst_of_all_findings(facts: Facts, expected: tuple[int, str, str]) -> None:
    level, message, mode = judge(facts, LIMITS)
    assert (level, mode) == (expected[0], expected[2]) and message.startswith(expected[1])


def test_without_findings_the_mode_is_full() -> None:
    assert worst_mode([]) == "full"
    assert worst_mode([Finding(WARN, "", "image level only"), Finding(WARN, "", "full")]) == "image level only"


def test_diagnostics_hold_mode_and_last_good_stamp() -> None:
    health = Health()
    values = health.report(0.0, active=False).values
    assert (values["mode"], values["last_mask_stamp"]) == ("no masks", "")
