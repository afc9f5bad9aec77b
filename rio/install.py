"""Install rio and everything below it without a compiler: `python -m rio.install`, standard library only.

`make install` makes an environment and runs this in it. Three things keep it from being one `pip install`:

* detectron2 has no wheel on the index and needs a compiler. The index has v0.6's Python files, and RIO needs no C++. So
  that release is fetched (hash-checked), corrected for newer NumPy, Pillow, setuptools and torch (`CORRECTIONS`), and
  packed as a pure-Python wheel. A detectron2 that is already there is kept.
* lvis declares opencv-python, which needs libGL; opencv-python-headless does the same: lvis comes without dependencies.
* a torch that is already there is kept: GPU clusters have their own build.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.parse
import zipfile
from pathlib import Path

from rio.data.files import write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHONS = ((3, 11), (3, 14))  # oldest and newest
FREE_GIB = 9  # torch's CUDA build unpacks to 5.4 GB beside its 2.5 GB of downloads
OUR_TORCH = "rio-torch"  # file in the environment: the version of torch that came from here and may be replaced

SDIST_NAME, SDIST_VERSION = "pb1-detectron2", "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Newer pips refuse a source release that names a direct URL, even in an unused extra; this one does not.
FETCHING_PIP = ("pip==25.3", "setuptools==80.9.0")

NO_C = """try:
    from detectron2 import _C
except ImportError:
    from detectron2._no_compiled_ops import _C
"""

NO_COMPILED_OPS = '''"""Stands in for the compiled `detectron2._C`: an error, but only when an operator is used."""
class _NoCompiledOps:
    def __getattr__(self, name):
        if name.startswith("__"):  # introspection (inspect, doctest, pickle) uses no operator
            raise AttributeError(name)
        raise ImportError(
            "detectron2._C.%s: this detectron2 is a pure-Python wheel without compiled operators. Rotated boxes, "
            "deformable convolutions on a GPU and the fast COCO evaluation need an official build (conda-forge, or "
            "from source with a compiler); for COCOEvaluator pass use_fast_impl=False." % name
        )
_C = _NoCompiledOps()
'''

# file -> (old passage, new passage, how often the old one occurs). Any other count stops the build.
CORRECTIONS: dict[str, list[tuple[str, str, int]]] = {
    # PIL.Image.LINEAR is gone since Pillow 10.
    "detectron2/data/transforms/transform.py": [("interp=Image.LINEAR", "interp=Image.BILINEAR", 1)],
    # np.int, np.float and np.str are gone since NumPy 1.24.
    "detectron2/data/build.py": [("dtype=np.int)", "dtype=int)", 1), ("dtype=np.int\n", "dtype=int\n", 1)],
    "detectron2/data/datasets/pascal_voc.py": [("dtype=np.str)", "dtype=str)", 1)],
    "detectron2/evaluation/sem_seg_evaluation.py": [("dtype=np.int)", "dtype=int)", 2), ("np.float)", "float)", 5)],
    # The compiled operators: an error when used, not when imported.
    **{
        f"detectron2/{name}.py": [("from detectron2 import _C\n", NO_C, 1)]
        for name in (
            "layers/deform_conv",
            "layers/roi_align_rotated",
            "layers/rotated_boxes",
            "evaluation/fast_eval_api",
        )
    },
    "detectron2/utils/collect_env.py": [('f"not built correctly: {e}"', 'f"none, a pure-Python wheel ({e})"', 1)],
    # pkg_resources is gone since setuptools 81.
    "detectron2/model_zoo/model_zoo.py": [
        ("import pkg_resources\n", "", 1),
        ('pkg_resources.resource_filename(\n        "detectron2.model_zoo", ', "", 1),
        ('("configs", config_path)\n    )', '(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)', 1),
    ],
    # Without it torch warns in every process; "ij" is what it does anyway.
    "detectron2/modeling/anchor_generator.py": [
        ("torch.meshgrid(shifts_y, shifts_x)", 'torch.meshgrid(shifts_y, shifts_x, indexing="ij")', 1)
    ],
}
# pip asks the release's setup.py for metadata; that imports torch, but needs nothing of it.
TORCH_STUB = {
    "torch/__init__.py": "__version__ = '2.0'\nclass version: hip = None\nclass cuda: is_available = lambda: False\n",
    "torch/utils/__init__.py": "",
    "torch/utils/cpp_extension.py": "from setuptools import Extension as CppExtension\n"
    "from setuptools.command.build_ext import build_ext as BuildExtension\n"
    "CUDAExtension, CUDA_HOME, ROCM_HOME = CppExtension, None, None\n",
}
ADDED = {"detectron2/_no_compiled_ops.py": NO_COMPILED_OPS}
CHANGED_NOTICE = "# Changed from the v0.6 release by rio/install.py, which lists every change.\n"

# Folders that setup.py installs in detectron2/projects.
PROJECTS = ("projects/PointRend/point_rend", "projects/DeepLab/deeplab", "projects/Panoptic-DeepLab/panoptic_deeplab")
# setup.py's list without upper bounds and without what only caffe2 export and LazyConfig.to_py use.
DETECTRON2_REQUIRES = (
    "Pillow>=7.1", "cloudpickle", "fvcore>=0.1.5", "hydra-core>=1.1", "iopath>=0.1.7", "matplotlib", "omegaconf>=2.1",
    "pycocotools>=2.0.2", "tabulate", "tensorboard", "termcolor>=1.1", "tqdm>4.29.0", "yacs>=0.1.8",
)  # fmt: skip
DETECTRON2_PARTS = "detectron2.engine, detectron2.evaluation, detectron2.model_zoo"  # what has to import
WHEEL_LAYOUT = 2  # raise it when `pack_wheel` itself changes what it writes


class InstallError(RuntimeError):
    """What is wrong with the machine, the environment or a source, and how to fix it."""


def wheel_version() -> str:
    """The wheel's version; its local part hashes what decides the content: other corrections are another version."""
    decides = [SDIST_SHA256, CORRECTIONS, ADDED, CHANGED_NOTICE, PROJECTS, DETECTRON2_REQUIRES, WHEEL_LAYOUT]
    return f"{SDIST_VERSION}+rio.{hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]}"


