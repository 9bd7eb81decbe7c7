# SPDX-License-Identifier: Apache-2.0
"""Run the command as `python -m nightlab_cli`, for use from the repository without an installation."""

from nightlab_cli.main import main

main()
