"""A real SLURM on this machine, in a folder, without root or munge: Debian's `slurm-wlm`, two nodes on loopback.

python -m tests.support.slurm FOLDER      # prints the SLURM_CONF to export; Ctrl-C ends it
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# `low` gives way to `high`, after 30 s in which a job may save. auth/none: whoever reaches the port is believed.
# cred_expire is also what a requeued job waits. The GPUs are counted and dealt, and are none.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:1
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=n1,n2 PriorityTier=2
"""
NEEDED = ("slurmctld", "slurmd", "sbatch")


def missing() -> str:
    """Why there can be no cluster here; "" if there can."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"{', '.join(lacking)} not found (Debian: apt-get install slurm-wlm)" if lacking else ""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; gives the environment of its users; at the end all jobs and daemons are gone."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:  # all at once, so that they differ
        probes = [held.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    host, conf = socket.gethostname().split(".")[0], folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, ports=ports, user=getpass.getuser(), folder=folder))
    (folder / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/null\n")
    environment = os.environ | {"SLURM_CONF": str(conf)}
    daemons = []

    def ask(*words: str) -> str:
        return subprocess.run(words, env=environment, capture_output=True, text=True).stdout

    try:
        for words in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            with open(folder / f"{words[-1]}.out", "wb") as out:
                daemons.append(subprocess.Popen([*words, "-f", str(conf)], env=environment, stdout=out, stderr=out))
        deadline = time.monotonic() + 60
        while (found := ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()) != ["idle", "idle"]:
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
                raise RuntimeError(
                    f"SLURM does not come up in {folder}: expected two idle nodes, found {found}\n{logs}"
                )
            time.sleep(0.2)
        yield environment
    finally:
        ask("scancel", "--user", getpass.getuser())
        deadline = time.monotonic() + 40
        while ask("squeue", "-h").strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background too
        signal.signal(number, signal.default_int_handler)
    with cluster(Path(sys.argv[1]).absolute()) as found, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        while True:
            time.sleep(60)