def wheel_name() -> str:
    return f"detectron2-{wheel_version()}-py3-none-any.whl"


def corrected(text: str, path: str) -> str:
    """A file with its corrections; InstallError if a passage does not occur as often as expected."""
    for old, new, count in CORRECTIONS[path]:
        if (found := text.count(old)) != count:
            fix = "install an official detectron2 and run again; it is kept"
            raise InstallError(f"{path}: expected {count} time(s) {old!r}, found {found}: another release. Fix: {fix}.")
        text = text.replace(old, new)
    first, rest = text.split("\n", 1)  # line one is the copyright
    return f"{first}\n{CHANGED_NOTICE}{rest}"


def wheel_files(sdist: Path) -> dict[str, bytes]:
    """Every corrected file of the wheel except its metadata, by its name in the wheel."""
    files: dict[str, bytes] = {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]  # without the release's own folder
            if name.startswith(tuple(f"{project}/" for project in PROJECTS)):
                name = f"detectron2/projects/{name.split('/', 2)[2]}"
            code = name.startswith("detectron2/") and name.endswith((".py", ".yaml"))
            if member.isfile() and (code or name == "LICENSE"):
                files[name] = archive.extractfile(member).read()
    if missing := CORRECTIONS.keys() - files:
        raise InstallError(f"{sdist.name} lacks {', '.join(sorted(missing))}, which rio/install.py corrects")
    if clash := ADDED.keys() & files:
        raise InstallError(f"{sdist.name} already has {', '.join(sorted(clash))}, which rio/install.py would add")
    files |= {name: corrected(files[name].decode(), name).encode() for name in CORRECTIONS}
    return files | {name: text.encode() for name, text in ADDED.items()}


def pack_wheel(sdist: Path, folder: Path) -> Path:
    """Makes the pure-Python wheel in a folder from the (checked) source release; the same bytes every time."""
    version, files, info = wheel_version(), wheel_files(sdist), f"detectron2-{wheel_version()}.dist-info"
    metadata = ["Metadata-Version: 2.1", "Name: detectron2", f"Version: {version}", "License: Apache-2.0"]
    metadata += ["Summary: Detectron2 v0.6, Python only, corrected by rio/install.py: no compiled operators"]
    metadata += ["Requires-Python: >=3.8", *(f"Requires-Dist: {name}" for name in DETECTRON2_REQUIRES)]
    files[f"{info}/licenses/LICENSE"] = files.pop("LICENSE")
    files[f"{info}/METADATA"] = "\n".join([*metadata, ""]).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: rio-install\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = ""
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in sorted(files, key=lambda name: (name.startswith(info), name)):
            entry = zipfile.ZipInfo(name, (2021, 11, 15, 0, 0, 0))  # a fixed day: the same bytes every time
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, files[name])
    write_atomically(folder / wheel_name(), buffer.getvalue())
    return folder / wheel_name()


