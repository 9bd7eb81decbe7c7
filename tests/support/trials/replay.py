# SPDX-License-Identifier: Apache-2.0
"""`python -m trials.replay [compare] WORDS`: run `nightlab replay` or `nightlab compare`; --rate becomes --speed."""

import sys

from trials import run

if __name__ == "__main__":
    words = ["--speed" if word == "--rate" else word for word in sys.argv[1:]]
    if words[:1] == ["compare"]:
        run("compare", words[1:])
    else:
        run("replay", words)
