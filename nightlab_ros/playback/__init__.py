# SPDX-License-Identifier: Apache-2.0
"""Play frames or bags to the node from a process of their own, and record its masks: for the demo and live replay."""
