"""install.py: the mends, the wheel, the pins; and that the package lists do not drift apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


def load_install():
    spec = importlib.util.spec_from_file_location("rio_install", REPOSITORY / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load_install()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return install.normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0])


def requirements() -> dict[str, str]:
    """Every requirement of pyproject.toml, extras included: {name: the whole line}."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return {name_of(line): line for line in lines}


# ------------------------------------------------------------------------------------------------------ drift

# conda-forge's names where they differ from the index's.
CONDA_NAMES = {"pytorch": "torch", "py-opencv": "opencv-python-headless"}


def test_environment_yml_has_what_pyproject_has():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    pip = next(line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    bounds = {}
    for line in conda:
        name, _, bound = line.partition(" ")
        bounds[CONDA_NAMES.get(name, name)] = bound
    for line in pip:
        bounds[name_of(line)] = line[len(re.match(r"[A-Za-z0-9._-]+", line)[0]) :]
    wanted = requirements()
    left_out = {name_of(line) for extra in ("boundary", "browser") for line in PROJECT["optional-dependencies"][extra]}
    of_conda_alone = {"python", "pip", "setuptools", "detectron2", *install.WITHOUT_DEPENDENCIES}
    assert set(bounds) == (set(wanted) - left_out) | of_conda_alone
    for name in set(wanted) & set(bounds):
        assert bounds[name] == wanted[name][len(re.match(r"[A-Za-z0-9._-]+", wanted[name])[0]) :], name
    assert bounds["python"] == PROJECT["requires-python"]
    assert environment["channels"][0] == "conda-forge"


def test_constraints_pin_everything_that_is_required():
    pinned = install.pins((REPOSITORY / "constraints.txt").read_text())
    needed = {*requirements(), *map(name_of, install.DETECTRON2_REQUIRES), *install.WITHOUT_DEPENDENCIES}
    assert needed <= set(pinned), "run `make constraints`"
    assert {"pip", "setuptools", "wheel"} <= set(pinned), "a wheelhouse needs them"
    assert "detectron2" not in pinned and "rio-detection" not in pinned and "opencv-python" not in pinned
    assert set(install.SOURCE_ONLY) <= set(pinned)


def test_constraints_satisfy_pyproject():
    from packaging.requirements import Requirement

    pinned = install.pins((REPOSITORY / "constraints.txt").read_text())
    for line in [*requirements().values(), *install.DETECTRON2_REQUIRES]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[install.normalised(requirement.name)]), line


def test_pythons_agree():
    for major, minor in install.PYTHONS:
        assert f"({major}, {minor})" in (REPOSITORY / "Makefile").read_text()
        assert f"{major}.{minor}" in (REPOSITORY / "README.md").read_text()
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


def test_extras_agree():
    extras = set(PROJECT["optional-dependencies"])
    assert set(install.DEFAULT_EXTRAS.split(",")) <= extras
    assert f"EXTRAS ?= {install.DEFAULT_EXTRAS}\n" in (REPOSITORY / "Makefile").read_text()
    assert install.all_extras() == ",".join(sorted(extras))


def test_a_bad_pin_is_an_error_that_names_the_line():
    assert install.pins("# why\nNumPy==2.0  # also why\n\nopencv_python.headless==5\n") == {
        "numpy": "2.0",
        "opencv-python-headless": "5",
    }
    with pytest.raises(install.InstallError, match=r"line 2: expected name==version, found 'numpy>=1'"):
        install.pins("pandas==3\nnumpy>=1\n")


def test_torch_family():
    family = [
        name
        for name in (
            "torch",
            "torchvision",
            "triton",
            "nvidia-cudnn-cu13",
            "cuda-bindings",
            "torchmetrics",
            "numpy",
            "pytorch",
        )
        if install.TORCH_FAMILY.match(name)
    ]
    assert family == ["torch", "torchvision", "triton", "nvidia-cudnn-cu13", "cuda-bindings"]


# ------------------------------------------------------------------------------------------------------ mends


