"""Studies on SLURM: what is submitted and when, how a job ends; with small scripts in place of SLURM's programs."""

import json
import pickle
import re
import signal
import sys
import time

import pytest

from rio.study import cluster
from rio.study.cluster import Job, Slurm, submit
from rio.study.plan import StudyError, prepare
from rio.study.process import Training
from rio.study.result import StudyResult
from rio.study.runner import run_study
from tests.support import stub_training

pytest.importorskip("submitit", reason="submitit is not installed (the extra `cluster`)")
FAKES = {
    "srun": "",
    "squeue": 'cat "$(dirname "$0")/queue"',
    "sbatch": 'if [ -f "$(dirname "$0")/refusal" ]; then cat "$(dirname "$0")/refusal" >&2; exit 1; fi\n'
    'echo x >> "$(dirname "$0")/count"; echo "Submitted batch job $(wc -l < "$(dirname "$0")/count")"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Folder of the programs: `queue` is what squeue lists; sbatch numbers its jobs from 1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "queue").touch()
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.0)
    return folder


def asked(root, number: int) -> set[str]:
    """The options of a job for sbatch."""
    return set(re.findall(r"(?m)^#SBATCH --(\S+)", (root / "jobs" / f"{number}_submission.sh").read_text()))


def finish(root, name: str) -> None:
    """What a finished run leaves that the study looks for."""
    for file in ("study_finished.json", "model_final.pth"):
        (root / name / file).write_text('{"seconds": 1.0}')
    (root / name / "evaluation.json").write_bytes((root / "made.json").read_bytes())


def test_what_is_neither_finished_nor_queued_is_one_array(slurm, study, data, out):
    plan = study(seeds=[1, 2])
    wanted = Slurm("gpu", 2, 3, 600, {"account": "lab", "cpus-per-task": "7"})
    assert submit(plan, out, wanted, data) == ["a-seed1", "b-seed1", "a-seed2", "b-seed2"]
    found = asked(out, 1)
    assert found >= {"array=0-3%3", "partition=gpu", "gpus-per-task=2", "ntasks-per-node=1", "job-name=study"}
    assert found >= {"time=600", "requeue", "signal=TERM@120", "account=lab", "cpus-per-task=7"}
    assert "srun" in (script := (out / "jobs" / "1_submission.sh").read_text()) and "--cpus-per-task=7 " in script
    with open(out / "jobs" / "1_1_submitted.pkl", "rb") as file:
        job = pickle.load(file).function
    assert (job.name, job.num_gpus, job.study, job.root) == ("b-seed1", 2, plan, out)

    (slurm / "queue").write_text("1_0 RUNNING n1\n1_3 PENDING (Resources)\n")
    finish(out, "b-seed1")
    assert submit(plan, out, Slurm(gpus_per_task=0), data) == ["a-seed2"], "ended without being finished"
    found = asked(out, 2)
    assert not [words for words in found if words.startswith(("array", "gpus", "partition"))]
    assert json.loads((out / "jobs" / "jobs.json").read_text())["a-seed2"] == "2"
    (slurm / "queue").write_text("1_0 RUNNING n1\n1_3 PENDING (Resources)\n2 PENDING (Priority)\n")
    assert submit(plan, out, Slurm(), data) == [] and not (out / "jobs" / "3_submission.sh").exists()
    rows = [re.split(r"  +", line) for line in cluster.status(plan, out, data).splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["a-seed1", "running n1"], ["b-seed1", "finished"], ["a-seed2", "pending (priority)"],
        ["b-seed2", "pending (resources)"],
    ]  # fmt: skip
    (slurm / "queue").write_text("")
    assert [line.split()[1] for line in cluster.status(plan, out, data).splitlines()[2:]][::2] == ["ended", "ended"]


def test_the_array_waits_for_the_features(slurm, study, data, out):
    plan = study(features="model_final.pth")
    assert submit(plan, out, Slurm(), data) == ["a-seed1", "b-seed1"]
    assert not [words for words in asked(out, 1) if words.startswith(("array", "dependency"))]
    assert asked(out, 2) >= {"array=0-1%2", "dependency=afterok:1", "kill-on-invalid-dep=yes"}
    (slurm / "queue").write_text("1 RUNNING n1\n2_1 PENDING (Dependency)\n")
    assert submit(plan, out, Slurm(), data) == ["a-seed1"]
    assert "dependency=afterok:1" in asked(out, 3), "the features at work are waited for, not made twice"
    assert cluster.status(plan, out, data).splitlines()[2].split() == ["features", "running", "n1", "1"]
    assert submit(study(features="kept"), out / "kept", Slurm(), data) and "array=0-1%2" in asked(out / "kept", 4)


def test_a_job_does_its_run_and_writes_the_result_of_all(slurm, stand_in, study, data, out):
    stand_in("assert '--resume' in sys.argv\nif 'b-' in str(folder): sys.exit('error: no memory')")
    plan = study()
    prepare(plan, out, data)
    Job(plan, out, data, "a-seed1", 1)()
    found = StudyResult.from_json(out / "study.json")
    assert [run.arm for run in found.runs] == ["a"] and not (out / "b-seed1" / "stdout.log").exists()
    with pytest.raises(StudyError, match="b-seed1 failed"):
        Job(plan, out, data, "b-seed1", 1)()


