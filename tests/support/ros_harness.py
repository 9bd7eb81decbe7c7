# SPDX-License-Identifier: Apache-2.0
"""A node in a process of its own, and a client in this one that talks to it over real DDS."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from nightlab_ros.publishing.messages import image_message
from nightlab_ros.transport.profile import profile_path, profile_variable

ROOT = Path(__file__).parents[2]


def _claimed(domains: range) -> tuple[int, socket.socket]:
    """A domain that no other process uses, and the socket that holds it.

    Demos claim theirs by sockets of the same names: `claim_domain` in nightlab_ros/playback/processes.py.
    """
    for step in range(len(domains)):
        domain = domains[(os.getpid() + step) % len(domains)]  # the outside checks begin with the same one
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0nightlab_domain_{domain}")
        except OSError:
            claim.close()
        else:
            return domain, claim
    raise AssertionError(f"other processes use all domains from {domains[0]} to {domains[-1]}")


#: A domain of this process, so that tests can run in parallel.
DOMAIN, CLAIM = _claimed(range(1, 102))
#: One more, for nodes that nobody spins: their services outlive them until garbage collection.
SILENT_DOMAIN, SILENT_CLAIM = _claimed(range(162, 222))
#: The domain, and the transport that carries large images.
ENVIRONMENT = {
    "ROS_DOMAIN_ID": str(DOMAIN),
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    profile_variable(): str(profile_path()),
    "OMP_NUM_THREADS": "1",
}
PATIENCE_S = 120.0
#: The node, which waits longer for its engines before it ends: a busy machine is no engine that hangs.
PATIENT_NODE = f"import sys; from nightlab_ros import node; node.STOP_TIMEOUT_S = {PATIENCE_S}; sys.exit(node.main())"


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value. AssertionError, with what was waited for, when patience ends."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {patience_s} s for {what}")


class NodeProcess:
    """The node with parameters, its log read line by line."""

    program: tuple[str, ...] = ("-c", PATIENT_NODE)  #: what Python runs

    def __init__(self, namespace: str = "", **parameters: Any) -> None:
        command = [sys.executable, *self.program, "--ros-args", "-r", f"__ns:=/{namespace}"]
        command += parameter_arguments(parameters)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.log.extend(iter(self._process.stdout.readline, ""))

    def logged(self, pattern: str) -> list[str]:
        """The lines of the log that match."""
        return [line for line in list(self.log) if re.search(pattern, line)]

    def wait_for_log(self, pattern: str) -> str:
        """The first line of the log that matches, as soon as there is one."""
        try:
            return wait_until(lambda: self.logged(pattern), f"{pattern!r} in the log")[0]
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{''.join(self.log)}") from None

    def end(self) -> int:
        """The exit status, when the process ends by itself."""
        status = self._process.wait(PATIENCE_S)
        self._reader.join()
        return status

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, by: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the exit status."""
        if self.is_running():
            self._process.send_signal(by)
        try:
            return self.end()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@contextlib.contextmanager
def node_in_process(**parameters: Any) -> Iterator[Any]:
    """A node in this process, which nobody spins: for its start and for transitions that are triggered by hand."""
    from nightlab_ros.node import NightLabNode

    os.environ.update(ENVIRONMENT)
    context = Context()
    rclpy.init(args=["--ros-args", *parameter_arguments(parameters)], context=context, domain_id=SILENT_DOMAIN)
    try:
        node = NightLabNode(context=context)
        try:
            yield node
        finally:
            node.close()
            node.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def parameter_arguments(parameters: dict[str, Any]) -> list[str]:
    """Parameters as on ROS's command line."""
    return [word for name, value in parameters.items() for word in ("-p", f"{name}:={json.dumps(value)}")]


