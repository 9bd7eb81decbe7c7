# SPDX-License-Identifier: Apache-2.0
"""The command `nightlab`: one module for each sub-command, imported once it is asked for."""