def check_sdist(path: Path) -> None:
    """Raises InstallError if the file is not the source release that the corrections were written for."""
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SDIST_SHA256:
        raise InstallError(f"{path}: expected sha256 {SDIST_SHA256}, found {found}. Fix: remove the damaged file.")


def cache_folder() -> Path:
    """Where the source release and the wheel are kept: `wheels/` in $RIO_CACHE or in `rio/` of the user's cache."""
    named = os.environ.get("RIO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rio")
    top = REPOSITORY / "build" if named == "off" else Path(named).expanduser()  # off: nothing leaves the checkout
    return top / "wheels"


def fetch_sdist(folder: Path) -> Path:
    """The source release, from the cache or the index; its hash is checked before any of it runs."""
    path = folder / f"{SDIST_NAME}-{SDIST_VERSION}.tar.gz"
    if not path.is_file():
        say(f"fetching the source of detectron2 {SDIST_VERSION}")
        with tempfile.TemporaryDirectory() as temporary:
            tools, down = Path(temporary, "tools"), Path(temporary, "down")
            pip("install", "-qq", "--target", str(tools), *FETCHING_PIP, what="fetching pip for the source release")
            for name, text in TORCH_STUB.items():
                (tools / name).parent.mkdir(parents=True, exist_ok=True)
                (tools / name).write_text(text)
            wanted = Path(temporary, "wanted.txt")
            wanted.write_text(f"{SDIST_NAME}=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n")
            options = ["-qq", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
            what = "fetching the source release of detectron2"
            pip("download", *options, "-r", str(wanted), "-d", str(down), what=what, env={"PYTHONPATH": str(tools)})
            write_atomically(path, next(down.glob("*.tar.gz")).read_bytes())
    check_sdist(path)
    return path


def detectron2_wheel() -> Path:
    """The pure-Python wheel, packed on the first call and then from the cache."""
    path = cache_folder() / wheel_name()
    return path if path.is_file() else pack_wheel(fetch_sdist(path.parent), path.parent)


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def pip(*arguments: str, what: str, env: dict[str, str] | None = None) -> None:
    """Runs this environment's pip; InstallError if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if subprocess.run(command, env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore", **(env or {})}).returncode:
        raise InstallError(f"{what} failed, see above. Fix the cause and run the same command again; it resumes.")


def pins() -> dict[str, str]:
    """constraints.txt as {name: version}."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_problem(modules: str) -> str:
    """Last line of the error when these are imported; empty if it works."""
    result = subprocess.run([sys.executable, "-c", f"import {modules}"], capture_output=True, text=True)
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["no message"])[-1]


def other_checkout() -> Path | None:
    """The checkout whose rio this environment runs (an editable install), if that is there and another one."""
    site = sysconfig.get_path("purelib", vars={"base": sys.prefix})
    for found in importlib.metadata.distributions(name="rio-detection", path=[site]):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        path = Path(urllib.parse.unquote(urllib.parse.urlsplit(origin.get("url", "")).path)).resolve()
        if origin.get("dir_info", {}).get("editable") and path != REPOSITORY and (path / "rio").is_dir():
            return path
    return None


