"""rio/install.py and the Makefile: the corrected wheel, what is kept, what is refused, and lists that must agree."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rio import install

REPOSITORY = Path(__file__).resolve().parents[1]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Every requirement of pyproject.toml, extras included, by name.
WANTED = {
    canonicalize_name(Requirement(line).name): Requirement(line)
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
}
PINS = {canonicalize_name(name): version for name, version in install.pins().items()}

# ---- lists that must agree

CONDA_NAMES = {"pytorch": "torch", "py-opencv": "opencv-python-headless"}


def test_environment_yml_has_what_pyproject_has():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    lines = [line.replace(" ", "", 1) for line in environment["dependencies"] if isinstance(line, str)]
    lines += next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    found = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in map(Requirement, lines)}
    left_out = {Requirement(line).name for extra in ("boundary", "browser", "lint") for line in EXTRAS[extra]}
    only_conda = {"python", "pip", "setuptools", "detectron2", "lvis"}
    assert set(found) == (set(WANTED) - left_out) | only_conda
    for name in set(WANTED) & set(found):
        assert found[name] == WANTED[name].specifier, name
    assert found["python"] == Requirement(f"python{PROJECT['requires-python']}").specifier
    assert environment["channels"][0] == "conda-forge"


# What conda-forge's recipe of detectron2 0.6 (build 16) asks of packages that environment.yml lists too.
DETECTRON2_RECIPE = (
    "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7,<0.1.10", "pillow>=7.1", "pycocotools>=2.0.2", "tqdm>4.29.0", "yacs>=0.1.8"
)  # fmt: skip


def test_environment_yml_leaves_versions_that_condas_detectron2_takes():
    for theirs in map(Requirement, DETECTRON2_RECIPE):
        lowest = next(s.version for s in WANTED[canonicalize_name(theirs.name)].specifier if s.operator == ">=")
        assert theirs.specifier.contains(lowest), f"{theirs}: from {lowest} on there may be none"


@pytest.mark.slow
def test_the_pip_part_of_environment_yml_needs_nothing_that_conda_has_not_brought(tmp_path):
    """Into an environment with all of this one's packages but these and rio, as conda leaves it."""
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    lines = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    ours = {canonicalize_name(Requirement(line).name) for line in lines}
    left_out = {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"}
    for found in importlib.metadata.distributions():
        if canonicalize_name(found.name) in ours | {"rio-detection", "pip", "setuptools"}:
            left_out |= {path.parts[0] for path in found.files or ()}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in left_out and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    for name in ("rio", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)

    def pip(*words: str) -> str:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
        done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def listed() -> dict[str, str]:
        return {canonicalize_name(one["name"]): one["version"] for one in json.loads(pip("list", "--format=json"))}

    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    before = listed()
    assert "torch" in before and "detectron2" in before and not ours & before.keys()
    pip("install", *lines)
    pip("install", "--no-deps", "-e", ".")
    changed = before.items() ^ listed().items()
    assert {name for name, _ in changed} == ours | {"rio-detection"}, "it would change what conda has chosen"
    words = [str(python), "-m", "rio", "info"]
    done = subprocess.run(words, cwd=tmp_path / "env", env=bare, capture_output=True, text=True)
    assert done.returncode == 0 and "hotcoco" in done.stdout, done.stdout + done.stderr


def test_constraints_pin_what_is_required_at_versions_that_serve():
    assert {"pip", "setuptools", "wheel", "lvis", *WANTED} <= set(PINS), "run `make constraints`"
    assert not {"detectron2", "rio-detection", "opencv-python"} & set(PINS)
    for requirement in [*WANTED.values(), *map(Requirement, install.DETECTRON2_REQUIRES)]:
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)]), requirement


def test_pythons_and_extras_agree():
    (_, oldest), (_, newest) = install.PYTHONS
    assert PROJECT["requires-python"] == f">=3.{oldest},<3.{newest + 1}"
    assert f"(3, {oldest}) <= sys.version_info[:2] <= (3, {newest})" in MAKEFILE
    assert "python3 " + " ".join(f"python3.{n}" for n in range(newest, oldest - 1, -1)) in MAKEFILE  # the newest first
    assert f"3.{oldest} to 3.{newest}" in (REPOSITORY / "README.md").read_text()
    default = re.search(r"^EXTRAS \?= (.*)$", MAKEFILE, re.MULTILINE)[1]
    assert set(default.split(",")) <= set(EXTRAS)
    assert f"EXTRAS={','.join(sorted(EXTRAS))}\n" in MAKEFILE, "make constraints pins all extras"