class Client:
    """Publishes images, collects what the node publishes, and calls its services; its executor has its own thread."""

    def __init__(self, namespace: str = "") -> None:
        os.environ.update(ENVIRONMENT)
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("client", namespace=namespace, context=self.context)
        self.messages: dict[str, list[Any]] = defaultdict(list)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()
        self._services: dict[str, Any] = {}
        self._stamp_ns = 0

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        rclpy.shutdown(context=self.context)
        self._thread.join()
        self.node.destroy_node()

    def listen(self, message_type: Any, topic: str, qos: Any = 10) -> Any:
        """Collect messages under ``messages[topic]``; returns the subscription."""
        return self.node.create_subscription(message_type, topic, self.messages[topic].append, qos)

    def wait_for(self, topic: str, condition: Callable[[Any], Any] = lambda message: True) -> Any:
        """The first message collected on a topic for which the condition holds."""
        return wait_until(
            lambda: next((m for m in list(self.messages[topic]) if condition(m)), None), f"such a message on {topic}"
        )

    def call(self, service_type: Any, name: str, request: Any, again_s: float = 2.0) -> Any:
        """The first answer. The request is sent again until it comes, so that sending it twice must do no harm.

        The first request, or its answer, is lost where one side does not know the other yet.
        """
        if name not in self._services:
            self._services[name] = self.node.create_client(service_type, name)
        client = self._services[name]
        assert client.wait_for_service(PATIENCE_S), f"no service {name}"
        futures: list[Any] = []
        due_s = time.monotonic()

        def answers() -> list[Any]:
            nonlocal due_s
            if time.monotonic() >= due_s:
                futures.append(client.call_async(request))
                due_s += again_s
            return [future for future in futures if future.done()]

        return wait_until(answers, f"an answer of {name}")[0].result()

    def change_state(self, transition: int) -> bool:
        name = "nightlab/change_state"
        if name not in self._services:  # a transition is sent once: a label that no node has opens both ways
            self.call(ChangeState, name, ChangeState.Request(transition=Transition(label="none")))
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, name, request, again_s=math.inf).success

    def state(self) -> str:
        return self.call(GetState, "nightlab/get_state", GetState.Request()).current_state.label

    def set_parameter(self, name: str, value: Any) -> SetParametersResult:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return self.call(SetParameters, "nightlab/set_parameters", request).results[0]

    def next_header(self) -> Any:
        """A header of the present, whose stamp no other message has."""
        self._stamp_ns = max(self._stamp_ns + 1, time.time_ns())
        header = Image().header
        header.stamp.sec, header.stamp.nanosec = divmod(self._stamp_ns, 10**9)
        header.frame_id = "front_camera"
        return header

    def image(self, pixels: np.ndarray, encoding: str = "bgr8") -> Image:
        return image_message(pixels, encoding, self.next_header())

    def compressed(self, data: bytes, image_format: str) -> CompressedImage:
        return CompressedImage(header=self.next_header(), format=image_format, data=array("B", data))

    def connect(self, message: Any, topic: str = "image", answer: str = "nightlab/mask") -> Any:
        """Publish a message until its answer comes, which shows that both ways are open; returns the publisher."""
        publisher = self.node.create_publisher(type(message), topic, 1)
        self.listen(Image, answer)

        def asked() -> bool:
            publisher.publish(message)
            time.sleep(0.1)
            return bool(self.messages[answer])

        wait_until(asked, f"the first message on {answer}")
        time.sleep(0.2)  # answers to what was asked more than once
        return publisher

    def ask(self, publisher: Any, message: Any, answer: str = "nightlab/mask") -> Any:
        """Publish an image and return the message on the answer's topic that has the same stamp."""
        publisher.publish(message)
        return self.wait_for(answer, lambda m: m.header.stamp == message.header.stamp)

    def diagnostics(self, condition: Callable[[dict[str, str]], Any] = lambda values: True) -> dict[str, str]:
        """Values, with "level" and "message", of the next diagnostics for which the condition holds."""
        if "/diagnostics" not in self.messages:
            self.listen(DiagnosticArray, "/diagnostics")
        self.messages["/diagnostics"].clear()
        message = self.wait_for("/diagnostics", lambda m: condition(diagnostic_values(m)))
        return diagnostic_values(message)


def diagnostic_values(message: DiagnosticArray) -> dict[str, str]:
    (status,) = message.status
    values = {pair.key: pair.value for pair in status.values}
    return {**values, "level": str(status.level[0]), "message": status.message, "name": status.name}


def pixels_of(message: Image) -> np.ndarray:
    """mono8 as uint8 (H, W), bgr8 as uint8 (H, W, 3)."""
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, -1).squeeze()
