# SPDX-License-Identifier: Apache-2.0
"""Play frames through the node and report. The command `nightlab demo` has the same options.

    python -m nightlab_ros.demo --input drive.mcap --rate 10 --out demo_out

Exit status: 0 when masks came back and each fits its frame; 1, with the reason, otherwise; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from nightlab_core.runtime.bundle import BundleError
from nightlab_ros.demo.demo import DemoSettings, parse_parameters, run_demo
from nightlab_ros.playback.player import add_arguments, settings_from


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and ROS's executable `nightlab_demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, default=DemoSettings.out, help="folder of the report (default: %(default)s)"
    )
    parser.add_argument("--param", action="append", default=[], metavar="NAME:=VALUE", help="a parameter of the node")
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    try:
        problems = run_demo(DemoSettings(settings_from(args), args.out, parse_parameters(args.param)), console)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        return 130
    except (BundleError, RuntimeError, ValueError, OSError) as error:
        console.print("[bold red]The demo failed:[/]", escape(str(error)), soft_wrap=True)
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