# ---- the wheel


def fake_sdist(folder: Path, leave_out: str = "", **more: str) -> Path:
    """A source release with every passage that is corrected, as often as it has to be, and little else."""
    files = {
        name: "# Copyright\n" + "".join(old * count for old, _, count in passages) + "\n"
        for name, passages in install.CORRECTIONS.items()
        if name != leave_out
    }
    files |= {
        "detectron2/__init__.py": "__version__ = '0.6'\n", "LICENSE": "terms\n", "setup.py": "boom\n",
        "detectron2/model_zoo/configs/a.yaml": "A: 1\n", "projects/PointRend/point_rend/__init__.py": "P = 1\n",
        "projects/Other/other/__init__.py": "", "docs/detectron2/x.py": "",
    }  # fmt: skip
    path = folder / "release.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in (files | more).items():
            entry = tarfile.TarInfo(f"{install.SDIST_NAME}-{install.SDIST_VERSION}/{name}")
            entry.size = len(text)
            archive.addfile(entry, BytesIO(text.encode()))
    return path


def test_a_correction_applies_as_often_as_it_says():
    path = "detectron2/data/build.py"
    text = "# Copyright\na = np.zeros((n,), dtype=np.int)\nb = [\n    x, dtype=np.int\n]\n"
    fixed = install.corrected(text, path)
    assert "np.int" not in fixed and fixed.splitlines()[:2] == ["# Copyright", install.CHANGED_NOTICE.strip()]
    with pytest.raises(install.InstallError, match=r"detectron2/data/build.py: expected 1 time\(s\) .* found 2"):
        install.corrected(text + text, path)
    with pytest.raises(install.InstallError, match=r"found 0.*Fix: install an official detectron2"):
        install.corrected("# Copyright\nnothing\n", path)


def test_the_wheel_is_a_wheel_with_the_same_bytes_every_time(tmp_path):
    sdist = fake_sdist(tmp_path)
    wheel, again = (install.pack_wheel(sdist, tmp_path / name) for name in "ab")
    assert wheel.read_bytes() == again.read_bytes() and wheel.name == install.wheel_name()
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name], "a half-written file stays"
    info = f"detectron2-{install.wheel_version()}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = [line.split(",") for line in archive.read(f"{info}/RECORD").decode().splitlines()]
        assert b"np.int" not in archive.read("detectron2/data/build.py")
        assert all(int(size) == len(archive.read(name)) for name, _, size in record if size)
    assert {name for name, _, _ in record} == names
    own = ("projects/point_rend/__init__.py", "model_zoo/configs/a.yaml", "_no_compiled_ops.py")
    assert names >= {f"{info}/licenses/LICENSE", *(f"detectron2/{name}" for name in own)}
    assert not {name for name in names if name.startswith(("docs", "setup", "projects"))}
    (found,) = importlib.metadata.distributions(path=[str(wheel)])  # as pip reads it
    assert (found.name, found.version) == ("detectron2", install.wheel_version())
    assert "fvcore>=0.1.5" in found.requires


def test_a_source_release_that_changed_is_refused(tmp_path):
    with pytest.raises(install.InstallError, match="lacks detectron2/layers/deform_conv.py"):
        install.wheel_files(fake_sdist(tmp_path, leave_out="detectron2/layers/deform_conv.py"))
    with pytest.raises(install.InstallError, match="already has detectron2/_no_compiled_ops.py"):
        install.wheel_files(fake_sdist(tmp_path, **{"detectron2/_no_compiled_ops.py": ""}))
    with pytest.raises(install.InstallError, match=f"expected sha256 {install.SDIST_SHA256}"):
        install.check_sdist(fake_sdist(tmp_path))


def test_other_corrections_are_another_version(monkeypatch):
    before = install.wheel_version()
    assert re.fullmatch(r"0\.6\+rio\.[0-9a-f]{8}", before)
    monkeypatch.setitem(install.CORRECTIONS, "detectron2/data/build.py", [("a", "b", 1)])
    assert install.wheel_version() != before


