# SPDX-License-Identifier: Apache-2.0
"""Replay recorded bags through the pipeline and report accuracy and latency. Needs no ROS; imports only nightlab_core.

Read `replay.py` first: it is `nightlab replay` from the bags to the report.

    replay.py        the function behind `nightlab replay`
    provenance.py    describe bags, bundle, versions and machine
    session.py       start or resume a run in its folder, store results
    records.py       what a run holds: settings, inputs, records and counts
    store.py         the files of a run: run.json and chunks
    execute.py       run every frame as fast as possible
    realtime.py      run at the recorded rate and drop frames as the node does
    cluster.py       run in several processes or on several machines
    evaluation.py    record and counts of a single frame
    pairing.py       match the frames of two runs
    figures/         accuracy with intervals, all figures of a run, and the comparison of two runs with its gates
    report/          pages, charts and pictures; report.py and compare.py write them
    bags.py          write labelled bags and bags of masks
    progress.py      the progress line
    throughput.py    measure a replay's throughput and memory
"""