def test_a_mend_applies_as_often_as_it_says():
    path = "detectron2/data/build.py"
    text = "# Copyright\na = np.zeros((n,), dtype=np.int)\nb = [\n    x, dtype=np.int\n]\n"
    mended = install.mend(text, path)
    assert "np.int" not in mended
    assert mended.splitlines()[:2] == ["# Copyright", install.CHANGED_NOTICE.strip()]
    with pytest.raises(install.InstallError, match=r"detectron2/data/build.py: expected 1 time\(s\) .* found 2"):
        install.mend(text + text, path)
    with pytest.raises(install.InstallError, match="found 0.*install an official detectron2"):
        install.mend("# Copyright\nnothing to mend\n", path)


def fake_sdist(folder: Path, leave_out: str = "", with_stub: bool = False) -> Path:
    """A source release with every passage that has a mend, as often as it has to be, and little else."""
    files = {
        name: "# Copyright\n" + "".join(old * count for old, _, count in mends) + "\n"
        for name, mends in install.MENDS.items()
        if name != leave_out
    }
    files |= {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "LICENSE": "terms\n",
        "setup.py": "boom\n",
        "detectron2/model_zoo/configs/a.yaml": "A: 1\n",
        "projects/PointRend/point_rend/__init__.py": "P = 1\n",
        "projects/Other/other/__init__.py": "",
        "docs/detectron2/x.py": "",
    }
    if with_stub:
        files["detectron2/_no_compiled_ops.py"] = ""
    path = folder / "release.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{install.SDIST_NAME}-{install.SDIST_VERSION}/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_the_wheel_is_a_wheel(tmp_path):
    wheel = install.pack_wheel(fake_sdist(tmp_path), tmp_path / "wheels")
    assert wheel.name == f"detectron2-{install.wheel_version()}-py3-none-any.whl"
    info = f"detectron2-{install.wheel_version()}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = [line.split(",") for line in archive.read(f"{info}/RECORD").decode().splitlines()]
        metadata = archive.read(f"{info}/METADATA").decode()
        assert b"np.int" not in archive.read("detectron2/data/build.py")
        assert all(int(size) == len(archive.read(name)) for name, _, size in record if size)
    assert {name for name, _, _ in record} == names
    assert {
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/model_zoo/configs/a.yaml",
        f"{info}/licenses/LICENSE",
        "detectron2/_no_compiled_ops.py",
    } <= names
    assert not {name for name in names if name.startswith(("docs", "setup", "projects"))}
    assert "Name: detectron2\n" in metadata and "Requires-Dist: fvcore>=0.1.5\n" in metadata
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [wheel.name], "no half-written file stays"


def test_the_wheel_has_the_same_bytes_every_time(tmp_path):
    sdist = fake_sdist(tmp_path)
    one, two = (install.pack_wheel(sdist, tmp_path / name).read_bytes() for name in "ab")
    assert one == two


def test_pip_lists_and_removes_the_wheel(tmp_path):
    """pip reads it as any other wheel: by name, with a record of every file."""
    wheel = install.pack_wheel(fake_sdist(tmp_path), tmp_path)
    target = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--no-deps",
            "--no-index",
            "--no-compile",
            "--target",
            str(target),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    (distribution,) = importlib.metadata.distributions(path=[str(target)])
    assert (distribution.name, distribution.version) == ("detectron2", install.wheel_version())
    assert {str(file) for file in distribution.files} >= {"detectron2/_no_compiled_ops.py"}


def test_a_source_release_that_changed_is_refused(tmp_path):
    with pytest.raises(install.InstallError, match="lacks detectron2/layers/deform_conv.py"):
        install.wheel_files(fake_sdist(tmp_path, leave_out="detectron2/layers/deform_conv.py"))
    with pytest.raises(install.InstallError, match="already has detectron2/_no_compiled_ops.py"):
        install.wheel_files(fake_sdist(tmp_path, with_stub=True))
    with pytest.raises(install.InstallError, match=f"expected {install.SDIST_SHA256}"):
        install.check_sdist(fake_sdist(tmp_path))


def test_other_mends_are_another_version(monkeypatch):
    before = install.wheel_version()
    assert re.fullmatch(r"0\.6\+rio\.[0-9a-f]{8}", before)
    monkeypatch.setitem(install.MENDS, "detectron2/data/build.py", [("a", "b", 1)])
    assert install.wheel_version() != before


