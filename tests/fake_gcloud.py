"""Stands in for gcloud: queued resources that come after a wait, whose hosts are folders and processes of this machine.

FAKE_CLOUD names the folder of its state: `calls` (one JSON list a line), `cloud.json`, `hosts/N/` (their homes),
`state_once` (what the next description says), `unreachable` (ssh fails while it is there) and `preempt` (a text: once
it stands in the first host's log, all processes get SIGTERM, and then the hosts are gone with their disks).
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

HOSTS = {"v5litepod-8": 1, "v5litepod-16": 2}
COMING = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]

FOLDER = pathlib.Path(os.environ["FAKE_CLOUD"])
STATE = FOLDER / "cloud.json"


def main(arguments):
    with (FOLDER / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    group, verb, *rest = arguments[2:]
    flags = dict(a.removeprefix("--").partition("=")[::2] for a in rest if a.startswith("--"))
    names = [a for a in rest if not a.startswith("--")]
    cloud = json.loads(STATE.read_text()) if STATE.exists() else None
    return {
        ("queued-resources", "create"): create,
        ("queued-resources", "describe"): describe,
        ("queued-resources", "delete"): delete,
        ("tpu-vm", "ssh"): ssh,
        ("tpu-vm", "scp"): scp,
    }[group, verb](cloud, names, flags)


def create(cloud, names, flags):
    if cloud:
        return fail("ALREADY_EXISTS: Resource already exists")
    if flags["accelerator-type"] not in HOSTS:
        return fail("INVALID_ARGUMENT: no such accelerator type")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = HOSTS[flags["accelerator-type"]]
    for host in range(hosts):
        (FOLDER / "hosts" / str(host)).mkdir(parents=True)
    STATE.write_text(json.dumps({"state": COMING[0], "hosts": hosts, "port": port}))


def describe(cloud, names, flags):
    once = FOLDER / "state_once"
    if once.exists():
        print(once.read_text())
        once.unlink()
        return None
    if not cloud:
        return fail(f"NOT_FOUND: Resource {names[0]} was not found")
    print(cloud["state"])
    if cloud["state"] in COMING[:-1]:
        cloud["state"] = COMING[COMING.index(cloud["state"]) + 1]
        STATE.write_text(json.dumps(cloud))


def delete(cloud, names, flags):
    if not cloud:
        return fail("NOT_FOUND")
    if "force" not in flags and cloud["state"] == "ACTIVE":
        return fail("FAILED_PRECONDITION: it has nodes")
    for pid in FOLDER.glob("hosts/*/hrnet_run/pid"):  # a machine's processes end with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(FOLDER / "hosts", ignore_errors=True)
    STATE.unlink()


def ssh(cloud, names, flags):
    if not ready(cloud):
        return fail("[/usr/bin/ssh] exited with return code [255].")
    code = 0
    for host in homes(cloud, flags):
        environment = {
            **os.environ,
            "HOME": str(FOLDER / "hosts" / str(host)),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{cloud['port']}",
            "JAX_NUM_PROCESSES": str(cloud["hosts"]),
            "JAX_PROCESS_ID": str(host),
        }
        done = subprocess.run(["bash", "-c", flags["command"]], env=environment, cwd=environment["HOME"])
        code = code or done.returncode
    maybe_preempt(cloud)
    return code


def scp(cloud, names, flags):
    if not ready(cloud):
        return fail("not there")
    source, target = names
    assert target.endswith(":")
    for host in homes(cloud, flags):
        shutil.copy(source, FOLDER / "hosts" / str(host))


def maybe_preempt(cloud):
    wanted, log = FOLDER / "preempt", FOLDER / "hosts/0/hrnet_run/log"
    if not (wanted.exists() and log.exists() and wanted.read_text() in log.read_text()):
        return
    wanted.unlink()
    groups = [int((FOLDER / f"hosts/{host}/hrnet_run/pid").read_text()) for host in range(cloud["hosts"])]
    for group in groups:
        os.killpg(group, signal.SIGTERM)
    while any(map(lives, groups)):
        time.sleep(0.05)
    shutil.copy(log, FOLDER / "log_of_the_preempted")
    shutil.rmtree(FOLDER / "hosts")
    STATE.write_text(json.dumps({**cloud, "state": "SUSPENDED"}))


def lives(group):
    """Whether any process of a group does; zombies, whom nobody waits for in a container, do not."""
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(member) == group and state != "Z":
            return True
    return False


def ready(cloud):
    return cloud and cloud["state"] == "ACTIVE" and not (FOLDER / "unreachable").exists()


def homes(cloud, flags):
    return range(cloud["hosts"]) if flags.get("worker", "0") == "all" else [int(flags["worker"])]


def fail(reason):
    print(f"ERROR: (gcloud) {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
