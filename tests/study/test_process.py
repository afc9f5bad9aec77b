"""Trainings as processes of their own: found again, stopped, resumed, told from others, explained in plain words."""

import json
import os
import socket
import subprocess
import sys

import pytest

from rio.study.process import LaunchError, Training, memory_of, process_start, train_command
from tests.support.stub_training import CONFIG, ROW, command, until


@pytest.fixture
def run(tmp_path):
    run = Training(tmp_path / "run")
    yield run
    if run.pid() is not None:
        run.stop(at_once=True)
        until(lambda: run.pid() is None)


def test_command():
    data = {"train_json": "a b.json", "train_images": "", "val_json": "v", "val_images": "vi"}
    words = train_command("c.yaml", "out", num_gpus=8, seed=3, data=data, options=["A", 1], resume=True)
    assert words[1:] == [
        "-m", "rio", "train", "--config-file", "c.yaml", "--output-dir", "out", "--num-gpus", "8",
        "--train-json", "a b.json", "--val-json", "v", "--val-images", "vi", "--resume", "SEED", "3", "A", "1",
    ]  # fmt: skip
    with pytest.raises(LaunchError, match="the last being 'A'"):
        train_command("c.yaml", "out", options=["A"])


def test_start_stop_resume(run):
    assert run.state() == "new"
    for action in (run.stop, run.resume):
        with pytest.raises(LaunchError, match=r"nothing to stop|expected run.json"):
            action()
    pid = run.start(command(run.path))
    until(lambda: run.state() == "training" and run.progress().iteration >= 3)
    with pytest.raises(LaunchError, match="a training is running here"):
        run.start(command(run.path))
    assert Training(run.path).pid() == pid, "whoever opens the folder finds it"
    assert 2**20 < memory_of(pid) < 2**30 and run.memory()[1] == "memory"
    run.stop()
    assert run.state() in ("stopping", "stopped")
    until(lambda: run.state() == "stopped")
    assert run.explain().startswith("Stopped after") and run.exit_code() == 130
    with pytest.raises(LaunchError, match="holds a run already"):
        run.start(command(run.path))
    again = run.resume()
    assert again != pid and run.note()["command"].count("--resume") == 1
    until(lambda: run.state() == "training")
    run.stop(at_once=True)
    until(lambda: run.pid() is None)
    assert run.state() == "failed" and "was killed (SIGKILL), by the system if memory ran out" in run.explain()


def test_it_outlives_its_starter(run):
    code = "import sys; from rio.study.process import Training; Training(sys.argv[1]).start(sys.argv[2:])"
    starter = [sys.executable, "-c", code, str(run.path), *command(run.path)]
    subprocess.run(starter, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    until(lambda: run.state() == "training")
    pid = run.pid()
    assert os.getsid(pid) == pid, "a session of its own: no terminal's or kernel's end reaches it"
    run.stop()
    until(lambda: run.pid() is None)
    assert run.state() == "stopped"


def test_a_recycled_process_id_is_nobody(run):
    run.start(command(run.path, 3))
    until(lambda: run.pid() is None)
    file = run.path / "run.json"  # the id now belongs to another process: this one
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "pid": os.getpid()}))
    assert process_start(os.getpid()) is not None
    assert run.pid() is None and run.state() == "finished" and run.progress()[:2] == (3, 3)


def test_an_ended_process_is_dead_even_before_anyone_asks():
    child = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: process_start(child.pid) is None)
    child.wait()
    assert process_start(child.pid) is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys; print('error: the loss is not finite. Lower\\n SOLVER.BASE_LR', file=sys.stderr); sys.exit(2)",
         "the loss is not finite. Lower SOLVER.BASE_LR"),
        ("print('usage: x\\npython -m rio train: error: no such key')", "no such key"),
        ("{}['x']", "An unforeseen error ended the process: KeyError: 'x'"),
        ("", "ended without output"),
    ],
)  # fmt: skip
def test_errors_in_plain_words(run, script, words):
    run.start([sys.executable, "-IS", "-c", script])
    until(lambda: run.pid() is None)
    assert run.state() == "failed" and words in run.explain() and "stdout.log" in run.explain()


def test_only_the_last_start_counts(run):
    for words, state in (([sys.executable, "-IS", "-c", "{}['x']"], "failed"), (command(run.path, 3), "finished")):
        run.start(words)
        until(lambda: run.pid() is None)
        assert run.state() == state


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', "{", '{"pid": 1}', '{"pid": 1, "command": []}'])
def test_a_broken_note_is_no_run(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert Training(tmp_path).pid() is None and Training(tmp_path).state() in ("new", "failed")


def test_a_run_from_elsewhere(tmp_path):
    """Nothing but what a training writes: no run.json."""
    run = Training(tmp_path)
    run.config_file.write_text(CONFIG % 50)
    run.metrics_file.write_text(json.dumps({"iteration": 5, **ROW}) + "\n")
    assert run.state() == "elsewhere" and run.memory() is None
    (tmp_path / "run.json").write_text('{"pid": 1, "command": [], "host": "another machine"}')
    assert run.state() == "elsewhere"
    (tmp_path / "log.txt").write_text("eta: 1 max_mem: 2048M\n")
    run.evaluation_file.write_text("{}")
    assert run.state() == "finished" and run.memory() == (2.0, "GPU memory (most)")
    with open(tmp_path / "log.txt", "a") as file:
        file.write("Inference done 11/5000. ETA=0:01:23\n" * 1000)
    assert run.memory() == (2.0, "GPU memory (most)"), "a long evaluation hides nothing"


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_shows_the_hosts_memory(tmp_path):
    run = Training(tmp_path)
    (tmp_path / "log.txt").write_text("eta: 1 max_mem: 0M\n")
    assert run.memory() is None
    process = subprocess.Popen([sys.executable, "-IS", "-c", "input()"], stdin=subprocess.PIPE)
    note = {"pid": process.pid, "process_start": process_start(process.pid), "host": socket.gethostname()}
    (tmp_path / "run.json").write_text(json.dumps(note | {"command": [], "log_offset": 0}))
    gib, what = run.memory()
    process.communicate(b"\n", timeout=10)
    assert what == "memory" and 0 < gib < 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    run = Training(tmp_path / "file" / "run")
    with pytest.raises(LaunchError, match="expected a folder that can be written to"):
        run.start(command(run.path))
