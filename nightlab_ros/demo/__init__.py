# SPDX-License-Identifier: Apache-2.0
"""Demo of the vehicle's whole path: play frames through the node, and report masks, latency and accuracy."""
