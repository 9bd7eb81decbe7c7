# SPDX-License-Identifier: Apache-2.0
"""Subscription that is reliable where every publisher of its topic is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # its name in ROS 2 Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

#: Seconds between two looks at the topic's publishers.
MATCH_PERIOD_S = 0.5
#: Values of a `qos_overrides` parameter that leave the choice to the node; the first one is the parameter's default.
#: Humble does not have the second.
AUTOMATIC = ("SYSTEM_DEFAULT", "BEST_AVAILABLE")
NAMES = {ReliabilityPolicy.RELIABLE: "reliable", ReliabilityPolicy.BEST_EFFORT: "best effort"}


class MatchedSubscription:
    """Subscribe with depth 1 as the publishers offer: reliable where every one is, best effort otherwise.

    Reliable publishers lose fewer large images, and a reliable subscription gets nothing from a best-effort one.
    Publishers that come and go are matched again. Parameters `qos_overrides.TOPIC.subscription.POLICY` of the node,
    for the policies reliability, depth and history, win.
    """

    def __init__(
        self,
        node: Node,
        message_class: type,
        topic: str,
        on_message: Callable[[Any, Any], None],
        on_lost: Callable[[int], None],
        on_match: Callable[[str, bool, Sequence[str]], None],
    ) -> None:
        """Subscribe. The functions are called by the node's executor.

        `on_message` gets a message and its info, `on_lost` the number of messages that the middleware reports as lost.
        `on_match` gets the reliability, whether a parameter sets it, and the full names of the publishing nodes, at
        once and at each change.
        """
        self._node, self._class, self._topic = node, message_class, topic
        self.topic = node.resolve_topic_name(topic)  #: full name, after remapping
        self._callback, self._on_lost, self._on_match = message_callback(on_message), on_lost, on_match
        self._fixed = False
        self._publishers: list[str] = []
        self._logged = ""
        infos = self._infos()
        self._subscription = self._subscribe(infos)
        self._report(infos)
        # The steady clock runs on when the simulated one stops.
        self._timer = node.create_timer(MATCH_PERIOD_S, self._match, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def reliability(self) -> str:
        """How the node subscribes: "reliable" or "best effort"."""
        return NAMES[self._subscription.qos_profile.reliability]

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)

    def _match(self) -> None:
        infos = self._infos()
        if infos and not self._fixed and self._subscription.qos_profile.reliability != _offered(infos):
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._subscribe(infos)
        elif _full_names(infos) == self._publishers:
            return
        self._report(infos)

    def _infos(self) -> list[Any]:
        return self._node.get_publishers_info_by_topic(self.topic)

    def _subscribe(self, infos: Sequence[Any]) -> Subscription:
        def choose(profile: QoSProfile) -> SetParametersResult:
            """Set the reliability that no parameter sets."""
            self._fixed = profile.reliability.name not in AUTOMATIC
            if not self._fixed:
                profile.reliability = _offered(infos)
            return SetParametersResult(successful=True)

        def subscribe(**events: Any) -> Subscription:
            return self._node.create_subscription(
                self._class,
                self._topic,
                self._callback,
                QoSProfile(depth=1, reliability=ReliabilityPolicy[AUTOMATIC[0]]),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(callback=choose),
                **events,
            )

        try:
            return subscribe(
                event_callbacks=SubscriptionEventCallbacks(message_lost=lambda e: self._on_lost(e.total_count_change))
            )
        except UnsupportedEventTypeError:
            self._node.get_logger().info("this middleware does not report lost images: 'lost' in /diagnostics stays 0")
            return subscribe()

    def _report(self, infos: Sequence[Any]) -> None:
        """Log and report how the node subscribes, and who publishes."""
        self._publishers = _full_names(infos)
        if self._fixed:
            reason = "as a qos_overrides parameter says"
        elif not infos:
            reason = "nobody publishes it yet"
        else:
            best_effort = [i for i in infos if i.qos_profile.reliability != ReliabilityPolicy.RELIABLE]
            deciding = _full_names(best_effort or infos)
            reason = f"{' and '.join(deciding)} {'publishes' if len(deciding) == 1 else 'publish'} so"
        line = f"subscribed to {self.topic} as {self.reliability}: {reason}"
        if line != self._logged:
            self._node.get_logger().info(line)
        self._logged = line
        self._on_match(self.reliability, self._fixed, self._publishers)


def _offered(infos: Sequence[Any]) -> ReliabilityPolicy:
    """Return the highest reliability with which every publisher is received."""
    reliable = bool(infos) and all(i.qos_profile.reliability == ReliabilityPolicy.RELIABLE for i in infos)
    return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


def _full_names(infos: Sequence[Any]) -> list[str]:
    """Return the full names of the nodes to which endpoints belong."""
    # The middleware may find an endpoint before the name of its node.
    names = (f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos)
    return sorted("a node not yet known" if "_UNKNOWN_" in name else name for name in names)


def message_callback(on_message: Callable[[Any, Any], None], subscription: type = Subscription) -> Callable[..., None]:
    """Return the callback to subscribe with, for `on_message(message, info)`.

    rclpy decides by the number of arguments whether to pass the message info. ROS 2 Humble never passes it; then
    `info` is empty.
    """
    if hasattr(subscription, "CallbackType"):
        return on_message
    return lambda message: on_message(message, {})
