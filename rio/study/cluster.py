"""A study on a SLURM cluster: its runs are one job array, submitted by submitit (the extra `cluster`).

SLURM sends SIGTERM to all processes of a job before it takes the node away: at the time limit, at preemption, at
scancel. The training then saves and ends; its job, unless it was cancelled, asks to be queued again, and resumes.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rio.data.errors import check
from rio.data.files import write_atomically
from rio.study.collect import planned_result
from rio.study.plan import Run, Study, StudyError, features_folders, prepare
from rio.study.process import Training
from rio.study.result import StudyResult
from rio.study.runner import Runner, extract_features, locked, publish

FEATURES_JOB = "features"  # its name in jobs.json: the array waits for it
POLL_SECONDS = 15.0  # between questions to SLURM, which all users ask
SIGNAL_SECONDS = 120  # before the time limit, to save in
LEAST_MINUTES = 10
MAX_REQUEUES = 1000  # submitit counts a job's time limits


@dataclass(frozen=True)
class Slurm:
    """What a job asks SLURM for."""

    partition: str | None = None  # None: the cluster's default
    gpus_per_task: int = 1  # of each training; 0 trains on the CPU
    max_parallel: int | None = None  # jobs at a time; None: as many as SLURM starts
    minutes: float = 240  # time limit of a job; a run that takes longer is queued again and resumes
    sbatch: Mapping[str, str] | None = None  # further options of sbatch: {"account": "lab"}


@dataclass(frozen=True)
class Job:
    """What a job does, on the node: one run of a study, or the features that all runs need. submitit pickles it."""

    study: Study
    root: Path
    options: Sequence[str]
    name: str  # ARM-seedS, or "features"
    num_gpus: int

    def __call__(self) -> None:
        runs = prepare(self.study, self.root, self.options)
        if self.name == FEATURES_JOB:
            extract_features(self.study, self.root, runs, processes=1)
            return
        planned = planned_result(self.study, self.options)  # here: of the node's machine
        runner = Runner(self.study, planned, self.root, runs, 1, 1, only=self.name, num_gpus=self.num_gpus)
        runner.run(None)
        if runner.failed:
            raise StudyError(f"{self.name} failed; see above")

    def checkpoint(self) -> Any:
        """SIGTERM came, to the training too: wait until it has saved. None ends the job, else it is queued again."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while Training(self.root / self.name).pid() is not None:
            time.sleep(0.1)
        submitit = _submitit()
        state = queued().get(submitit.JobEnvironment().job_id, "")
        # A cancelled job must not come back, and one that SLURM itself queues again comes back without being asked for.
        return submitit.helpers.DelayedSubmission(self) if state.startswith("RUNNING") else None


def submit(study: Study, output_dir: str | os.PathLike[str], slurm: Slurm, options: Sequence[str] = ()) -> list[str]:
    """Submit the runs that are neither finished nor in the queue as one job array; their names.

    `output_dir` gets a folder per run; the nodes must see it under the same path. `options` (KEY, VALUE, ...) are for
    every arm. A StudyError without submitit or SLURM, or where sbatch refuses, and what `prepare` raises.
    """
    submitit, root, options = _submitit(), Path(output_dir).absolute(), list(options)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        runs, ids = prepare(study, root, options), job_ids(root)
        queue = queued()
        todo = [run.name for run in runs if not run.is_finished and ids.get(run.name) not in queue]
        if not todo:
            return []
        if not any(run.is_finished or run.name in ids for run in runs):
            planned_result(study, options)  # what cannot be compared is found here, not on a node
        executor = submitit.SlurmExecutor(root / "jobs", max_num_timeout=MAX_REQUEUES)
        _configure(executor, study, slurm, runs)

        def job(name: str) -> Job:
            return Job(study, root, options, name, max(slurm.gpus_per_task, 1))

        try:
            if any(str(folder) != own for own, folder in features_folders(study, root).items()):
                if ids.get(FEATURES_JOB) not in queue:
                    ids[FEATURES_JOB] = executor.submit(job(FEATURES_JOB)).job_id
                after = {"dependency": f"afterok:{ids[FEATURES_JOB]}", "kill_on_invalid_dep": "yes"}
                executor.parameters["additional_parameters"] |= after
            with executor.batch():
                jobs = [executor.submit(job(name)) for name in todo]
        except RuntimeError as error:
            found = " ".join(str(error).split("sbatch: ", 1)[-1].split())
            raise StudyError(f"sbatch refused the jobs: {found}. Fix: see --partition and --sbatch") from error
        ids |= {name: job.job_id for name, job in zip(todo, jobs, strict=True)}
        write_atomically(root / "jobs" / "jobs.json", json.dumps(ids, indent=1).encode())
    return todo


