# SPDX-License-Identifier: Apache-2.0
"""What the node publishes of a frame: the publishers and the conversion of results to messages."""
