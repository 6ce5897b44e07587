r"""Trains on Cloud TPU from your machine: creates the TPU, installs, starts all hosts and resumes after preemptions.

    python -m hrnet_jax.launch run --name pose --zone us-central1-a --type v5litepod-16 --spot -- \
        --config configs/coco_aic_merge.py --workdir gs://BUCKET/merge --config.data.root=/home/USER/data

Arguments after `--` are passed to `hrnet_jax.train` on every host. Needs `gcloud`, not JAX. The training continues if
this process stops; run the same command again to follow it. See docs/cloud.md.
"""

from __future__ import annotations

import contextlib
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from data_pipelines import command_line
from data_pipelines.errors import InputError
from hrnet_jax.outcomes import INTERRUPTED
from hrnet_jax.tpu.gcloud import (
    ANSWER,
    ARCHIVE,
    RUN,
    RUNTIMES,
    SETUP,
    SOURCE,
    STOPPED,
    Tpu,
    kill_command,
    start_command,
    status_command,
    stop_command,
    unpack_command,
)

COMMANDS = ("create", "run", "resume", "watch", "stop", "delete")

OPTIONS: command_line.Options = {
    "command": (None, f"{', '.join(COMMANDS)}; may be given as the first argument; resume equals run"),
    "name": (None, "name of the TPU and of its queued resource"),
    "zone": (None, "its zone, e.g. us-central1-a"),
    "project": ("", "default: gcloud's"),
    "type": ("", "accelerator type: v5litepod-8, v6e-8 (one host); v5litepod-16, v6e-32 (several)"),
    "spot": (False, "cheaper, but may be preempted"),
    "reserved": (False, "uses a reservation"),
    "runtime_version": ("", f"default: by type, {', '.join(sorted(set(RUNTIMES.values())))}"),
    "service_account": ("", "service account of the hosts; default: the project's"),
    "internal_ip": (False, "hosts without external addresses"),
    "source": (".", "this repository; its committed files are copied to the hosts"),
    "setup": (SETUP, "shell command that creates .venv"),
    "prepare": ("", "shell command to run afterwards, e.g. to copy the data"),
    "poll": (30.0, "seconds between checks"),
    "max_restarts": (100, "restarts after preemptions"),
    "delete": (False, "deletes the TPU after the training"),
    "dry_run": (False, "prints the commands of a run without preemptions"),
}

_PATIENCE = 10  # attempts to reach machines that should be running
_LAST_LINES = 20

# States of queued resources: cloud.google.com/tpu/docs/queued-resources.
_COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_GONE = ("SUSPENDING", "SUSPENDED")


def outcome(answers: Sequence[str]) -> str | int:
    """The hosts' combined state: "running", "lost" or an exit code."""
    codes = [int(answer) for answer in answers if answer.isdecimal()]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if failures := [code for code in codes if code]:
        return failures[0]
    if "lost" in answers or not answers:
        return "lost"
    return "running" if "running" in answers else 0


