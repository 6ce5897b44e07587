"""Worker processes: what they load, how they die, what they leave behind."""

import collections
import gc
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from data_pipelines.pipeline import TrainData, iterate
from tests.helpers import REPOSITORY, data_config


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
    return TrainData.load(data_config(shared / "data"), 0).batches(4)


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
