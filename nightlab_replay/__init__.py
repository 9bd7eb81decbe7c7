# SPDX-License-Identifier: Apache-2.0
"""Replay recorded bags through the pipeline, and report accuracy and latency together."""