class Launcher:
    """Runs the commands and waits for their results."""

    def __init__(self, options: SimpleNamespace, sleep: Callable[[float], None] = time.sleep):
        self.options, self.tpu, self._sleep = options, Tpu(options), sleep
        self._shown = 0  # bytes of the log

    def state(self) -> str | None:
        """The state of the queued resource; None if there is none."""
        for _ in range(_PATIENCE):
            found = _call(self.tpu.describe())
            if found.returncode == 0:
                return found.stdout.strip()
            if "NOT_FOUND" in found.stderr:
                return None
            self._sleep(self.options.poll)
        raise InputError(f"gcloud does not answer: {_last_line(found.stderr)}")

    def create(self, install: bool = False) -> None:
        """Creates a TPU with everything installed: requests it, waits in the queue, and replaces a preempted one.

        Args:
          install: whether to install again if already done.
        """
        while True:
            self._wait_for_tpu()
            for _ in range(_PATIENCE):  # hosts answer some time after the queue reports ACTIVE
                if _call(self.tpu.ssh("true")).returncode == 0:
                    break
                self._sleep(self.options.poll)
            if _call(self.tpu.ssh(f"test -e {SOURCE}/.ready")).returncode == 0:
                if not install:
                    return
                if "running" in _answers(_call(self.tpu.ssh(status_command())).stdout):
                    raise InputError(f"a training runs on {self.options.name}; watch it, or delete it")
            print("installing on all hosts", flush=True)
            if self._install():
                self._shown = 0
                return
            self._sleep(self.options.poll)
            if self.state() == "ACTIVE":
                raise InputError("installing failed; see the output above")

    def run(self) -> int:
        """Trains to the end, across preemptions, or until `stop`; returns the exit code.

        Raises InputError if the TPU was deleted meanwhile: a preempted one stays in the queue.
        """
        for restarts in range(self.options.max_restarts + 1):
            self.create()
            if restarts:
                _call(self.tpu.ssh(kill_command()))
            started = _call(self.tpu.ssh(start_command(self.options.arguments)), show=True).returncode == 0
            code = self.watch() if started else "lost"
            if code == 0:
                return 0
            # Preempted hosts may report any code; only the queue shows whether they were preempted.
            self._sleep(self.options.poll)
            state = self.state()
            if state in (None, "DELETING"):
                raise InputError(f"{self.options.name} was deleted; the same command would create it again")
            stopped = code == INTERRUPTED and _call(self.tpu.ssh(f"test -e {STOPPED}")).returncode == 0
            if state == "ACTIVE" and isinstance(code, int) and (code != INTERRUPTED or stopped):
                return code
            print(f"interrupted ({code}); going on", flush=True)
        raise InputError(f"interrupted more than --max_restarts={self.options.max_restarts} times")

    def watch(self) -> str | int:
        """Shows the log until the training ends; returns its exit code, or "lost" if none can be found."""
        missed = lingering = 0
        while True:
            asked = _call(self.tpu.ssh(status_command()))
            answers = _answers(asked.stdout)
            if asked.returncode == 0:
                missed = 0
                self._show_log()
                found = outcome(answers)
                if found != "running" and "running" in answers and lingering < _PATIENCE:
                    lingering += 1  # hosts do not end at the same time
                elif found != "running":
                    if found not in (0, "lost"):
                        _call(self.tpu.ssh(f"tail -n {_LAST_LINES} {RUN}/log"), show=True)
                    return found
            elif self.state() != "ACTIVE":
                return "lost"
            elif (missed := missed + 1) == _PATIENCE:
                raise InputError(f"the hosts are ACTIVE but do not answer: {_last_line(asked.stderr)}")
            self._sleep(self.options.poll)

    def stop(self) -> int:
        """Asks the training to save and end, and waits for it; returns 0 if it did."""
        if _call(self.tpu.ssh(stop_command())).returncode:
            raise InputError(f"no training runs on {self.options.name}")
        code = self.watch()
        if not isinstance(code, int):
            raise InputError(f"{self.options.name}: its hosts are gone, and with them the training; `run` continues it")
        if code not in (0, INTERRUPTED):
            return code
        print(f"the training ended; `run` continues it, `delete` ends the costs of {self.options.name}")
        return 0

    def delete(self) -> None:
        """Deletes everything except the contents of buckets."""
        if self.state() is None:
            print(f"there is no {self.options.name}")
            return
        deleted = _call(self.tpu.delete(), show=True)
        if deleted.returncode:
            raise InputError(f"{self.options.name} was not deleted and still costs: {_last_line(deleted.stderr)}")
        print(f"{self.options.name} is deleted")

    def _wait_for_tpu(self) -> None:
        told = None
        while (state := self.state()) != "ACTIVE":
            if state != told:
                print(f"{self.options.name}: {state or 'requesting it'}", flush=True)
                told = state
            if state is None:
                created = _call(self.tpu.create())
                if created.returncode:
                    raise InputError(f"not created: {_last_line(created.stderr)}")
            elif state in _GONE:
                _call(self.tpu.delete())
            elif state not in (*_COMING, "DELETING"):
                raise InputError(f"{self.options.name} is {state}; see: {shlex.join(self.tpu.describe()[:-1])}")
            self._sleep(self.options.poll)

    def _install(self) -> bool:
        with packed(self.options.source) as archive:
            if _call(self.tpu.copy(archive), show=True).returncode:
                return False
        return _call(self.tpu.ssh(unpack_command(self.options)), show=True).returncode == 0

    def _show_log(self) -> None:
        """Prints new lines of the first host's log."""
        log = _call(self.tpu.ssh(f"tail -c +{self._shown + 1} {RUN}/log", worker="0"))
        if log.returncode == 0:
            self._shown += len(log.stdout.encode())
            print(log.stdout, end="", flush=True)


