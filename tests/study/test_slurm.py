"""A study on a real SLURM (tests/support/slurm.py): an array, preempted, requeued, left alone, cancelled, resumed."""

import functools
import re
import shlex
import signal
import subprocess
import sys

import pytest

from rio.study.cluster import job_ids
from rio.study.process import Training
from tests.support import slurm, stub_training, tiny_shapes
from tests.support.kill_and_resume import compare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]
pytest.importorskip("submitit", reason="submitit is not installed (the extra `cluster`)")
ITERATIONS = 600


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def rio(environment, repository, data):
    """Start `python -m rio study FILE ...`; the checkpoint that a resumed run needs can only be a signal's."""

    def start(file, folder, *words) -> subprocess.Popen:
        options = [*data, *tiny_shapes.model_options(ITERATIONS), "SOLVER.CHECKPOINT_PERIOD", "9999"]
        options += ["DATALOADER.NUM_WORKERS", "1"]
        command = [sys.executable, "-m", "rio", "study", str(file), "--output-dir", str(folder), *words, *options]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Ctrl-C is to reach it even where the tests run in the background, and so ignore it.
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(command, cwd=repository, env=environment, preexec_fn=heard, **streams)

    return start


def test_an_array_survives_preemption_requeueing_and_ctrl_c(rio, environment, write, tmp_path):
    def ask(words: str) -> str:
        done = subprocess.run(shlex.split(words), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def text(process: subprocess.Popen) -> str:
        return process.communicate(timeout=500)[0]

    file, out = write(seeds=[1]), tmp_path / "out"
    runs = [Training(out / name) for name in ("a-seed1", "b-seed1")]
    on_slurm = ("--cluster", "slurm", "--partition", "low", "--sbatch", "cpus-per-task=2")
    first = rio(file, out, *on_slurm)  # each asks for one of the nodes' pretended GPUs
    stub_training.until(lambda: all(run.progress().iteration > 20 for run in runs), 300)
    first.send_signal(signal.SIGINT)
    ids = job_ids(out)
    # One is queued again by hand, the other gives way to a job of a higher partition that wants its node.
    node = ask(f"squeue -h -j {ids['b-seed1']} -o %N").strip()
    ask(f"scontrol requeue {ids['a-seed1']}")
    ask(f"sbatch --partition high --nodelist {node} --exclusive --output none --wrap 'sleep 1'")
    stub_training.until(lambda: all("Stopped after" in (run.path / "stdout.log").read_text() for run in runs), 60)
    said = text(first)
    assert first.returncode == 130 and "Submitted: a-seed1, b-seed1" in said, said
    assert "The jobs go on. The same command waits for them again" in said and f"scancel {ids['a-seed1'][:-2]}" in said
    # A job that is queued again is "completing" for some seconds.
    status = functools.partial(rio, file, out, *on_slurm, "--status")
    stub_training.until(lambda: re.search(r"a-seed1 +(running|pending)", text(status())), 120)
    second = rio(file, out, *on_slurm)
    said = text(second)
    assert second.returncode == 0 and "Submitted: nothing" in said and "2 of 2 runs finished" in said, said
    assert job_ids(out) == ids, "no job is submitted twice"

    here = rio(file, tmp_path / "here", "--processes", "2")
    assert text(here) and here.returncode == 0
    for run in runs:
        log = (run.path / "stdout.log").read_text()
        stopped = re.findall(rf"Stopped after (\d+) of {ITERATIONS}", log)
        assert stopped and stopped == re.findall(r"Starting training from iteration (\d+)", log)[1:], log
        assert not compare(run.path, tmp_path / "here" / run.path.name), "as an uninterrupted run, bit for bit"


def test_a_cancelled_run_is_submitted_again_alone(rio, environment, write, tmp_path):
    file, out = write(seeds=[1]), tmp_path / "out"
    first = rio(file, out, "--cluster", "slurm", "--gpus-per-task", "0", "--max-parallel", "1")
    stub_training.until(lambda: Training(out / "a-seed1").progress().iteration > 20, 300)
    subprocess.run(["scancel", job_ids(out)["a-seed1"]], env=environment, check=True)
    said = first.communicate(timeout=500)[0]
    assert first.returncode == 2 and "1 of 2 runs ended without being finished" in said, said
    assert re.search(r"a-seed1: .*_0_0_log\.err\nFix: ", said) and (out / "b-seed1" / "study_finished.json").exists()
    second = rio(file, out, "--cluster", "slurm", "--gpus-per-task", "0")
    said = second.communicate(timeout=500)[0]
    assert second.returncode == 0 and "Submitted: a-seed1\n" in said, said
    assert "Starting training from iteration 0" not in Training(out / "a-seed1").log()


def test_features_are_made_first(rio, environment, write, tmp_path, data, repository):
    detector, out = tmp_path / "detector", tmp_path / "out"
    words = ["train", "--config-file", str(tiny_shapes.DEMO_CONFIG), "--output-dir", str(detector), *data]
    words = [sys.executable, "-m", "rio", *words, *tiny_shapes.model_options(10)]
    subprocess.run(words, cwd=repository, env=environment, check=True, capture_output=True)
    file = write(features="detector/model_final.pth")
    study = rio(file, out, "--cluster", "slurm", "--gpus-per-task", "0")
    said = study.communicate(timeout=500)[0]
    assert job_ids(out).keys() == {"features", "a-seed1", "b-seed1"}, said
    assert study.returncode == 0 and "2 of 2 runs finished" in said, said
    features = (out / "features" / "features.json").stat().st_mtime
    assert features < min((out / f"{arm}-seed1" / "run.json").stat().st_mtime for arm in "ab")
