# SPDX-License-Identifier: Apache-2.0
"""The form of the Markdown pages, and their links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "nightlab_*/**/*.md")
    for path in ROOT.glob(pattern)
)
MAX_LINE, MAX_COLUMNS = 120, 8
LINK_DEFINITION = re.compile(r"\[[\w-]+\]: https://\S+")  # an address cannot be wrapped


def lines(page: str) -> list[str]:
    return (ROOT / page).read_text(encoding="utf-8").splitlines()


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_lines_fit_and_tables_are_narrow(page: str) -> None:
    numbered = list(enumerate(lines(page), 1))
    long = [n for n, line in numbered if len(line) > MAX_LINE and not LINK_DEFINITION.fullmatch(line)]
    assert long == [], f"{page}: lines of more than {MAX_LINE} characters"
    rows = [(n, line) for n, line in numbered if line.startswith("|")]
    wide = [n for n, line in rows if len(re.findall(r"(?<!\\)\|", line)) - 1 > MAX_COLUMNS]
    assert wide == [], f"{page}: table rows of more than {MAX_COLUMNS} columns"


def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    folder = (ROOT / page).parent
    defined = set(re.findall(r"^\[([\w-]+)\]: ", text, re.M))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == defined
    missing = [link for link in links if "://" not in link and not (folder / link.partition("#")[0]).exists()]
    assert missing == []


def test_files_that_a_page_names_exist(page: str) -> None:
    """Paths in backticks from the repository's folder on, without placeholders in capitals."""
    folders = "nightlab_core|nightlab_replay|nightlab_ros|nightlab_cli|training|tests|docs|config|requirements|launch"
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    named = set(re.findall(rf"`((?:{folders})/[a-z0-9_./-]+)`", text))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
