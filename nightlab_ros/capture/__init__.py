# SPDX-License-Identifier: Apache-2.0
"""Captures: what a camera saw, written into a folder on request or by itself."""
