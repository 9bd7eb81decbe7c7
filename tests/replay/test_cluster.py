# SPDX-License-Identifier: Apache-2.0
"""Replays in several processes: lost workers, and results kept when a replay is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from replays import assert_same, start_run

from nightlab_core.runtime.pipeline import Pipeline
from nightlab_replay import cluster
from nightlab_replay.bags import write_mask_bags
from nightlab_replay.records import RunData
from nightlab_replay.session import store_results
from nightlab_replay.store import StoreError, load_run


@pytest.mark.slow
def test_a_lost_worker_does_not_change_the_result(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData
) -> None:
    pytest.importorskip("distributed")
    from nightlab_replay.cluster import replay_distributed

    run, spans = start_run(tmp_path, bags, pipeline)
    killed: list[int] = []

    def kill_one(records: object) -> None:
        if not killed:
            workers = [
                int(pid)
                for pid in descendants(os.getpid())
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    results = replay_distributed(spans, run, workers=2, on_frames=kill_one)
    store_results(tmp_path, run, results, workers=2)
    assert killed
    assert_same(load_run(tmp_path), serial)


def test_a_cluster_finds_the_same_result_as_one_process(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, serial: RunData
) -> None:
    distributed = pytest.importorskip("distributed")
    from nightlab_replay.cluster import replay_distributed

    run, spans = start_run(tmp_path, bags, pipeline)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        other = run.model_copy(update={"bundle": run.bundle.model_copy(update={"sha256": {"bundle.yaml": "0"}})})
        with pytest.raises(StoreError, match="another bundle"):
            list(replay_distributed(spans, other, scheduler=address))
        store_results(tmp_path, run, replay_distributed(spans, run, scheduler=address, keep_masks=True), workers=2)
    assert_same(load_run(tmp_path), serial)
    assert len(list(write_mask_bags(tmp_path, run))) == 2


@pytest.mark.slow
def test_stopping_several_workers_keeps_finished_spans(tmp_path: Path, bags: list[Path], pipeline: Pipeline) -> None:
    distributed = pytest.importorskip("distributed")
    from nightlab_replay.cluster import replay_distributed

    run, spans = start_run(tmp_path, bags, pipeline)
    calls = [0]
    kept: list[object] = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:

        def stopped() -> bool:
            """Stop when two submitted spans are finished."""
            calls[0] += 1
            if calls[0] == 1:
                return False
            until = time.monotonic() + 30
            futures = distributed.default_client().futures
            while sum(future.status == "finished" for future in list(futures.values())) + len(kept) < 2:
                assert time.monotonic() < until
                time.sleep(0.05)
            distributed.default_client().sync(asyncio.sleep, 0.05)  # let the client note that they are finished
            return True

        results = replay_distributed(
            spans, run, scheduler=cluster.scheduler_address, on_frames=kept.append, stopped=stopped
        )
        run = store_results(tmp_path, run, results)
    assert [(r.bag, r.index) for r in load_run(tmp_path).records] == [("one", i) for i in range(8)]
    assert run.finished is None


@pytest.mark.slow
def test_a_span_that_kills_every_worker_is_named(
    tmp_path: Path, bags: list[Path], pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    from nightlab_replay import cluster

    run, spans = start_run(tmp_path, bags, pipeline)
    monkeypatch.setattr(cluster, "_replay_span", lambda *args: os._exit(9))
    monkeypatch.setattr(cluster, "_MOST_LOSSES", 1)
    with pytest.raises(RuntimeError, match=r"frames 0 to 3 of one .*died.*fewer --workers"):
        list(cluster.replay_distributed(spans[:1], run, workers=1))


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread or process has ended
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def test_workers_inherit_a_mask_that_keeps_ctrl_c_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    tracker = resource_tracker.ResourceTracker()  # a new one, as where no process was started before
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)

    def start_worker(**options: object) -> set[signal.Signals]:
        tracker.getfd()  # as `multiprocessing` calls it before it starts a process
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    monkeypatch.setattr(distributed, "LocalCluster", start_worker)
    try:
        assert signal.SIGINT in cluster._start_local_cluster(1)
    finally:
        tracker._stop()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
