"""Worker processes: what they load, how they die, what they leave behind."""

import collections
import concurrent.futures
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import grain
import pytest

from data_pipelines.errors import InputError
from data_pipelines.pipeline import TrainData, iterate
from data_pipelines.processes import become_worker, division, starting_workers
from tests.helpers import REPOSITORY, crops, pipeline_config


def children() -> set[int]:
    """The processes of this one's that are alive; Python's own resource tracker stays for good."""
    tasks = pathlib.Path("/proc/self/task").glob("*/children")
    found = {int(pid) for task in tasks for pid in task.read_text().split()}
    return {pid for pid in found if b"resource_tracker" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()}


def shared_memory() -> set[str]:
    """What this process holds of /dev/shm: segments and semaphores."""
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[5] for line in lines if "/dev/shm/" in line}


@pytest.fixture
def dataset(shared):
    return TrainData.load(pipeline_config(shared / "data"), crops()).batches(4)


def test_workers_load_the_pipeline_and_nothing_of_the_trainer(tmp_path):
    """Nor do they import the main module, which here would start workers of its own."""
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys
            import flax, optax, hrnet_jax.train
            import grain
            from data_pipelines.pipeline import iterate

            def facts(_):
                import jax
                loaded = [m for m in ("flax", "optax", "hrnet_jax", "ml_collections", "cv2") if m in sys.modules]
                return {"loaded": loaded, "backends": len(jax._src.xla_bridge._backends)}

            elements = iterate(grain.MapDataset.range(16).map(facts), threads=1, workers=2)
            print(json.dumps(list(elements)[8:]))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    output = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert output.returncode == 0, output.stderr
    assert json.loads(output.stdout) == [{"loaded": [], "backends": 0}] * 8


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_the_stream_soon_and_is_named(dataset, workers):
    before = children()
    batches = iterate(dataset, threads=1, workers=workers)
    collections.deque(itertools.islice(batches, 10), maxlen=0)
    victim = min(children() - before)
    os.kill(victim, signal.SIGKILL)
    start = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="[Ww]orker process was terminated .* exit code -9"):
            collections.deque(itertools.islice(batches, 1000), maxlen=0)
        assert time.monotonic() - start < 10
    finally:
        batches.close()
    assert children() <= before


@pytest.mark.parametrize(("threads", "workers"), [(2, 0), (1, 2)])
def test_closing_leaves_nothing_behind(dataset, threads, workers):
    processes, segments = children(), shared_memory()
    for _ in range(2):
        batches = iterate(dataset, threads=threads, workers=workers)
        collections.deque(itertools.islice(batches, 10), maxlen=0)
        batches.close()
    del batches
    gc.collect()  # semaphores go with the iterator
    assert children() <= processes
    assert shared_memory() <= segments


def test_starting_workers_leaves_the_program_as_it_was(dataset):
    """A process pool of the program's own would hang on a main module of another name."""
    spec, mask = sys.modules["__main__"].__spec__, signal.pthread_sigmask(signal.SIG_BLOCK, ())
    iterate(dataset, threads=1, workers=1).close()
    assert sys.modules["__main__"].__spec__ is spec
    before, lock = children(), threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        iterate(dataset.map(lambda batch: (lock, batch)), threads=1, workers=2)
    assert sys.modules["__main__"].__spec__ is spec
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert children() <= before


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_threads_give(workers):
    elements = iterate(grain.MapDataset.range(29), threads=1, workers=workers)
    assert list(elements) == list(range(29))
    elements.close()


def test_signals_of_others_do_not_end_workers(dataset):
    """Slurm and containers send SIGTERM to all processes, terminals SIGINT and SIGHUP, at any time."""
    before = children()
    batches = iterate(dataset, threads=1, workers=2)
    for _ in range(2):  # while they start, and once they work
        for child in children() - before:
            for name in ("TERM", "INT", "HUP"):
                subprocess.run(["kill", f"-{name}", str(child)], check=True)
        collections.deque(itertools.islice(batches, 12), maxlen=0)
    batches.close()
    assert children() <= before


def test_workers_of_a_killed_process_end_and_leave_no_shared_memory(tmp_path, shared):
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, os, signal
            from data_pipelines.pipeline import TrainData, iterate
            from tests.helpers import crops, pipeline_config
            from tests.test_workers import children, shared_memory

            data = TrainData.load(pipeline_config({str(shared / "data")!r}), crops())
            batches = iterate(data.batches(4), threads=1, workers=2)
            held = [next(batches) for _ in range(12)]
            print(json.dumps([sorted(children()), sorted(shared_memory())]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    output = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert output.returncode == -signal.SIGKILL, output.stderr
    workers, held = json.loads(output.stdout)
    assert len(workers) == 2
    assert any("psm_" in name for name in held)
    end = time.monotonic() + 20
    while left := [path for path in [*(f"/proc/{pid}" for pid in workers), *held] if os.path.exists(path)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def _terminated_by_itself() -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    return os.getpid()


def test_workers_of_pools_heed_their_parent_only():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, become_worker) as pool:
        with starting_workers():
            future = pool.submit(_terminated_by_itself)
        pid = future.result(60)
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            pool.submit(time.sleep, 60).result(60)


@pytest.mark.parametrize(
    ("threads", "workers", "cores", "expected"),
    [
        (0, -1, 2, (2, 0)),
        (0, -1, 7, (7, 0)),
        (0, -1, 8, (4, 2)),
        (0, -1, 16, (4, 4)),
        (0, -1, 224, (28, 8)),
        (0, 0, 16, (16, 0)),
        (16, -1, 16, (4, 4)),
        (16, 3, 2, (6, 3)),
        (1, 2, 2, (1, 2)),
    ],
)
def test_threads_and_processes_by_the_cores(threads, workers, cores, expected):
    assert division(threads, workers, 10**6, cores, 10**9) == expected


def test_batches_fit_into_shared_memory(shared, caplog):
    """Four batches per worker. Whoever asked for workers is told; otherwise threads load the data."""
    data = TrainData.load(pipeline_config(shared / "data"), crops())
    batch = data.batches(4)[0]
    assert sum(array.nbytes for array in batch.values()) == pytest.approx(4 * data.sample_bytes, rel=0.01)
    assert division(8, 2, 10**7, 8, 8 * 10**7) == (4, 2)
    with pytest.raises(InputError, match=r"workers=2: /dev/shm has 80 MB free, .* take 88 MB; .*--shm-size"):
        division(8, 2, 11 * 10**6, 8, 8 * 10**7)
    assert "threads load" not in caplog.text
    assert division(0, -1, 11 * 10**6, 8, 8 * 10**7) == (8, 0)
    assert "threads load the data instead" in caplog.text
