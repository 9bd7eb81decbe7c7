# SPDX-License-Identifier: Apache-2.0
"""Run the node under overload and random faults, and check that nothing is lost unseen. `make soak` runs it.

python tests/faults/soak.py [--minutes 20] [--out soak_out] [--seed 0]

The node runs in a process of its own, with engines that fail on demand and a simulated clock. Images come at twice the
rate that it sustains. Each round injects faults, changes parameters and lets time jump. It ends with a cleanup, with
kill -9, or with an engine that never answers; a node that has ended is started again, as `respawn` does. Exit status 0
means: all images are counted, all masks are right, memory is flat, every fault was reported, and no other error was.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from faulty_node import Fault  # noqa: E402
from ros_harness import Client, NodeProcess, wait_until  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from soak_faults import COUNTS, FAULTS, SoakCamera  # noqa: E402
from tiny_bundle import write_tiny_bundle  # noqa: E402

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
#: How rounds end, in random order.
ENDS = ("kill -9", "endless hang", *["lifecycle"] * 6)
#: Seconds by which time jumps between two faults.
JUMPS_S = (0, 0, 1, -500, 3600)
#: Sentences of what is injected beside FAULTS, by its name.
OTHER_FAULTS = {"negative clock": "a message on /clock is ignored", "endless hang": "deactivate failed: TimeoutError"}
#: Seconds after a fault in which its sentence may come, the same in the log, and those until the sentence must be gone.
WINDOW_S, LOG_WINDOW_S, GONE_S = 20.0, 90.0, 100.0
#: Highest growth of a process's memory from its second round on, in MB.
GROWTH_MB = 20.0


class SoakProcess(NodeProcess):
    """The node with faulty engines."""

    program = (str(ROOT / "tests" / "support" / "faulty_node.py"),)

    def memory_mb(self) -> float:
        """Return the resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


