"""gcloud commands for a Cloud TPU, and shell commands for its hosts.

Functions return commands and do not run them.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Sequence
from types import SimpleNamespace

from data_pipelines.errors import InputError

# cloud.google.com/tpu/docs/runtimes, "TPU software versions".
RUNTIMES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}
# The images' own Python is too old for this package; uv installs a newer one.
SETUP = (
    "python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --clear --python 3.11 .venv && "
    "~/.local/bin/uv pip install --quiet --python .venv/bin/python --constraint requirements.txt "
    "--editable '.[tpu,gcs]'"
)
SOURCE = "~/hrnet_jax"  # the code on the hosts
RUN = "~/hrnet_run"  # a run's log, pid and exit code on the hosts
STOPPED = f"{RUN}/stopped"  # exists after `stop_command`
ARCHIVE = "hrnet_jax.tar.gz"
ANSWER = "hrnet-status"


class Tpu:
    """gcloud commands for a queued resource and its slice of the same name."""

    def __init__(self, options: SimpleNamespace):
        self.options = options
        self._where = [f"--zone={options.zone}", *([f"--project={options.project}"] if options.project else [])]
        self._queue = ["gcloud", "compute", "tpus", "queued-resources"]
        self._vm = ["gcloud", "compute", "tpus", "tpu-vm"]
        self._inside = ["--internal-ip"] if options.internal_ip else []

    def create(self) -> list[str]:
        """Requests the queued resource."""
        o = self.options
        return [
            *(*self._queue, "create", o.name, f"--node-id={o.name}", *self._where, f"--accelerator-type={o.type}"),
            f"--runtime-version={o.runtime_version or runtime_version(o.type)}",
            *(["--spot"] if o.spot else []),
            *(["--reserved"] if o.reserved else []),
            *([f"--service-account={o.service_account}"] if o.service_account else []),
            *(["--internal-ips"] if o.internal_ip else []),
        ]

    def describe(self) -> list[str]:
        """Prints its state."""
        return [*self._queue, "describe", self.options.name, *self._where, "--format=value(state.state)"]

    def delete(self) -> list[str]:
        """Deletes the slice and its place in the queue."""
        return [*self._queue, "delete", self.options.name, *self._where, "--force", "--quiet"]

    def ssh(self, command: str, worker: str = "all") -> list[str]:
        """Runs a shell command on hosts."""
        where = [*self._where, f"--worker={worker}", *self._inside]
        return [*self._vm, "ssh", self.options.name, *where, f"--command={command}", "--quiet"]

    def copy(self, file: str | pathlib.Path) -> list[str]:
        """Copies a file to the home folder of every host."""
        where = [*self._where, "--worker=all", *self._inside]
        return [*self._vm, "scp", str(file), f"{self.options.name}:", *where, "--quiet"]


def runtime_version(accelerator: str) -> str:
    """The software version of a TPU's hosts, by accelerator type."""
    try:
        return RUNTIMES[accelerator.partition("-")[0]]
    except KeyError:
        raise InputError(f"--type={accelerator}: its software version is not known; set --runtime_version") from None


def unpack_command(options: SimpleNamespace) -> str:
    """On a host: unpacks the code, then runs the set-up and the user's preparations."""
    steps = [f"rm -rf {SOURCE} {RUN}", f"mkdir -p {SOURCE} {RUN}", f"cd {SOURCE}", f"tar -xzf ~/{ARCHIVE}"]
    steps += [options.setup, *([options.prepare] if options.prepare else []), "touch .ready"]
    return " && ".join(steps)


def start_command(arguments: Sequence[str]) -> str:
    """On a host: starts the training, unless it is running, so that it continues after the connection ends."""
    train = shlex.join([".venv/bin/python", "-m", "hrnet_jax.train", *arguments, "--distributed"])
    wrapped = shlex.quote(f"{train} >> {RUN}/log 2>&1; echo $? > {RUN}/code; mv {RUN}/code {RUN}/exit")
    return (
        f'if [ ! -e {RUN}/exit ] && kill -0 "$(cat {RUN}/pid 2>/dev/null)" 2>/dev/null; then exit 0; fi; '
        f"cd {SOURCE} && rm -f {RUN}/exit {STOPPED} || exit; "
        f"setsid nohup bash -c {wrapped} > /dev/null 2>&1 < /dev/null & echo $! > {RUN}/pid"
    )


def stop_command() -> str:
    """On a host: asks the training to save and end, and notes that it was asked; fails if none runs."""
    return f'touch {STOPPED}; pkill -TERM -P "$(cat {RUN}/pid)"'


def kill_command() -> str:
    """On a host: kills the remaining processes of a training."""
    return f'kill -KILL -- "-$(cat {RUN}/pid)" 2>/dev/null; rm -f {RUN}/pid'


def status_command() -> str:
    """On a host: prints "running", "lost" or the training's exit code."""
    return (
        f"if [ -e {RUN}/exit ]; then echo {ANSWER} $(cat {RUN}/exit); "
        f'elif kill -0 "$(cat {RUN}/pid)" 2>/dev/null; then echo {ANSWER} running; else echo {ANSWER} lost; fi'
    )