def _configure(executor: Any, study: Study, slurm: Slurm, runs: Sequence[Run]) -> None:
    """Hand what the jobs ask for to submitit."""
    from rio.config import load_config

    expected = f"{LEAST_MINUTES} or more with --cluster slurm (a job must start, load and save in them)"
    found, fix = f"{slurm.minutes:g}", "a larger number"
    check(slurm.minutes >= LEAST_MINUTES, "--minutes", expected, found, fix, StudyError)
    workers = load_config(study.config, runs[0].options).DATALOADER.NUM_WORKERS
    more = {
        "time": int(slurm.minutes),
        "ntasks_per_node": 1,
        "cpus_per_task": (workers + 1) * max(slurm.gpus_per_task, 1),
        "requeue": True,
        "signal": f"TERM@{SIGNAL_SECONDS}",
    }
    more |= {"gpus_per_task": slurm.gpus_per_task} if slurm.gpus_per_task else {}
    more |= {"partition": slurm.partition} if slurm.partition else {}
    more |= {key.replace("-", "_"): value for key, value in (slurm.sbatch or {}).items()}
    executor.update_parameters(
        job_name=study.name,
        array_parallelism=slurm.max_parallel or len(runs),
        setup=["export SUBMITIT_PREEMPT_SIGNAL=TERM"],  # the one that SLURM sends of itself
        srun_args=[f"--cpus-per-task={more['cpus_per_task']}"],  # srun does not take it over from sbatch
        additional_parameters=more,
    )


def watch(study: Study, output_dir: str | os.PathLike[str], options: Sequence[str] = ()) -> StudyResult:
    """Say how far the jobs are until none is left in the queue; the study's result. A StudyError where runs ended
    without being finished; Ctrl-C leaves the jobs alone.
    """
    root, said = Path(output_dir).absolute(), ""
    runs, ids = prepare(study, root, options), job_ids(root)
    try:
        while left := [run for run in runs if not run.is_finished and ids.get(run.name) in (queue := queued())]:
            states = Counter(queue[ids[run.name]].split(" ")[0].lower() for run in left)
            done = sum(run.folder.progress().iteration for run in runs)
            words = [f"{count} {state}" for state, count in states.items()]
            line = f"{len(runs) - len(left)} of {len(runs)} runs ended, {', '.join(words)}"
            line += f"; {done} of {sum(run.max_iter for run in runs)} iterations"
            if line != said:
                print(said := line, flush=True)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        arrays = " ".join(sorted({ids[run.name].split("_")[0] for run in runs if not run.is_finished}))
        raise KeyboardInterrupt(
            "The jobs go on. The same command waits for them again and shows the result, --status shows how far they "
            f"are; scancel {arrays} ends them."
        ) from None
    result = publish(planned_result(study, options), root, runs)
    if failed := [run for run in runs if not run.is_finished]:
        names = [name for name in (FEATURES_JOB, *(run.name for run in failed)) if name in ids]
        logs = "".join(f"\n  {name}: {root / 'jobs' / ids[name]}_0_log.err" for name in names)
        raise StudyError(
            f"{len(failed)} of {len(runs)} runs ended without being finished. The jobs' logs:{logs}\nFix: correct the "
            "cause and give the same command again; finished runs are kept, others resume"
        )
    return result


def status(study: Study, output_dir: str | os.PathLike[str], options: Sequence[str] = ()) -> str:
    """A table of the runs: finished, in the queue and how, or ended; iterations; job."""
    root = Path(output_dir).absolute()
    runs, ids, queue = prepare(study, root, options), job_ids(root), queued()

    def state(name: str) -> str:
        return queue.get(ids.get(name, ""), "ended" if name in ids else "not submitted").lower()

    rows = [(FEATURES_JOB, state(FEATURES_JOB), "", ids[FEATURES_JOB])] if FEATURES_JOB in ids else []
    for run in runs:
        how = "finished" if run.is_finished else state(run.name)
        rows.append((run.name, how, f"{run.folder.progress().iteration} / {run.max_iter}", ids.get(run.name, "")))
    return tabulate(rows, headers=["run", "state", "iterations", "job"], disable_numparse=True)


def refuse_if_queued(output_dir: str | os.PathLike[str]) -> None:
    """A StudyError while a cluster's jobs of the study in that folder are queued: nothing here may train their runs."""
    ids = job_ids(Path(output_dir))
    if ids and shutil.which("squeue") and (busy := sorted(set(ids.values()) & queued().keys())):
        found = f"jobs {', '.join(busy)} of this study are in SLURM's queue"
        raise StudyError(f"{output_dir}: {found}. Fix: --cluster slurm waits for them, scancel ends them")


def job_ids(root: Path) -> dict[str, str]:
    """The last job of each run, by the run's name."""
    file = root / "jobs" / "jobs.json"
    return json.loads(file.read_bytes()) if file.exists() else {}


def queued() -> dict[str, str]:
    """State (RUNNING, PENDING ...) and reason or node of this user's jobs by id; a StudyError without an answer."""
    words = ["squeue", "--noheader", "--array", "--me", "--format", "%i %T %R"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise StudyError(
            "--cluster slurm: expected squeue, sbatch and srun on this machine, found none. Fix: give the command on a "
            "login node of the cluster, or leave --cluster out"
        ) from None
    if done.returncode:
        raise StudyError(f"squeue: expected the list of jobs, found: {done.stderr.strip()}. Fix: is SLURM up?")
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise StudyError(
            "--cluster slurm: expected the package submitit, found none. Fix: make install EXTRAS=cluster, or pip "
            "install submitit"
        ) from None
    return submitit