def test_the_wheel_is_never_packed_twice(tmp_path, monkeypatch):
    sdist = fake_sdist(tmp_path)
    calls = []
    monkeypatch.setenv("RIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(install, "fetch_sdist", lambda folder: calls.append(folder) or sdist)
    assert install.detectron2_wheel() == install.detectron2_wheel()
    assert calls == [tmp_path / "cache" / "wheels"]


def test_without_a_cache_nothing_leaves_the_checkout(monkeypatch):
    monkeypatch.setenv("RIO_CACHE", "off")
    assert install.cache_folder().is_relative_to(install.REPOSITORY)


def test_real_source_release():
    """Every mend fits the release itself, and no passage that needed one is left."""
    path = install.cache_folder() / f"{install.SDIST_NAME}-{install.SDIST_VERSION}.tar.gz"
    if not path.is_file():
        pytest.skip(f"the source release is not cached ({path}); make install fetches it where no detectron2 is there")
    install.check_sdist(path)
    files = {name: content.decode() for name, content in install.wheel_files(path).items() if name.endswith(".py")}
    left = re.compile(r"np\.(int|float|object|str)\b|Image\.LINEAR|pkg_resources|^from detectron2 import _C$", re.M)
    assert not {name: left.search(text)[0] for name, text in files.items() if left.search(text)}
    for name, text in files.items():
        compile(text, name, "exec", dont_inherit=True)


def test_compiled_operators_are_an_error_only_when_used():
    scope: dict = {}
    exec(install.NO_COMPILED_OPS, scope)
    assert not hasattr(scope["_C"], "__wrapped__"), "introspection is no use"
    with pytest.raises(ImportError, match=r"_C\.nms_rotated: .*official build"):
        scope["_C"].nms_rotated
    scope = {}
    stub = type(sys)("detectron2._no_compiled_ops")
    exec(install.NO_COMPILED_OPS, stub.__dict__)
    modules = {"detectron2": type(sys)("detectron2"), "detectron2._no_compiled_ops": stub}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        exec(install.NO_C, scope)
    assert scope["_C"] is stub._C


def test_detectron2_imports_from_anywhere(tmp_path):
    """In any order, in a fresh process, without this repository beside it."""
    code = (
        "import detectron2.model_zoo, detectron2.layers, detectron2.evaluation, detectron2.engine; "
        "print(detectron2.model_zoo.get_config_file('LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_file()


# ------------------------------------------------------------------------------------------ stamp, wheelhouse


def checkout(folder: Path) -> Path:
    folder.mkdir()
    for name in install.FINGERPRINTED:
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("changed", install.FINGERPRINTED)
def test_what_decides_an_installation_is_in_its_fingerprint(tmp_path, changed):
    root = checkout(tmp_path / "checkout")
    before = install.fingerprint("demo", root)
    assert before == install.fingerprint("demo", root) != install.fingerprint("demo,test", root)
    assert before != install.fingerprint("demo", checkout(tmp_path / "another")), "installed in place"
    (root / changed).write_text("another")
    assert before != install.fingerprint("demo", root)


def test_stamp(tmp_path):
    assert not install.is_done(tmp_path, "demo")
    (tmp_path / install.STAMP).write_text("{half")
    assert not install.is_done(tmp_path, "demo")
    (tmp_path / install.STAMP).write_text(json.dumps({"fingerprint": install.fingerprint("demo")}))
    assert install.is_done(tmp_path, "demo") and not install.is_done(tmp_path, "demo,test")


def test_an_environment_of_another_python_is_not_taken(tmp_path):
    install.check_python(tmp_path / "not there yet")
    (tmp_path / "pyvenv.cfg").write_text(f"home = bin\nversion = {install.version_text()}.9\n")
    install.check_python(tmp_path)
    (tmp_path / "pyvenv.cfg").write_text("home = bin\nversion = 3.10.1\n")
    with pytest.raises(install.InstallError, match=r"is of Python 3.10, and .* VENV="):
        install.check_python(tmp_path)


def test_platform_tags():
    tags = install.platform_tags("manylinux_2_28_x86_64")
    assert tags[0] == "manylinux_2_28_x86_64" and tags[-1] == "linux_x86_64"
    assert {"manylinux2014_x86_64", "manylinux1_x86_64", "manylinux_2_5_x86_64"} <= set(tags)
    assert install.platform_tags("macosx_11_0_arm64") == ["macosx_11_0_arm64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--collect", "{tmp}/wheels", "--for-python", "3.9"], "PYTHON=3.9: rio runs on Python 3.11 or Python 3.12"),
        (["--force", "--wheelhouse", "{tmp}/none"], "no such folder"),
    ],
)
def test_errors_name_the_remedy(tmp_path, arguments, message):
    if "--wheelhouse" in arguments and sys.prefix == sys.base_prefix:
        pytest.skip("not in an environment of its own")
    command = [sys.executable, str(REPOSITORY / "install.py"), *(word.format(tmp=tmp_path) for word in arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("install: ") and message in result.stderr
    assert "Traceback" not in result.stderr


def test_make_alone_lists_every_command():
    done = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for name in set(phony[1].split()) - {"help"}:
        assert f"make {name}" in done.stdout, name


def test_make_says_which_pythons_it_wants():
    result = subprocess.run(
        ["make", "-s", "install", "PYTHON=python2.7-that-is-not-there"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "rio needs Python 3.11 or 3.12; tried: python2.7-that-is-not-there" in result.stderr


# ------------------------------------------------------------------------------------------------------- info


def some_info(**changes) -> dict:
    info = {
        "rio": "1.0",
        "python": "3.12.1 (python)",
        "platform": "Linux",
        "cores": 2,
        "versions": {"torch": "2.15.0", "lvis": None},
        "detectron2": {
            "version": "0.6+rio.0",
            "kind": "pure-Python wheel made by rio's install.py",
            "path": "site/detectron2",
        },
        "gpus": {"found": 0, "devices": [], "note": "no NVIDIA driver on this machine"},
        "datasets": [{"name": "lvis_v1_train", "found": False, "looked_at": "datasets/lvis/lvis_v1_train.json"}],
        "demo_weights": {"package": "some-weights", "found": False, "version": None},
    }
    return info | changes


def test_info_says_what_is_missing_and_what_to_do():
    from rio.engine.info import format_info

    text = format_info(some_info())
    assert re.search(r"GPU +none: no NVIDIA driver", text)
    assert re.search(r"demo weights +not found: package some-weights .remedy: make install", text)
    assert re.search(r"lvis +not installed", text)
    assert re.search(r"lvis_v1_train +not found +datasets/lvis/lvis_v1_train.json", text)
    missing = format_info(some_info(detectron2={"version": None, "kind": "missing", "path": None}))
    assert re.search(r"detectron2 +missing\n +remedy: make install", missing)
    gpu = format_info(some_info(gpus={"found": 1, "devices": [{"name": "H100", "memory_gib": 79.2}], "note": ""}))
    assert re.search(r"GPU +H100, 79.2 GiB", gpu) and "none" not in gpu


@pytest.mark.parametrize(
    ("version", "compiled", "kind"),
    [
        ("0.6+rio.01234567", False, "pure-Python wheel"),
        ("0.6", True, "official build"),
        ("0.6", False, "without compiled"),
    ],
)
def test_info_says_where_detectron2_comes_from(tmp_path, monkeypatch, version, compiled, kind):
    from rio.engine import info

    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").touch()
    if compiled:
        (package / "_C.cpython-312-x86_64-linux-gnu.so").touch()
    spec = importlib.util.spec_from_file_location("detectron2", package / "__init__.py")
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(info, "_version", lambda name: version)
    origin = info.detectron2_origin()
    assert origin["kind"].startswith(kind) and origin["path"] == str(package) and origin["version"] == version
    monkeypatch.setattr(info.importlib.util, "find_spec", lambda name: None)
    assert info.detectron2_origin()["kind"] == "missing"


def test_info_of_this_environment():
    from rio.engine.info import collect, format_info

    info = collect()
    assert info["versions"]["torch"] == importlib.metadata.version("torch")
    assert info["detectron2"]["kind"] != "missing"
    assert info["datasets"] and all({"name", "found", "looked_at"} <= set(entry) for entry in info["datasets"])
    json.dumps(info)
    assert all(entry["looked_at"] in format_info(info) for entry in info["datasets"])


def test_hash_of_the_source_release_is_a_hash():
    assert len(install.SDIST_SHA256) == hashlib.sha256().digest_size * 2
