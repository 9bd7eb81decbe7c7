# SPDX-License-Identifier: Apache-2.0
"""`python -m trials.demo OPTIONS`: run `nightlab demo OPTIONS`."""

import sys

from trials import run

if __name__ == "__main__":
    run("demo", sys.argv[1:])
