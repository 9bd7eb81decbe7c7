# SPDX-License-Identifier: Apache-2.0
"""Fuzz the readers of data from outside, guided by coverage. `make fuzz` runs it; it needs atheris.

python tests/fuzz/fuzz.py --seconds 120 [TARGET ...]

Each target starts from its corpus, uses at most 2 GiB and 20 s for one input, and stops at the first fault, whose input
is left in the working folder. Put that input into the corpus: the test of the corpus then covers it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
#: What is instrumented, so that the fuzzer sees which lines an input reaches.
PACKAGES = ["nightlab_core", "yaml", "rosbags"]


def main() -> int:
    """Run the targets one after another, each in a process of its own; returns the number of those with a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("targets", nargs="*", help="names of targets; all if none is given")
    parser.add_argument("--seconds", type=int, default=120, help="time for each target")
    parser.add_argument("--here", action="store_true", help="fuzz the one target in this process")
    given = parser.parse_args()
    if given.here:
        _fuzz(given.targets[0], given.seconds)
    sys.path.insert(0, str(HERE.parent / "support"))
    from fuzz_targets import TARGETS

    if unknown := set(given.targets) - set(TARGETS):
        parser.error(f"received the targets {sorted(unknown)}; expected {', '.join(TARGETS)}")
    failed = []
    for name in given.targets or TARGETS:
        print(f"{name}: {given.seconds} s", flush=True)
        command = [sys.executable, __file__, "--here", "--seconds", str(given.seconds), name]
        # OpenCV writes several lines for every image that it refuses.
        if subprocess.run(command, check=False, env={**os.environ, "OPENCV_LOG_LEVEL": "OFF"}).returncode:
            failed.append(name)
    print(f"faults in {', '.join(failed)}" if failed else "no faults")
    return len(failed)


def _fuzz(name: str, seconds: int) -> None:
    """Fuzz one target. Does not return."""
    import atheris

    sys.path.insert(0, str(HERE.parent / "support"))
    with atheris.instrument_imports(include=PACKAGES):
        from fuzz_targets import TARGETS
    with tempfile.TemporaryDirectory() as found:  # new inputs stay out of the repository
        options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=65536", "-verbosity=1"]
        atheris.Setup([sys.argv[0], *options, found, str(HERE / "corpus" / name)], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