@pytest.mark.parametrize(
    ("state", "comes_back"),
    [("RUNNING n1", True), ("COMPLETING n1", False), ("PENDING (BeginTime)", False), ("", False)],
    ids=["the node is taken away", "cancelled", "SLURM queues it by itself", "unknown"],
)
def test_a_job_whose_node_is_taken_waits_for_its_training_to_save(
    slurm, study, data, out, monkeypatch, state, comes_back
):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    (slurm / "queue").write_text(f"9 {state}\n")
    job, training = Job(study(), out, data, "a-seed1", 1), Training(out / "a-seed1")
    training.start(stub_training.command(training.path))
    stub_training.until(lambda: training.progress().iteration)
    training.stop()  # as SLURM does: the signal goes to all processes
    before = signal.getsignal(signal.SIGTERM)
    try:
        again = job.checkpoint()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (training.path / "last_checkpoint").exists() and training.pid() is None
    assert (again is not None) == comes_back and (again is None or again.function == job)


def test_a_handler_of_the_signal_stays(stand_in, study, data, out):
    """submitit's, which queues the job again; without one, a study stops as at Ctrl-C."""
    stand_in("import signal; os.kill(os.getppid(), signal.SIGTERM)")
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        run_study(study(), out, options=data)
        assert set(got) == {signal.SIGTERM}, "two at once may be heard as one"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        (out / "a-seed1" / "study_finished.json").unlink()
        with pytest.raises(KeyboardInterrupt, match="it resumes"):
            run_study(study(), out, options=data)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_watching_ends_with_the_result_and_names_what_failed(slurm, stand_in, study, data, out, monkeypatch, capsys):
    stand_in()
    plan = study()
    submit(plan, out, Slurm(), data)
    queues = ["1_0 RUNNING n1\n1_1 PENDING (Resources)", "1_0 RUNNING n1", ""]

    def pass_time(seconds):
        (slurm / "queue").write_text(queues.pop(0))
        if not queues:
            finish(out, "a-seed1")

    (slurm / "queue").write_text("1_0 PENDING (None)\n1_1 PENDING (None)\n")
    monkeypatch.setattr(time, "sleep", pass_time)
    with pytest.raises(StudyError, match=r"1 of 2 runs ended without being finished(?s:.*)b-seed1: .*/1_1_0_log.err"):
        cluster.watch(plan, out, data)
    said = capsys.readouterr().out
    assert "0 of 2 runs ended, 2 pending; 0 of 600 iterations" in said and "1 running, 1 pending" in said
    assert [run.arm for run in StudyResult.from_json(out / "study.json").runs] == ["a"] and (out / "study.md").exists()


@pytest.mark.parametrize(("where", "name"), [(time, "sleep"), (cluster, "queued")], ids=["waiting", "asking"])
def test_ctrl_c_leaves_the_jobs_and_says_how_to_come_back(slurm, study, data, out, monkeypatch, where, name):
    plan = study()
    submit(plan, out, Slurm(), data)
    (slurm / "queue").write_text("1_0 RUNNING n1\n1_1 PENDING (None)\n")

    def interrupt(*_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, name, interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"The jobs go on\. The same command .*--status .*; scancel 1 ends them"
    ):
        cluster.watch(plan, out, data)


def test_what_a_cluster_lacks_is_named(slurm, write, study, data, out, monkeypatch, command):
    plan = study()
    (slurm / "refusal").write_text("sbatch: error: invalid partition specified: gpux\n")
    with pytest.raises(StudyError, match=r"sbatch refused the jobs: .*invalid partition specified: gpux\. Fix: "):
        submit(plan, out, Slurm("gpux"), data)
    assert not cluster.job_ids(out)
    with pytest.raises(StudyError, match=r"--minutes: expected 10 or more .*found 2\.5. Fix: "):
        submit(plan, out, Slurm(minutes=2.5), data)
    (slurm / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2; exit 1\n")
    with pytest.raises(StudyError, match=r"found: slurm_load_jobs error: Unable to contact\. Fix: "):
        cluster.status(plan, out, data)
    words = ["study", write(), "--output-dir", out, *data, "--cluster", "slurm"]
    assert "--sbatch: expected KEY=VALUE, found 'account'. Fix: " in command(*words, "--sbatch", "account", code=2)
    monkeypatch.setenv("PATH", str(out))
    for more in (["--status"], []):
        assert "expected squeue, sbatch and srun on this machine, found none. Fix: " in command(*words, *more, code=2)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "expected the package submitit, found none. Fix: " in command(*words, code=2)


def test_a_study_here_does_not_train_what_jobs_train(slurm, study, write, data, out, command):
    submit(study(), out, Slurm(), data)
    (slurm / "queue").write_text("1_0 RUNNING n1\n")
    said = command("study", write(), "--output-dir", out, *data, code=2)
    assert "jobs 1_0 of this study are in SLURM's queue. Fix: --cluster slurm" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--status"], "--status: expected --cluster slurm, found local. Fix: "),
        (["--gpus-per-task", "0"], "--gpus-per-task: expected --cluster slurm"),
        (["--cluster", "slurm", "--processes", "2"], "--processes: expected --cluster local, found slurm"),
    ],
)
def test_flags_that_do_not_go_together(command, words, message):
    assert message in command("study", "none.yaml", *words, code=2)
