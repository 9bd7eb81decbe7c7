# SPDX-License-Identifier: Apache-2.0
"""A page opened in a real headless browser, offline: what it asked for, what it complained about, how wide it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: As root, and without a word to anyone.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Seen:
    """What was seen of a page; widths in CSS pixels."""

    text: str  #: as laid out
    requests: list[str]  #: of anything but the file itself and data within it
    complaints: list[str]  #: errors and warnings on the console, and uncaught exceptions
    page_width: int
    window_width: int
    broken_images: int
    unnamed_charts: int  #: SVG without a name for a screen reader


class Browser:
    """Opens pages from files."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    def look(self, page: Path, width: int = 1280, colours: str = "light") -> Seen:
        """Open a page in a window of its own; NIGHTLAB_SHOTS names a folder that screenshots go to."""
        context = self._chromium.new_context(
            viewport={"width": width, "height": 844}, color_scheme=colours, offline=True, device_scale_factor=1
        )
        requests: list[str] = []
        complaints: list[str] = []
        try:
            tab = context.new_page()
            tab.on("request", lambda r: requests.append(r.url))
            tab.on("pageerror", lambda e: complaints.append(str(e)))
            tab.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
            tab.goto(page.as_uri())
            if folder := os.environ.get("NIGHTLAB_SHOTS"):
                name = f"{page.parent.name}-{page.stem}-{width}-{colours}.png"
                tab.screenshot(path=str(Path(folder) / name), full_page=True)
            return Seen(
                text=tab.inner_text("body"),
                requests=[url for url in requests if url != page.as_uri() and not url.startswith("data:")],
                complaints=complaints,
                page_width=tab.evaluate("document.documentElement.scrollWidth"),
                window_width=tab.evaluate("window.innerWidth"),
                broken_images=tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length"),
                unnamed_charts=tab.evaluate(
                    "[...document.querySelectorAll('svg')]"
                    ".filter(s => s.getAttribute('role') !== 'img' || !s.getAttribute('aria-label')).length"
                ),
            )
        finally:
            context.close()

    def print(self, page: Path, pdf: Path) -> None:
        """Print a page on A4."""
        tab = self._chromium.new_page()
        tab.goto(page.as_uri())
        tab.pdf(path=str(pdf), format="A4")
        tab.close()


@contextmanager
def headless_browser() -> Iterator[Browser]:
    """Skips the test, with the reason, where there is no Chromium to drive."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements/test.txt")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no headless browser: none of {', '.join(_NAMES)} is on the PATH")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
