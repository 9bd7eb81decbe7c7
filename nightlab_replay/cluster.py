# SPDX-License-Identifier: Apache-2.0
"""Replay in several processes or on several machines, with dask.distributed.

A worker opens the bundle and the bags by their paths, which must be the same on every machine. Its result for a span
equals that of a serial replay. The scheduler gives the spans of a lost worker to other workers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any

from nightlab_core.config import replace
from nightlab_core.runtime.bundle import MANIFEST_NAME, sha256_of
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.hardware import usable_cores
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.records import FrameRecord, ReplaySettings, Run, first_frame_hw
from nightlab_replay.store import StoreError

#: A span is given up after this many workers died with it: it may be the span that kills them.
_MOST_LOSSES = 5
#: Spans submitted in addition to one per worker, so that no worker is idle.
_QUEUED_SPANS = 1
_POLL_S = 0.1
_WORKER_TIMEOUT_S = 60
#: A pipeline is used by one thread at a time, however many threads a worker has.
_pipeline_lock = threading.Lock()


def replay_distributed(
    spans: Sequence[Span],
    run: Run,
    *,
    workers: int = 0,
    scheduler: str | None = None,
    keep_masks: bool = False,
    on_frames: Callable[[Sequence[FrameRecord]], None] = lambda records: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[SpanResult, None, None]:
    """Yield the result of each span in any order, from `workers` local processes or from the cluster at `scheduler`.

    When `stopped` returns True, unfinished spans are given up. Raises ImportError without dask, StoreError if a worker
    has another bundle, OSError if the scheduler does not answer or is restarted, RuntimeError for a span that kills its
    workers, and the exceptions of the spans.
    """
    try:
        from distributed import as_completed
    except ImportError as error:
        raise ImportError("several workers need dask: pip install 'dask' 'distributed'") from error
    with _connect(workers, scheduler) as client:
        arguments = _span_arguments(run, 0 if scheduler else workers, keep_masks)
        waiting = list(reversed(spans))
        pending = as_completed()
        submitted: dict[str, Span] = {}
        stopping = False
        while not stopping and (waiting or not pending.is_empty()):
            stopping = stopped()  # results that have arrived are taken before the end
            num_workers = len(client.scheduler_info(n_workers=-1)["workers"])
            room = 0 if stopping else num_workers + _QUEUED_SPANS - pending.count()
            for _ in range(min(room, len(waiting))):
                span = waiting.pop()
                future = client.submit(_replay_span, span, *arguments, pure=False)
                pending.add(future)
                submitted[str(future.key)] = span
            ready = pending.next_batch(block=False)
            for future in ready:
                result = _result_of(future, submitted.pop(str(future.key)))
                on_frames(result.records)
                yield result
            if not ready:
                time.sleep(_POLL_S)


@contextmanager
def _connect(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Yield a client of the cluster at `scheduler`, or of a new local one. Raises OSError if it has no worker."""
    from distributed import Client

    with ExitStack() as stack:
        if scheduler is None:
            client = Client(stack.enter_context(closing(_start_local_cluster(workers))))
        else:
            client = Client(scheduler, timeout="10s")
        stack.callback(client.close)
        try:
            client.wait_for_workers(1, timeout=_WORKER_TIMEOUT_S)
        except (TimeoutError, asyncio.TimeoutError):
            raise OSError(
                f"the cluster at {scheduler} has no worker; start one with: dask worker {scheduler}"
            ) from None
        yield client


def _start_local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    _silence_dask()
    resource_tracker.ensure_running()  # Python's process of this name unblocks SIGINT in the thread that starts it
    # Ctrl-C in a terminal reaches every process: workers inherit this mask and end only when this process says so.
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def _silence_dask() -> None:
    """Suppress dask's messages about workers that start, stop or die. Errors are raised."""
    import dask

    dask.config.set({"distributed.scheduler.allowed-failures": _MOST_LOSSES})
    for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _span_arguments(run: Run, local_workers: int, keep_masks: bool) -> tuple[Any, ...]:
    """Return the arguments of `_replay_span` behind the span. Local workers share the cores of this machine."""
    threads = run.settings.threads
    if local_workers and not threads:
        threads = max(1, usable_cores() // local_workers)
    bundle, frame_hw = run.bundle, first_frame_hw(run.bags)
    return bundle.path, bundle.sha256[MANIFEST_NAME], bundle.engine, run.settings, threads, frame_hw, keep_masks


def _result_of(future: Any, span: Span) -> SpanResult:
    from distributed import CancelledError, KilledWorker

    try:
        result: SpanResult = future.result()
    except KilledWorker as error:
        raise RuntimeError(
            f"frames {span.first} to {span.stop - 1} of {span.source.name} were given up, because every worker that "
            "took them died, for example because memory ran out: run the same command again with fewer --workers, or "
            "without"
        ) from error
    except CancelledError as error:
        raise OSError(
            "the scheduler of the cluster dropped the work, for example because it was restarted: run the same "
            "command again to resume"
        ) from error
    return result


def _replay_span(
    span: Span,
    bundle: str,
    manifest_sha256: str,
    engine_name: str,
    settings: ReplaySettings,
    threads: int,
    frame_hw: tuple[int, int] | None,
    keep_masks: bool,
) -> SpanResult:
    """Replay one span. Runs on the worker."""
    with _pipeline_lock:
        pipeline, prepared = _pipeline(bundle, settings.model_dump_json(), threads, frame_hw)
        found = sha256_of(pipeline.bundle.dir / MANIFEST_NAME)
        if found != manifest_sha256:
            raise StoreError(f"{bundle} on {os.uname().nodename} is another bundle: copy the same one to every machine")
        if pipeline.engines.name != engine_name:
            raise StoreError(
                f"{os.uname().nodename} has the engine {pipeline.engines.name}, expected {engine_name}: choose an "
                "engine that every machine has with --engine"
            )
        (result,) = replay_spans([span], pipeline, settings.class_set, keep_masks=keep_masks, prepared=prepared)
        return result


@lru_cache(maxsize=1)
def _pipeline(
    bundle: str, settings_json: str, threads: int, frame_hw: tuple[int, int] | None
) -> tuple[Pipeline, set[tuple[int, int]]]:
    """Return the worker's pipeline and its prepared sizes. Both are kept, because compiling takes many frames' time."""
    settings = ReplaySettings.model_validate_json(settings_json)
    options = replace(settings.engines(frame_hw), threads=threads)
    return Pipeline(Engines.open(bundle, options), settings.pipeline), set()
