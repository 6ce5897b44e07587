"""A process that is asked to start, to measure and to stop, and what it answers.

Questions come as lines on standard input, answers go as lines of JSON to standard output. Uses the standard library
only, so that a process in another environment can import it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

# f(steps) runs so many and returns the number of images.
Run = Callable[[int], int]


class Side:
    """A process that measures one job of one side, asked as `serve` answers.

    Args:
      task: what the process gets as its argument.
      log: file for its standard error.
      seconds: after which it is killed.
      module: what it runs, from the repository's root.
      python: what it is run with.
    """

    def __init__(self, task: dict[str, Any], log: Any, seconds: float, module: str, python: str = sys.executable):
        self.task = task
        self.times: list[float] = []
        self.answer: dict[str, Any] = {}
        # Both sides hold what they need, not what an allocator takes in advance; compiling is measured.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = ["timeout", "--signal=KILL", f"{seconds:.0f}", python, "-m", module]
        self.process = subprocess.Popen(
            [*command, json.dumps(task)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def ask(self, question: str) -> dict[str, Any] | None:
        """The answer to "start", "measure" or "stop"; None, and a reason in `answer`, when the process is gone."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            # What libraries print is not the answer.
            line = next(line for line in self.process.stdout if line.startswith("{"))
        except (StopIteration, BrokenPipeError):
            code = self.process.wait()
            self.answer.setdefault("failed", "out of time" if code == 137 else f"exit code {code}")
            return None
        answer = json.loads(line)
        self.answer |= answer
        return None if "failed" in answer else answer

    def row(self) -> dict[str, Any]:
        """What was measured."""
        row = {key: self.task[key] for key in ("job", "side", "mode", "batch_size")} | self.answer
        if self.times:
            median = statistics.median(self.times)
            row |= {"images_per_second": median, "spread": [min(self.times), max(self.times)], "all": self.times}
        return row

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None:
            self.ask("stop")
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def measure_in_turns(sides: Sequence[Side], repeats: int) -> None:
    """Adds to the times of each side, one after the other; a side that has failed is left out."""
    for _ in range(repeats):
        for side in sides:
            if "failed" not in side.answer and (answer := side.ask("measure")):
                side.times.append(answer["images_per_second"])


def serve(task: dict[str, Any], begin_job: Callable[[], tuple[Run, dict[str, Any]]]) -> None:
    """Answers the questions on standard input until the last one, or the first that fails."""
    run: Run | None = None
    facts: dict[str, Any] = {}
    for line in sys.stdin:
        begin = time.perf_counter()
        answer: dict[str, Any] = {}
        try:
            if line.strip() == "start":
                run, facts = begin_job()
                run(2)
                answer = {key: value for key, value in facts.items() if not callable(value)}
                answer["start_seconds"] = time.perf_counter() - begin
                run(1)  # compiled programs may be recorded or tuned at their second or third call
            elif line.strip() == "measure":
                assert run
                images = run(task["steps"])
                answer = {"images_per_second": images / (time.perf_counter() - begin)}
            elif line.strip() == "stop":
                answer = facts["cost"]() if "cost" in facts else {}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}
        print(json.dumps(answer), flush=True)
        if line.strip() == "stop" or "failed" in answer:
            break