def test_the_wheel_is_packed_once_and_stays_where_it_is_told(tmp_path, monkeypatch):
    calls, sdist = [], fake_sdist(tmp_path)
    monkeypatch.setattr(install, "fetch_sdist", lambda folder: calls.append(folder) or sdist)
    monkeypatch.setenv("RIO_CACHE", str(tmp_path / "cache"))
    assert install.detectron2_wheel() == install.detectron2_wheel()
    assert calls == [tmp_path / "cache" / "wheels"]
    monkeypatch.setenv("RIO_CACHE", "off")
    assert install.cache_folder().is_relative_to(install.REPOSITORY)


def test_real_source_release():
    """Every correction fits the release itself, and no passage that needed one is left."""
    path = install.cache_folder() / f"{install.SDIST_NAME}-{install.SDIST_VERSION}.tar.gz"
    if not path.is_file():
        pytest.skip(f"the source release is not cached ({path}); make install fetches it where no detectron2 is there")
    install.check_sdist(path)
    files = {name: content.decode() for name, content in install.wheel_files(path).items() if name.endswith(".py")}
    left = re.compile(r"np\.(int|float|object|str)\b|Image\.LINEAR|pkg_resources|^from detectron2 import _C$", re.M)
    assert not {name: left.search(text)[0] for name, text in files.items() if left.search(text)}
    for name in [*install.CORRECTIONS, *install.ADDED]:
        compile(files[name], name, "exec", dont_inherit=True)


def test_compiled_operators_are_an_error_only_when_used(monkeypatch):
    stub = type(sys)("detectron2._no_compiled_ops")
    exec(install.NO_COMPILED_OPS, stub.__dict__)
    assert not hasattr(stub._C, "__wrapped__"), "introspection uses no operator"
    with pytest.raises(ImportError, match=r"_C\.nms_rotated: .*official build"):
        _ = stub._C.nms_rotated
    monkeypatch.setitem(sys.modules, "detectron2", type(sys)("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2._no_compiled_ops", stub)
    scope: dict = {}
    exec(install.NO_C, scope)
    assert scope["_C"] is stub._C


def test_the_model_zoo_of_this_environment_finds_its_files():
    from detectron2 import model_zoo

    assert Path(model_zoo.get_config_file("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")).is_file()


# ---- what is installed, kept, refused


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """An environment in tmp_path with the given packages; returns the commands that pip got."""

    def make(ours: str = "", **there: str) -> list[tuple[str, ...]]:
        commands = []

        def pip(*words, what, env=None):
            bounds = Path(words[words.index("-c") + 1]).read_text()
            commands.append((*words, bounds))

        (tmp_path / install.OUR_TORCH).write_text(ours)
        monkeypatch.setattr(install, "pip", pip)
        monkeypatch.setattr(install, "installed", there.get)
        monkeypatch.setattr(install, "import_problem", lambda modules: "")
        monkeypatch.setattr(install, "detectron2_wheel", lambda: Path(sys.executable))
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        return commands

    return make


@pytest.mark.parametrize(
    ("there", "keeps_torch", "keeps_detectron2"),
    [
        ({}, False, False),
        ({"torch": f"{PINS['torch']}+cpu", "detectron2": "0.6+rio.00000000"}, False, False),
        ({"torch": "2.1.0", "ours": "2.1.0"}, False, False),  # brought by an earlier version of this script
        ({"torch": "2.1.0", "torchvision": "0.16.0"}, True, False),
        ({"torch": PINS["torch"], "detectron2": "0.6"}, False, True),
    ],
)
def test_what_others_built_is_kept(machine, capsys, there, keeps_torch, keeps_detectron2):
    commands = machine(**there)
    install.install("demo", None)
    told = capsys.readouterr().out
    assert (f"torch {there.get('torch')} is there and is kept" in told) == keeps_torch
    assert (f"detectron2 {there.get('detectron2')} is there and is kept" in told) == keeps_detectron2
    words, bounds = commands[1][:-1], commands[1][-1]
    assert f"{install.REPOSITORY}[demo]" in words and (sys.executable in words) != keeps_detectron2
    assert ("numpy==" in bounds) == (not keeps_torch and not keeps_detectron2)
    if keeps_torch:
        assert bounds == "torch==2.1.0\ntorchvision==0.16.0\n"
    assert commands[2][-3:-1] == ("--no-deps", f"lvis=={PINS['lvis']}")


def test_an_unsuitable_machine_is_refused_with_a_fix(machine, monkeypatch, tmp_path):
    def refused(wheelhouse: Path | None = None) -> str:
        with pytest.raises(install.InstallError, match="Fix: ") as error:
            install.check_environment(wheelhouse, anywhere=False, take_over=False)
        return str(error.value)

    machine()
    assert "no such folder" in refused(tmp_path / "none")
    assert "torch is neither in this environment nor in the wheelhouse" in refused(tmp_path)
    monkeypatch.setattr(install, "FREE_GIB", 1 << 20)
    assert "GiB free" in refused()
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    assert "belongs to the system" in refused()
    monkeypatch.setattr(install, "PYTHONS", ((3, 1), (3, 2)))
    assert "rio runs on Python 3.1 to 3.2" in refused()


@pytest.fixture
def other_checkout(machine, tmp_path):
    """An environment that another checkout has installed rio into."""
    other = tmp_path / "the other"
    (other / "rio").mkdir(parents=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path)}), "rio_detection-0.1.0.dist-info")
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: rio-detection\nVersion: 0.1.0\n")
    (site / "direct_url.json").write_text(json.dumps({"url": other.as_uri(), "dir_info": {"editable": True}}))
    return other


