# SPDX-License-Identifier: Apache-2.0
"""Settings of hypothesis for all tests of this folder: the same examples in every run, and no limit on their time."""

from __future__ import annotations

try:
    from hypothesis import settings
except ImportError:  # the tests are then skipped
    pass
else:
    settings.register_profile("nightlab", derandomize=True, deadline=None, max_examples=60, database=None)
    settings.load_profile("nightlab")