@contextlib.contextmanager
def packed(source: str):
    """Packs the committed files of a repository into an archive."""
    with tempfile.TemporaryDirectory(prefix="hrnet_jax_") as folder:
        archive = pathlib.Path(folder) / ARCHIVE
        made = _call(["git", "-C", source, "archive", "--format=tar.gz", f"--output={archive}", "HEAD"])
        if made.returncode:
            raise InputError(f"--source={source}: {_last_line(made.stderr)}")
        yield archive


def plan(options: SimpleNamespace) -> list[list[str]]:
    """The commands of a run without preemptions."""
    tpu = Tpu(options)
    watch = [tpu.ssh(status_command()), tpu.ssh(f"tail -c +1 {RUN}/log", worker="0")]
    if options.command == "watch":
        return watch
    if options.command == "stop":
        return [tpu.ssh(stop_command()), *watch]
    if options.command == "delete":
        return [tpu.delete()]
    archive = ["git", "-C", options.source, "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD"]
    create = [tpu.create(), tpu.describe(), archive, tpu.copy(ARCHIVE), tpu.ssh(unpack_command(options))]
    if options.command == "create":
        return create
    deleted = [tpu.delete()] if options.delete else []
    return [*create, tpu.ssh(start_command(options.arguments)), *watch, *deleted]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the training's exit code, or 1 after printing an error."""
    interrupted = "\nthe training continues, and costs; `watch` and `run` follow it, `stop` saves and ends it"
    return command_line.status(lambda: _launch(parse(sys.argv[1:] if arguments is None else arguments)), interrupted)


def _launch(options: SimpleNamespace) -> int:
    if options.dry_run:
        print("\n".join(shlex.join(command) for command in plan(options)))
        return 0
    launcher = Launcher(options)
    match options.command:
        case "create":
            launcher.create(install=True)
        case "watch":
            code = launcher.watch()
            if not isinstance(code, int):
                raise InputError(f"no training runs on {options.name}")
            return code
        case "stop":
            return launcher.stop()
        case "delete":
            launcher.delete()
        case _:
            code = launcher.run()
            if code == 0 and options.delete:
                launcher.delete()
            return code
    return 0


def parse(arguments: Sequence[str]) -> SimpleNamespace:
    """Parses the options; `arguments` are the training's. Raises InputError if any is missing or unknown."""
    own, training = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, training = own[:at], own[at + 1 :]
    options = SimpleNamespace(**command_line.parse(own, __doc__, OPTIONS, first="command"), arguments=training)
    if options.command not in COMMANDS:
        raise InputError(f"{options.command}: unknown; the commands are {', '.join(COMMANDS)}")
    if options.command in ("create", "run", "resume") and not options.type:
        raise InputError("--type is missing: the accelerator, e.g. v5litepod-8")
    if options.spot and options.reserved:
        raise InputError("--spot and --reserved cannot be combined; choose one or the other")
    if options.command in ("run", "resume"):
        given = {argument.partition("=")[0] for argument in training}
        if missing := [name for name in ("--config", "--workdir") if name not in given]:
            raise InputError(f"{' and '.join(missing)} missing after --; the training needs them")
    return options


def _answers(output: str) -> list[str]:
    return [line.split()[-1] for line in output.splitlines() if ANSWER in line]


def _call(command: Sequence[str], show: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command; `show` prints its output."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise InputError(f"{command[0]}: not found; install gcloud, see cloud.google.com/sdk") from None
    if show and (done.stdout or done.returncode):
        print(done.stdout, end="", flush=True)
        if done.returncode:
            print(done.stderr, end="", file=sys.stderr, flush=True)
    return done


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    sys.exit(main())
