# SPDX-License-Identifier: Apache-2.0
"""What runs in the vehicle: numpy, OpenCV and one inference library, never torch. Start with `pipeline.py`."""
