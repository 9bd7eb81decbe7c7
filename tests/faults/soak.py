# SPDX-License-Identifier: Apache-2.0
"""Run the node under overload and random faults, and check that nothing is lost unseen. `make soak` runs it.

python tests/faults/soak.py [--minutes 20] [--out soak_out] [--seed 0]

The node runs in a process of its own, with engines that fail on demand and a simulated clock. Images come at twice the
rate that it sustains. Each round injects faults, changes parameters, lets time jump, and ends with a cleanup. Exit
status 0 means: all images are counted, memory is flat, every fault was reported, and no other error was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from fault_harness import picture  # noqa: E402
from faulty_node import Fault  # noqa: E402
from ros_harness import Client, NodeProcess, wait_until  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from tiny_bundle import write_tiny_bundle  # noqa: E402

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
#: Fault -> part of the sentence in /diagnostics.
SENTENCES = {
    Fault.IMAGE_RAISES: "the image engine failed",
    Fault.HARDNESS_RAISES: "the hardness engine failed",
    Fault.REGION_RAISES: "the region engine failed",
    Fault.HARDNESS_NAN: "scores with nan",
    Fault.UNKNOWN_CLASS: "the image network: received label 200",
    Fault.OTHER_SHAPE: "the image network: received labels uint8",
    Fault.FLOAT_CONFIDENCE: "the image network: received confidence float32",
    Fault.REGION_UNKNOWN_CLASS: "the region network: received label 200",
    Fault.IMAGE_EXITS: "SystemExit",
    Fault.SLOW: "no mask came out",
}
COUNTS = ("processed", "failed", "dropped")


class SoakProcess(NodeProcess):
    """The node with faulty engines."""

    program = (str(ROOT / "tests" / "support" / "faulty_node.py"),)

    def memory_mb(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


class Soak:
    """A node, a camera and a clock, and everything that was seen of them."""

    def __init__(self, bundle: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.process = SoakProcess("soak", bundle=str(bundle), autostart=True, use_sim_time=True)
        self.client = Client("soak")
        self.camera = self.client.connect(self.client.image(picture()))
        self.clock = self.client.node.create_publisher(Clock, "/clock", 10)
        self.now_s = 1000
        self.totals: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()
        self.unexplained: Counter[str] = Counter()
        self.memory_mb: list[float] = []
        self.rates_hz: list[float] = []
        self.period_s = 0.05

    def run(self, minutes: float) -> dict[str, Any]:
        """Repeat rounds, and return the figures."""
        end_s = time.monotonic() + 60 * minutes
        self.restart()  # images from before the subscription was matched are in no count
        while time.monotonic() < end_s:
            self.round()
        status = self.process.stop()
        self.client.close()
        settled = self.memory_mb[len(self.memory_mb) // 4 :] or [0.0]
        figures = {
            "minutes": minutes,
            "exit_status": status,
            "rounds": self.totals.pop("rounds"),
            "images_in": self.totals.pop("published"),
            **{name: self.totals[name] for name in COUNTS},
            "sustained_hz": sorted(self.rates_hz)[len(self.rates_hz) // 2],
            "memory_mb_first": settled[0],
            "memory_mb_last": settled[-1],
            "injected": dict(self.injected),
            "reported": dict(self.reported),
            "unexplained": dict(self.unexplained),
        }
        figures["silent_losses"] = figures["images_in"] - sum(figures[name] for name in COUNTS)
        figures["passed"] = (
            status == 0
            and figures["silent_losses"] == 0
            and figures["memory_mb_last"] - figures["memory_mb_first"] < 20
            and not set(self.injected) - set(self.reported)
            and not self.unexplained
        )
        return figures

    def round(self) -> None:
        """Inject a few faults in one active period of the node, and check its counts at the end."""
        published = self.measure_rate()
        for fault in self.random.sample(list(SENTENCES), 3):
            self.change_parameters()
            self.now_s = max(0, self.now_s + self.random.choice((1, 1, 1, -500, 3600)))
            published += self.inject(fault)
        published += self.send(Fault.NONE, 20)
        values = self.settled(published)
        for name in COUNTS:
            self.totals[name] += int(values[name])
        self.totals["published"] += published
        self.totals["rounds"] += 1
        self.memory_mb.append(self.process.memory_mb())
        self.restart()

    def measure_rate(self) -> int:
        """Flood the node, and send at twice the rate of its masks from now on; return the number of images."""
        self.period_s = 0.005
        published = self.send(Fault.NONE, 300)
        rate_hz = float(self.client.diagnostics(lambda values: float(values.get("rate_hz", 0)) > 0)["rate_hz"])
        self.rates_hz.append(rate_hz)
        self.period_s = min(0.5 / rate_hz, 0.2)
        return published

    def inject(self, fault: Fault) -> int:
        """Publish images with a fault until it is reported, then good ones; return the number of images."""
        self.injected[fault.name] += 1
        published = 0
        for _ in range(40):
            self.client.messages["/diagnostics"].clear()
            published += self.send(fault, 1 if fault == Fault.SLOW else 10)
            published += self.send(Fault.NONE, 25) if fault == Fault.SLOW else 0
            if any(SENTENCES[fault] in message for message in self.messages()):
                self.reported[fault.name] += 1
                break
        return published + self.send(Fault.NONE, 10)

    def send(self, fault: Fault, number: int) -> int:
        """Publish images at twice the sustained rate, with the clock; return their number."""
        for _ in range(number):
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = self.now_s, self.random.randrange(10**9)
            self.clock.publish(clock)
            self.camera.publish(self.client.image(picture(fault)))
            time.sleep(self.period_s)
        return number

    def messages(self) -> list[str]:
        """Sentences of the last diagnostics; those that no fault explains are counted."""
        found = [s for array in list(self.client.messages["/diagnostics"]) for s in array.status]
        for status in found:
            if status.level[0] == 2 and not any(part in status.message for part in SENTENCES.values()):
                self.unexplained[status.message[:120]] += 1
        return [status.message for status in found]

    def change_parameters(self) -> None:
        """Set a good and a bad parameter; both are answered."""
        assert self.client.set_parameter("max_regions", self.random.randint(0, 10)).successful
        assert not self.client.set_parameter("max_regions", 99).successful

    def settled(self, published: int) -> dict[str, str]:
        """Return diagnostics that count every image, or the last ones after a minute."""
        try:
            return self.client.diagnostics(lambda v: sum(int(v.get(n, 0)) for n in COUNTS) >= published)
        except AssertionError:
            return self.client.diagnostics()

    def restart(self) -> None:
        """Go through the lifecycle, and wait until the node subscribes again."""
        self.client.messages["nightlab/mask"].clear()
        for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
            assert self.client.change_state(transition), f"transition {transition} was refused"
        # Nothing is published while no subscription is matched: such an image reaches nobody.
        wait_until(lambda: self.camera.get_subscription_count() > 0, "the node's subscription")
        wait_until(lambda: self.client.node.count_subscribers("/soak/image") == 1, "one subscription")
        time.sleep(1.0)


def main() -> int:
    """Run, and write the figures as JSON and as a table; returns 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("soak_out"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    soak = Soak(write_tiny_bundle(given.out / "bundle"), given.seed)
    soak.client.listen(DiagnosticArray, "/diagnostics")
    figures = soak.run(given.minutes)
    (given.out / "soak.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (given.out / "node.log").write_text("".join(soak.process.log), encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:18} {value}")
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
