# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, and of two runs compared: the contents of report.json and compare.json."""
