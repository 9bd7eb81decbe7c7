# SPDX-License-Identifier: Apache-2.0
"""Run a bundle in the vehicle with numpy, OpenCV and one inference library, without torch. Start with `pipeline.py`."""
