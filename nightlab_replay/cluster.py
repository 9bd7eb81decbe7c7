# SPDX-License-Identifier: Apache-2.0
"""Replay on several processes or machines, with dask.distributed.

A worker opens bundle and bags by their paths, which every machine has to see, and returns what the serial replay would
have found for its span: the same code in the same order, integer counts. The scheduler gives a lost worker's spans to
others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import lru_cache

from nightlab_core.config import replace
from nightlab_core.runtime.bundle import MANIFEST_NAME, sha256_of
from nightlab_core.runtime.engines.open import Engines
from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay.execute import Span, SpanResult, replay_spans
from nightlab_replay.records import FrameRecord, ReplaySettings, Run, StoreError, first_frame_hw

#: A span whose workers died so often is given up: it may be the span that kills them.
_MOST_LOSSES = 5
#: Spans beyond one for each worker that wait at the workers, so that none is idle.
_WAITING = 1
_POLL_S = 0.1
_PATIENCE_S = 60
#: A pipeline belongs to one thread at a time, whatever a worker's number of threads.
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
    """Yield every span's result, in whatever order they come, from `workers` processes on this machine or from the
    cluster at `scheduler`. When `stopped` says so, spans that are not done are given up.

    Raises StoreError where the workers' bundle is another, OSError for a scheduler that does not answer or is
    restarted, RuntimeError for a span that kills its workers, and what a span raises.
    """
    try:
        from distributed import CancelledError, Client, KilledWorker, LocalCluster, as_completed
    except ImportError as error:
        raise ImportError("several workers need dask: pip install 'dask' 'distributed'") from error
    with ExitStack() as stack:
        if scheduler is None:
            _quiet()
            # Ctrl-C in a terminal reaches every process: the workers inherit this mask, and end when this process says.
            usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                cluster = LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    silence_logs=logging.ERROR,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, usual)
            stack.callback(cluster.close)
            client = Client(cluster)
            threads = run.settings.threads or max(1, (os.cpu_count() or 1) // workers)
        else:
            client = Client(scheduler, timeout="10s")
            threads = run.settings.threads
        stack.callback(client.close)
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except (TimeoutError, asyncio.TimeoutError):
            raise OSError(
                f"the cluster at {scheduler} has no worker; start one with: dask worker {scheduler}"
            ) from None
        waiting = list(reversed(spans))
        manifest_sha256, frame_hw = run.bundle.sha256[MANIFEST_NAME], first_frame_hw(run.bags)
        pending = as_completed()
        handed_out: dict[str, Span] = {}
        stopping = False
        while not stopping and (waiting or not pending.is_empty()):
            stopping = stopped()  # what came in by now is taken before the end
            room = 0 if stopping else len(client.scheduler_info(n_workers=-1)["workers"]) + _WAITING - pending.count()
            for _ in range(min(room, len(waiting))):
                span = waiting.pop()
                arguments = (
                    run.bundle.path,
                    manifest_sha256,
                    run.bundle.engine,
                    run.settings,
                    threads,
                    frame_hw,
                    keep_masks,
                )
                future = client.submit(_replay_span, span, *arguments, pure=False)
                pending.add(future)
                handed_out[str(future.key)] = span
            ready = pending.next_batch(block=False)
            for future in ready:
                span = handed_out.pop(str(future.key))
                try:
                    result: SpanResult = future.result()
                except KilledWorker as error:
                    raise RuntimeError(
                        f"frames {span.first} to {span.stop - 1} of {span.source.name} were given up, because every "
                        "worker that took them died, as it does where memory runs out: run the same command again with "
                        "fewer --workers, or none"
                    ) from error
                except CancelledError as error:
                    raise OSError(
                        "the cluster's scheduler dropped the work, as it does where it is restarted: run the same "
                        "command again to go on"
                    ) from error
                on_frames(result.records)
                yield result
            if not ready:
                time.sleep(_POLL_S)


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
    """Runs on the worker."""
    with _pipeline_lock:
        pipeline, prepared = _pipeline(bundle, settings.model_dump_json(), threads, frame_hw)
        found = sha256_of(pipeline.bundle.dir / MANIFEST_NAME)
        if found != manifest_sha256:
            raise StoreError(f"{bundle} on {os.uname().nodename} is another bundle: give every machine the same one")
        if pipeline.engines.name != engine_name:
            raise StoreError(
                f"{os.uname().nodename} has the engine {pipeline.engines.name}, not {engine_name}: name one that every "
                "machine has with --engine"
            )
        (result,) = replay_spans([span], pipeline, settings.class_set, keep_masks=keep_masks, prepared=prepared)
        return result


@lru_cache(maxsize=1)
def _pipeline(
    bundle: str, settings_json: str, threads: int, frame_hw: tuple[int, int] | None
) -> tuple[Pipeline, set[tuple[int, int]]]:
    """Kept from span to span, with the sizes it was prepared for: compiling takes longer than many frames."""
    settings = ReplaySettings.model_validate_json(settings_json)
    options = replace(settings.engines(frame_hw), threads=threads)
    return Pipeline(Engines.open(bundle, options), settings.pipeline), set()


def _quiet() -> None:
    """dask tells of every worker that it starts, stops or loses; what matters is raised."""
    import dask

    dask.config.set({"distributed.scheduler.allowed-failures": _MOST_LOSSES})
    for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)
