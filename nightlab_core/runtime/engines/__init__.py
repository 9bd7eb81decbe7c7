# SPDX-License-Identifier: Apache-2.0
"""Run the networks of a bundle on an inference library: one protocol, one module for each library."""

import sys

# OpenVINO's telemetry uses the network, and fails for a user without a home folder: OpenVINO then has none.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
