# SPDX-License-Identifier: Apache-2.0
"""Captures: the service `~/capture`, captures at low confidence, and their folder."""
