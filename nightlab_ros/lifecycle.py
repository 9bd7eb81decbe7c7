# SPDX-License-Identifier: Apache-2.0
"""Lifecycle node that logs why a transition or a callback failed.

rclpy swallows the exceptions of its transition callbacks, and those of other callbacks end the process.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from nightlab_ros.monitoring import degradation as dg
from nightlab_ros.monitoring.distinct_lines import DistinctLines


class LoggedLifecycleNode(LifecycleNode):
    """Base of a lifecycle node. A subclass says what to do in four steps, which may raise any exception."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        """Create the node; the arguments are those of rclpy's LifecycleNode."""
        self.failure = ""  #: the first error of the last transition, or ""
        self.callback_errors = DistinctLines(lambda line: self.get_logger().error(line))
        super().__init__(name, **kwargs)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Callable[..., Any], *args: Any, **kw: Any
    ) -> Any:
        """Subscribe with a callback whose exceptions are logged, such as those of rclpy for a negative /clock."""

        @wraps(callback)  # rclpy counts the callback's arguments
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                self.callback_errors.add(f"a message on {topic} is ignored: {type(error).__name__}: {error}")

        return super().create_subscription(msg_type, topic, guarded, *args, **kw)

    @abstractmethod
    def configure(self) -> None:
        """Load everything that frames need, and create the publishers."""

    @abstractmethod
    def activate(self) -> None:
        """Start working; the publishers are active."""

    @abstractmethod
    def deactivate(self) -> None:
        """Stop working and wait for the current frame. Harmless if the node does not work."""

    @abstractmethod
    def free(self) -> None:
        """Free everything that `configure` made. Harmless if there is nothing."""

    def close(self) -> None:
        """Stop and free everything, in any state. Errors are logged, and the rest is freed."""
        self._log_error("deactivate", self._stop)
        self._log_error("cleanup", self.free)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Configure; after an error the node is unconfigured and can be configured again."""
        return self._attempt("configure", self.configure, undo=self.close)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Activate; after an error the node is inactive."""
        return self._attempt("activate", self._start, undo=self._stop)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate."""
        return self._attempt("deactivate", self._stop)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured with other parameters."""
        self.failure = ""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything, from any state."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured again."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def _start(self) -> None:
        super().on_activate(LifecycleState("", 0))
        self.activate()

    def _stop(self) -> None:
        self.deactivate()
        super().on_deactivate(LifecycleState("", 0))

    def _attempt(
        self, name: str, action: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Run the action of a transition. FAILURE leads back to the state before, ERROR to error processing."""
        self.failure = ""
        if self._log_error(name, action):
            return TransitionCallbackReturn.SUCCESS
        if undo is not None and self._log_error(f"undoing {name}", undo):
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.ERROR

    def _log_error(self, name: str, action: Callable[[], None]) -> bool:
        """Run an action; returns False if it raised, which is logged."""
        try:
            action()
        except (Exception, SystemExit) as error:  # a library may want to end the process; the node says so and goes on
            if isinstance(error, TimeoutError):
                text = dg.TRANSITION_TIMED_OUT(transition=name, reason=error).sentence
            else:
                text = dg.TRANSITION_FAILED(transition=name, reason=f"{type(error).__name__}: {error}").sentence
            self.get_logger().error(text)
            self.failure = self.failure or text
            return False
        return True