def check_environment(wheelhouse: Path | None, anywhere: bool, take_over: bool) -> None:
    """Raises InstallError if this python, its environment or the wheelhouse cannot serve."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        versions = "Python {}.{} to {}.{}".format(*PYTHONS[0], *PYTHONS[1])
        raise InstallError(f"{sys.executable} is Python {python}; rio runs on {versions}. Fix: make install PYTHON=...")
    environment = Path(sys.prefix)
    if sys.prefix == sys.base_prefix and not (environment / "conda-meta").is_dir() and not anywhere:
        fix = "use `make install` or an activated environment; in a container, --anywhere"
        raise InstallError(f"{sys.executable} belongs to the system. Fix: {fix}.")
    if (other := other_checkout()) and not take_over:
        raise InstallError(
            f"{environment.resolve()} runs the rio of another checkout, {other}, and would run that of {REPOSITORY} "
            "from then on. Fix: make install VENV=.venv-own (or remove .venv, where it is a link); to take it from the "
            "other checkout, make install TAKE_OVER=1"
        )
    if wheelhouse and not wheelhouse.is_dir():
        raise InstallError(f"{wheelhouse}: no such folder. Fix: make wheelhouse PYTHON={python}")
    if installed("torch"):
        return
    if wheelhouse and not list(wheelhouse.glob("torch-*.whl")):
        torch, vision = (f"{name}=={pins()[name]}" for name in ("torch", "torchvision"))
        raise InstallError(
            "torch is neither in this environment nor in the wheelhouse, which leaves it out (2.5 GB; clusters have "
            "their own build). Fix: load your cluster's torch, then make install WHEELHOUSE=... SYSTEM_SITE_PACKAGES=1 "
            f"PYTHON=its-python; or, with a network: pip download {torch} {vision} -d {wheelhouse}"
        )
    if not wheelhouse and shutil.disk_usage(environment).free < FREE_GIB << 30:
        raise InstallError(
            f"{environment}: less than {FREE_GIB} GiB free, and torch takes 5.4 GB. Fix: make room, or put the "
            "environment elsewhere: make install VENV=/path/with/room"
        )


def install(extras: str, wheelhouse: Path | None) -> None:
    """Installs everything into this python's environment."""
    started = time.monotonic()
    pinned, marker = pins(), Path(sys.prefix, OUR_TORCH)
    torch, detectron2 = installed("torch"), installed("detectron2")
    ours = torch is None or (marker.is_file() and marker.read_text() == torch.partition("+")[0])
    kept = {"torch": torch} if not ours and torch.partition("+")[0] != pinned["torch"] else {}
    if detectron2 and "+rio" not in detectron2:
        if problem := import_problem(DETECTRON2_PARTS):
            raise InstallError(
                f"detectron2 {detectron2} is there but does not import: {problem}. Fix: repair it (v0.6 needs Pillow < "
                "10 and setuptools < 81), or `pip uninstall detectron2` and run again; rio then brings its own."
            )
        kept["detectron2"] = detectron2
    for name, version in kept.items():
        say(f"{name} {version} is there and is kept")
    if other := other_checkout():
        say(f"{other} loses this environment")
        for stamp in Path(sys.prefix).glob("rio-installed-*"):  # so that its make asks too
            stamp.unlink()
    if ours:  # before the first package: an interrupted install must not look like somebody else's torch
        write_atomically(marker, pinned["torch"].encode())

    # A torch or detectron2 of another origin was built against the NumPy beside it: leave the versions there.
    bounds = {} if kept else dict(pinned)
    if "torch" in kept:
        bounds = {name: version for name in ("torch", "torchvision") if (version := installed(name))}
    wheels = []
    if "detectron2" not in kept:
        wheels = [wheelhouse / wheel_name() if wheelhouse else detectron2_wheel()]
        if not wheels[0].is_file():
            raise InstallError(f"{wheels[0]}: not found; the wheelhouse is of another version. Fix: make wheelhouse")
    with tempfile.TemporaryDirectory() as temporary:
        listed = Path(temporary, "constraints.txt")
        listed.write_text("".join(f"{name}=={version}\n" for name, version in bounds.items()))
        use = ["install", *([] if sys.stdout.isatty() else ["-qq"]), "-c", str(listed)]  # a log gets errors only
        use += ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse else []
        pip(*use, "pip", "setuptools", "wheel", what="installing pip and setuptools")
        say("installing rio and what it needs" + ("" if torch or wheelhouse else "; about 2.5 GB, a few minutes"))
        # Build isolation would fetch setuptools again, which a machine without a network cannot.
        rio = f"{REPOSITORY}[{extras}]" if extras else str(REPOSITORY)
        pip(*use, "--no-build-isolation", "-e", rio, *map(str, wheels), what="installing rio and what it needs")
        pip(*use, "--no-deps", f"lvis=={pinned['lvis']}", what="installing lvis")
    if problem := import_problem(f"torch, torchvision, cv2, hotcoco, lvis, {DETECTRON2_PARTS}, rio"):
        raise InstallError(f"everything is installed but does not import: {problem}")
    importlib.invalidate_caches()
    found = ", ".join(f"{name} {installed(name)}" for name in ("torch", "detectron2"))
    say(f"done in {time.monotonic() - started:.0f} s: {found}, in {sys.prefix}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m rio.install", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--extras", default="demo,test,notebooks", help="of pyproject.toml (default: %(default)s)")
    parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="install from this folder, without a network")
    parser.add_argument("--anywhere", action="store_true", help="also into a system's own python")
    parser.add_argument("--wheel", type=Path, metavar="DIR", help="only copy the detectron2 wheel into this folder")
    parser.add_argument("--take-over", action="store_true", help="also where this takes it from another checkout")
    arguments = parser.parse_args(argv)
    if arguments.wheel:
        shutil.copy(detectron2_wheel(), arguments.wheel)
        return
    wheelhouse = arguments.wheelhouse.resolve() if arguments.wheelhouse else None
    check_environment(wheelhouse, arguments.anywhere, arguments.take_over)
    install(arguments.extras, wheelhouse)


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        sys.exit(f"install: {error}")
    except KeyboardInterrupt:
        sys.exit("install: interrupted; run the same command again, it resumes")
