# SPDX-License-Identifier: Apache-2.0
"""Measure the speed of a bundle: its networks, its pipeline, and accuracy against time. `nightlab benchmark`."""