class Soak:
    """A node, a camera and a clock, and everything that was seen of them."""

    def __init__(self, bundle: Path, seed: int) -> None:
        self.random, self.bundle = random.Random(seed), bundle
        self.client = Client("soak")
        self.client.listen(DiagnosticArray, "/diagnostics")
        self.client.listen(Image, "nightlab/mask")
        self.camera = SoakCamera(self.client, seed)
        self.process = self.start()
        self.totals: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()
        self.unexplained: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.memory_mb: list[list[float]] = [[]]  #: of each process, after each round
        self.rates_hz: list[float] = []
        self.respawn_s: list[float] = []
        self.log: list[str] = []
        self.injections: dict[str, list[float]] = defaultdict(list)  #: all wall times by fault

    def run(self, minutes: float) -> dict[str, Any]:
        """Repeat rounds, and return the figures."""
        end_s = time.monotonic() + 60 * minutes
        faults, ends = self.shuffled(FAULTS), self.shuffled(ENDS)
        self.camera.begin()
        while time.monotonic() < end_s:
            self.round([next(faults) for _ in range(4)], next(ends))
        status = self.process.stop()
        self.client.close()
        self.read_log()
        return self.figures(minutes, status)

    def figures(self, minutes: float, status: int) -> dict[str, Any]:
        """Return everything that was counted, and whether it is as it should be."""
        growth_mb = max((life[-1] - life[1] for life in self.memory_mb if len(life) > 1), default=0.0)
        longest = max(self.memory_mb, key=len)
        figures = {
            "minutes": minutes,
            "rounds": sum(map(len, self.memory_mb)),
            "images_in": self.totals["published"],
            **{name: self.totals[name] for name in COUNTS},
            "in_the_engine_that_hangs": self.totals["unfinished"],
            "silent_losses": self.totals["published"] - self.totals["unfinished"] - sum(self.totals[n] for n in COUNTS),
            "wrong_masks": self.camera.wrong_masks,
            "sustained_hz": round(statistics.median(self.rates_hz), 1) if self.rates_hz else 0.0,
            "memory_mb": [round(memory, 1) for memory in (longest[:1] + longest[-1:])],
            "memory_growth_mb": round(growth_mb, 1),
            "kills": self.totals["kill -9"],
            "hangs": self.totals["endless hang"],
            "lifecycle_rounds": self.totals["lifecycle"],
            "respawn_s": [round(seconds, 1) for seconds in self.respawn_s],
            "last_exit_status": status,
            "injected": dict(sorted(self.injected.items())),
            "reported": dict(sorted(self.reported.items())),
            "warnings": dict(self.warnings.most_common()),
            "unexplained": dict(self.unexplained),
        }
        figures["passed"] = (
            (status, figures["silent_losses"], figures["wrong_masks"]) == (0, 0, 0)
            and growth_mb < GROWTH_MB
            and self.injected == self.reported
            and not self.unexplained
        )
        return figures

    def shuffled(self, items: Any) -> Iterator[str]:
        """Yield all items in random order, again and again."""
        while True:
            yield from self.random.sample(list(items), len(items))

    def start(self) -> SoakProcess:
        """Start the node."""
        return SoakProcess(
            "soak", bundle=str(self.bundle), autostart=True, use_sim_time=True, warn_drop_percent=85.0, max_regions=7
        )

    def round(self, faults: list[str], end: str) -> None:
        """Inject faults in one active period of the node, check its counts, and end it."""
        self.measure_rate()
        for fault in faults:
            self.change_parameters()
            self.camera.tick(self.random.choice(JUMPS_S))
            self.injects("negative clock")
            self.camera.set_clock(self.random.choice((int(self.camera.now_s), -5)))
            self.inject(fault)
        self.camera.send(20)
        if end == "endless hang":
            self.hang()
        lost = self.count(unfinished=2 if end == "endless hang" else 0)  # one in the engine, one that waits for it
        print(f"{self.camera.published} images, {lost} in no count: {', '.join((*faults, end))}", flush=True)
        self.camera.check_masks()
        self.memory_mb[-1].append(self.process.memory_mb())
        self.totals[end] += 1
        self.respawn(end) if end != "lifecycle" else self.lifecycle()

    def measure_rate(self) -> None:
        """Flood the node, and send at twice the rate of its masks from now on."""
        self.camera.period_s = 0.005
        self.camera.send(300)
        rate_hz = float(self.client.diagnostics(lambda values: float(values.get("rate_hz", 0)) > 0)["rate_hz"])
        self.rates_hz.append(rate_hz)
        self.camera.period_s = min(0.5 / rate_hz, 0.2)

    def change_parameters(self) -> None:
        """Set a good and a bad parameter; both are answered."""
        assert self.client.set_parameter("max_regions", self.random.randint(1, 10)).successful
        assert not self.client.set_parameter("max_regions", 99).successful

    def inject(self, name: str) -> None:
        """Inject a fault until it is reported, then publish good images. No earlier fault may be the reason."""
        self.injected[name] += 1
        sentence = FAULTS[name].sentence
        wait_until(lambda: self.camera.send(10) or self.is_over(sentence), f"the end of {sentence!r}", GONE_S)
        for _ in range(40):
            self.injects(name)
            FAULTS[name].inject(self.camera)
            self.injects(name)
            if self.sees(sentence):
                self.reported[name] += 1
                break
        self.camera.send(10)

    def injects(self, name: str) -> None:
        """Note that a fault is injected now."""
        self.injections[name].append(time.time())

    def hang(self) -> None:
        """Let the engine hang until the node says that no mask comes out."""
        self.injected["endless hang"] += 1
        self.camera.send(1, Fault.HANGS, expects_mask=False)
        self.client.diagnostics(lambda values: "frame_in_progress_s" in values)
        self.camera.send(10)
        wait_until(self.hangs, "the report of the engine that hangs")
        self.reported["endless hang"] += 1

    def hangs(self) -> bool:
        """Publish an image; returns True if the node says that no mask comes out."""
        self.injects("image engine is slow")  # whose sentence it is
        self.camera.send(1)
        return self.sees("no mask came out")

    def count(self, unfinished: int) -> int:
        """Add the node's counts when they hold every image but those; return how many are missing in the end."""
        wanted = self.camera.published - unfinished
        try:
            values = self.client.diagnostics(lambda v: sum(int(v[name]) for name in COUNTS) >= wanted)
        except AssertionError:
            values = self.client.diagnostics()
        for name in COUNTS:
            self.totals[name] += int(values[name])
        self.totals["published"] += self.camera.published
        self.totals["unfinished"] += unfinished
        return wanted - sum(int(values[name]) for name in COUNTS)

    def lifecycle(self) -> None:
        """Go through the lifecycle, and count from the next subscription on."""
        for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
            assert self.client.change_state(transition), f"transition {transition} was refused"
        self.camera.begin()

    def respawn(self, end: str) -> None:
        """End the process, which is killed or cannot end its engine, and start it again."""
        if end == "kill -9":
            assert self.process.stop(signal.SIGKILL) == -signal.SIGKILL
        else:
            self.injects("image engine is slow")
            self.injects("endless hang")
            assert not self.client.change_state(DEACTIVATE)
            wait_until(lambda: self.sees("deactivate failed: TimeoutError"), "the report of the transition")
            assert self.process.stop(signal.SIGTERM) == 1
        self.read_log()
        begin_s = time.monotonic()
        self.client.messages["nightlab/mask"].clear()
        self.memory_mb.append([])
        self.process = self.start()
        wait_until(lambda: self.camera.send(1) or self.camera.masks(), "a mask of the next process")
        self.respawn_s.append(time.monotonic() - begin_s)
        self.camera.begin()

    def sees(self, sentence: str) -> bool:
        """Return True if diagnostics since the last look contain a sentence."""
        return any(sentence in message for message in self.messages())

    def is_over(self, sentence: str) -> bool:
        """Return True if diagnostics have come since the last look, and the last ones do not contain a sentence."""
        messages = self.messages()
        return bool(messages) and sentence not in messages[-1]

    def messages(self) -> list[str]:
        """Take the sentences of the diagnostics that have come; errors without a fault and warnings are counted."""
        found = [s for array in list(self.client.messages["/diagnostics"]) for s in array.status]
        self.client.messages["/diagnostics"].clear()
        for status in found:
            if status.level[0] == 2:
                for error in re.split(r"; (?=a frame failed: )", status.message):
                    self.explain(error, time.time(), WINDOW_S)
            elif status.level[0] == 1:
                self.warnings.update(re.sub(r"[\d.]+", "#", part)[:80] for part in status.message.split("; "))
        return [status.message for status in found]

    def read_log(self) -> None:
        """Keep the log of a process that has ended; its errors must have a fault."""
        self.log += self.process.log
        for line in self.process.log:
            if re.search(r"\[(ERROR|FATAL)\]|Traceback|terminate called", line):
                logged = re.search(r"\] \[(\d+\.\d+)\]", line)
                self.explain(line, float(logged[1]) if logged else 0.0, LOG_WINDOW_S)

    def explain(self, error: str, at_s: float, window_s: float) -> None:
        """Count an error unless it has the sentence of a fault that was injected in the seconds before its time."""
        sentences = OTHER_FAULTS | {name: fault.sentence for name, fault in FAULTS.items()}
        for name, sentence in sentences.items():
            if sentence in error and any(0 <= at_s - injected_s < window_s for injected_s in self.injections[name]):
                return
        self.unexplained[error[:160]] += 1


def main() -> int:
    """Run, and write the figures as JSON and as a table; returns 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("soak_out"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    soak = Soak(write_tiny_bundle(given.out / "bundle"), given.seed)
    try:
        figures = soak.run(given.minutes)
    finally:
        (given.out / "node.log").write_text("".join([*soak.log, *soak.process.log]), encoding="utf-8")
    (given.out / "soak.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:26} {value}")
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
