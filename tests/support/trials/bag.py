# SPDX-License-Identifier: Apache-2.0
"""`python -m trials.bag SOURCE OUT OPTIONS`: run `nightlab bag SOURCE --out OUT OPTIONS`."""

import sys

from trials import run

if __name__ == "__main__":
    source, *rest = sys.argv[1:]
    run("bag", [source, "--out", *rest])