def test_another_checkout_loses_its_environment_only_if_asked(other_checkout, machine, tmp_path, capsys):
    stamp = tmp_path / "rio-installed-123"
    stamp.touch()
    machine(torch=PINS["torch"])
    with pytest.raises(install.InstallError, match=f"{re.escape(str(other_checkout))}, and would run that of .* Fix: "):
        install.check_environment(None, anywhere=False, take_over=False)
    assert stamp.exists()
    install.check_environment(None, anywhere=False, take_over=True)
    install.install("", None)
    assert f"{other_checkout} loses this environment" in capsys.readouterr().out
    assert not stamp.exists(), "the other checkout's make would take it for installed"


def test_an_environment_of_this_checkout_or_of_one_that_is_gone_is_not_another_s(other_checkout, machine, monkeypatch):
    machine(torch=PINS["torch"])
    with monkeypatch.context() as patch:
        patch.setattr(install, "REPOSITORY", other_checkout)
        install.check_environment(None, anywhere=False, take_over=False)
    shutil.rmtree(other_checkout)
    install.check_environment(None, anywhere=False, take_over=False)


def test_another_wheelhouse_and_a_broken_detectron2_are_refused(machine, monkeypatch, tmp_path):
    machine(torch=PINS["torch"])
    with pytest.raises(install.InstallError, match=f"{re.escape(install.wheel_name())}: not found"):
        install.install("", tmp_path)
    machine(detectron2="0.6")
    monkeypatch.setattr(install, "import_problem", lambda modules: "no attribute LINEAR")
    with pytest.raises(install.InstallError, match=r"detectron2 0.6 .* LINEAR. Fix: .*pip uninstall detectron2"):
        install.install("", None)


# ---- make


def make(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "-s", *words], cwd=REPOSITORY, capture_output=True, text=True)


def test_make_alone_lists_every_command():
    done = make()
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1]
    assert done.returncode == 0, done.stderr
    assert not [name for name in phony.split() if name != "help" and f"make {name}" not in done.stdout]


def test_make_says_which_pythons_it_wants(tmp_path):
    done = make("install", "PYTHON=python2.7-that-is-not-there", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert "rio needs Python 3.11 to 3.14; tried: python2.7-that-is-not-there. Fix: " in done.stderr


def test_make_refuses_an_environment_of_another_python(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 3.10\n")
    python.chmod(0o755)
    done = make("install", f"PYTHON={sys.executable}", f"VENV={tmp_path}")
    assert done.returncode != 0
    assert f"{tmp_path} has Python 3.10; asked for 3.{sys.version_info[1]}. Fix: " in done.stderr
    done = make("-n", "install", f"VENV={tmp_path}")  # without PYTHON, what is there serves
    assert "-m rio.install" in done.stdout and "-m venv" not in done.stdout


def test_make_lines_counts(tmp_path):
    done = make("lines")
    assert re.search(r"rio/ +\d+\nthe method +\d+\ntests/ +\d+\nthe largest file +\d+ rio/", done.stdout), done.stdout
