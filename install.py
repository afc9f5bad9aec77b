#!/usr/bin/env python3
"""Install rio and everything below it, detectron2 included, without a compiler.

    python install.py --venv .venv       `make install`: makes the environment, then installs into it
    python install.py                    installs into the (conda or virtual) environment of this python
    python install.py --wheelhouse DIR   the same without a network, from DIR
    python install.py --collect DIR --for-python 3.12
                                         `make wheelhouse`: fills DIR for a machine without a network
    python install.py --freeze           `make constraints`: pins what this environment holds

Three things keep this from being one `pip install`:

* detectron2 has no wheel on the index, and its official source needs a compiler.  A source release on the
  index is v0.6's Python, without the C++.  RIO uses none of the C++ (torchvision has RoIAlign and NMS), so
  that source is fetched (hash-checked), mended where newer NumPy, Pillow, setuptools and torch need it
  (`MENDS`), and packed as an ordinary pure-Python wheel named `detectron2`.  Mending the wheel instead of
  patching at run time makes `import detectron2` work from every notebook, loader worker and spawned process,
  in any import order.  A detectron2 that is already there (conda-forge, built from source) is kept.
* lvis declares opencv-python, which needs libGL; opencv-python-headless serves as well, so lvis comes without
  its dependencies.
* a torch that is already there is kept, as on a GPU cluster with its own build.

Only the standard library is used, and a second run is over at once: `STAMP` holds a hash of what decides the
outcome.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
PYTHONS = ((3, 11), (3, 12))
DEFAULT_EXTRAS = "demo,test,notebooks"
STAMP = "rio-install.json"  # in the environment's own folder
FINGERPRINTED = ("install.py", "pyproject.toml", "constraints.txt")
FREE_GIB = 9  # torch's CUDA build unpacks to 5.4 GB beside its 2.5 GB of downloads

# torch and what only ever comes with it: never in a wheelhouse, never pinned where a torch is already there.
TORCH_FAMILY = re.compile(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
WITHOUT_DEPENDENCIES = ("lvis",)
SOURCE_ONLY = ("antlr4-python3-runtime", "fvcore", "iopath")  # pure Python, but the index has no wheel of them

# ----------------------------------------------------------------------------------------- detectron2's mends

SDIST_NAME, SDIST_VERSION = "pb1-detectron2", "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Newer pips refuse a source release that names a direct URL, even in an extra nobody asks for; this one does not.
FETCHING_PIP = ("pip==25.3", "setuptools==80.9.0")

NO_C = """try:
    from detectron2 import _C
except ImportError:
    from detectron2._no_compiled_ops import _C
"""

NO_COMPILED_OPS = '''"""Stands in for the compiled `detectron2._C`: an error, but only when an operator is used."""


class _NoCompiledOps:
    def __getattr__(self, name):
        if name.startswith("__"):  # introspection (inspect, doctest, pickle) is no use of an operator
            raise AttributeError(name)
        raise ImportError(
            "detectron2._C.%s: this detectron2 is a pure-Python wheel without compiled operators. Rotated "
            "boxes, deformable convolutions on a GPU and the fast COCO evaluation need an official build "
            "(conda-forge's detectron2, or from source with a compiler); for COCOEvaluator pass "
            "use_fast_impl=False." % name
        )


_C = _NoCompiledOps()
'''

# file -> (what stands there, what has to, how many times it stands there). Another count stops the build.
MENDS: dict[str, list[tuple[str, str, int]]] = {
    # PIL.Image.LINEAR is gone since Pillow 10.
    "detectron2/data/transforms/transform.py": [("interp=Image.LINEAR", "interp=Image.BILINEAR", 1)],
    # np.int, np.float and np.str are gone since NumPy 1.24.
    "detectron2/data/build.py": [("dtype=np.int)", "dtype=int)", 1), ("dtype=np.int\n", "dtype=int\n", 1)],
    "detectron2/data/datasets/pascal_voc.py": [("dtype=np.str)", "dtype=str)", 1)],
    "detectron2/evaluation/sem_seg_evaluation.py": [("dtype=np.int)", "dtype=int)", 2), ("np.float)", "float)", 5)],
    # The compiled operators: an error when used, not when imported.
    "detectron2/layers/deform_conv.py": [("from detectron2 import _C\n", NO_C, 1)],
    "detectron2/layers/roi_align_rotated.py": [("from detectron2 import _C\n", NO_C, 1)],
    "detectron2/layers/rotated_boxes.py": [("from detectron2 import _C\n", NO_C, 1)],
    "detectron2/evaluation/fast_eval_api.py": [("from detectron2 import _C\n", NO_C, 1)],
    "detectron2/utils/collect_env.py": [('f"not built correctly: {e}"', 'f"none, a pure-Python wheel ({e})"', 1)],
    # pkg_resources is gone since setuptools 81.
    "detectron2/model_zoo/model_zoo.py": [
        ("import pkg_resources\n", "", 1),
        (
            'pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
            'os.path.join("configs", config_path)\n    )',
            'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
            1,
        ),
    ],
    # Without it torch warns in every process; "ij" is what it does anyway.
    "detectron2/modeling/anchor_generator.py": [
        ("torch.meshgrid(shifts_y, shifts_x)", 'torch.meshgrid(shifts_y, shifts_x, indexing="ij")', 1)
    ],
}
ADDED = {"detectron2/_no_compiled_ops.py": NO_COMPILED_OPS}
CHANGED_NOTICE = "# Changed from the v0.6 release by rio's install.py, which lists every change.\n"

# As setup.py places them: projects that are installed under detectron2.projects.
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}
# setup.py's own list without what only caffe2 export (future, pydot) and LazyConfig.to_py (black) use, and
# without the upper bounds.
DETECTRON2_REQUIRES = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)


class InstallError(RuntimeError):
    """Says what is wrong with the machine, the environment or a source, and what to do about it."""


def mends_hash() -> str:
    """Hash of everything that decides the wheel's content, eight hex digits."""
    decides = json.dumps([SDIST_SHA256, MENDS, ADDED, CHANGED_NOTICE, PROJECTS, DETECTRON2_REQUIRES, WHEEL_LAYOUT])
    return hashlib.sha256(decides.encode()).hexdigest()[:8]


WHEEL_LAYOUT = 1  # raise it when `pack_wheel` itself changes what it writes


def wheel_version() -> str:
    """The wheel's version; its local part is the mends' hash: other mends are another version to pip."""
    return f"{SDIST_VERSION}+rio.{mends_hash()}"


def mend(text: str, path: str) -> str:
    """Apply the mends of one file of the source release.

    Raises:
        InstallError: a passage does not stand there as often as it did when the mend was written.
    """
    for old, new, count in MENDS[path]:
        found = text.count(old)
        if found != count:
            raise InstallError(
                f"{path}: expected {count} time(s) {old!r}, found {found}. The source release is not the one "
                "that the mends in install.py were written for; install an official detectron2 and run again, "
                "it is kept."
            )
        text = text.replace(old, new)
    first, rest = text.split("\n", 1)  # line one is the copyright
    return f"{first}\n{CHANGED_NOTICE}{rest}"


def wheel_files(sdist: Path) -> dict[str, bytes]:
    """Every file of the wheel but its metadata, mended, by its name in the wheel."""
    files: dict[str, bytes] = {}
    mended = set()
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            name = member.name.partition("/")[2]  # without the release's own folder
            for source, target in PROJECTS.items():
                if name.startswith(source + "/"):
                    name = target + name[len(source) :]
            if not member.isfile() or not name.startswith("detectron2/") or not name.endswith((".py", ".yaml")):
                continue
            content = archive.extractfile(member).read()
            if name in MENDS:
                content = mend(content.decode(), name).encode()
                mended.add(name)
            files[name] = content
        licence = [member for member in archive.getmembers() if member.name.count("/") == 1]
        files["LICENSE"] = archive.extractfile(next(m for m in licence if m.name.endswith("/LICENSE"))).read()
    if missing := set(MENDS) - mended:
        raise InstallError(f"{sdist.name} lacks {', '.join(sorted(missing))}, which install.py has mends for")
    if clash := set(ADDED) & set(files):
        raise InstallError(f"{sdist.name} already has {', '.join(sorted(clash))}, which install.py would add")
    files.update({name: text.encode() for name, text in ADDED.items()})
    return files


def pack_wheel(sdist: Path, folder: Path) -> Path:
    """Make the pure-Python wheel from the source release; the same bytes every time.

    Args:
        sdist: the source release, its hash already checked.
        folder: where the wheel goes; appears there whole or not at all.

    Returns:
        The wheel's path.
    """
    version = wheel_version()
    files = wheel_files(sdist)
    info = f"detectron2-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {version}",
        "Summary: Detectron2 v0.6, Python only: no compiled operators, mended for current NumPy, Pillow, torch",
        "License: Apache-2.0",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in DETECTRON2_REQUIRES),
        "",
        "FAIR's Detectron2, release v0.6 (Apache-2.0, see LICENSE), packed by rio's install.py. Changed:",
        "",
        *(f"* {name}" for name in sorted([*MENDS, *ADDED])),
        "",
    ]
    files[f"{info}/licenses/LICENSE"] = files.pop("LICENSE")
    files[f"{info}/METADATA"] = "\n".join(metadata).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: rio-install\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = []
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}")
    record.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in sorted(files, key=lambda name: (name.startswith(info), name)):
            entry = zipfile.ZipInfo(name, (2021, 11, 15, 0, 0, 0))  # v0.6's day: a time of ours would change the hash
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, files[name])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"detectron2-{version}-py3-none-any.whl"
    write_atomically(path, buffer.getvalue())
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whoever else writes it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def check_sdist(path: Path) -> None:
    """Raises: InstallError: the file is not the source release the mends were written for."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise InstallError(
            f"{path}: sha256 {found}, expected {SDIST_SHA256}. The file is damaged or another one; it is not used."
        )


def cache_folder() -> Path:
    """Where the source release and the wheel are kept: wheels/ in $RIO_CACHE, else in rio/ of the user's cache.

    rio.annotations keeps its columns beside it; with RIO_CACHE=off nothing leaves the checkout.
    """
    named = os.environ.get("RIO_CACHE", "")
    if named == "off":
        return REPOSITORY / "build" / "wheels"
    if named:
        return Path(named).expanduser() / "wheels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rio" / "wheels"


def fetch_sdist(folder: Path) -> Path:
    """The source release, from the cache or else the index, its hash checked before any of it runs."""
    path = folder / f"{SDIST_NAME}-{SDIST_VERSION}.tar.gz"
    if path.is_file():
        check_sdist(path)
        return path
    say(f"fetching the source of detectron2 {SDIST_VERSION}")
    with tempfile.TemporaryDirectory() as temporary:
        tools, down = Path(temporary, "tools"), Path(temporary, "down")
        pip("install", "-qq", "--target", str(tools), *FETCHING_PIP, what="fetching pip for the source release")
        # pip asks the release's setup.py for its metadata; that imports torch, but needs nothing of it.
        stub = tools / "torch" / "utils"
        stub.mkdir(parents=True)
        (stub.parent / "__init__.py").write_text(
            "__version__ = '2.0'\nfrom . import utils\n"
            "class version: hip = None\nclass cuda: is_available = lambda: False\n"
        )
        (stub / "__init__.py").write_text("from . import cpp_extension\n")
        (stub / "cpp_extension.py").write_text(
            "from setuptools import Extension as CppExtension\nCUDAExtension = "
            "CppExtension\nfrom setuptools.command.build_ext import build_ext as "
            "BuildExtension\nCUDA_HOME = ROCM_HOME = None\n"
        )
        wanted = Path(temporary, "wanted.txt")
        wanted.write_text(f"{SDIST_NAME}=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n")
        pip(
            "download",
            "-qq",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--no-build-isolation",
            "--require-hashes",
            "-r",
            str(wanted),
            "-d",
            str(down),
            what="fetching the source release of detectron2",
            env={"PYTHONPATH": str(tools)},
        )
        fetched = next(down.glob("*.tar.gz"))
        check_sdist(fetched)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fetched.read_bytes())
    return path


def detectron2_wheel() -> Path:
    """The pure-Python wheel, packed on the first call and then from the cache."""
    folder = cache_folder()
    path = folder / f"detectron2-{wheel_version()}-py3-none-any.whl"
    return path if path.is_file() else pack_wheel(fetch_sdist(folder), folder)


# ------------------------------------------------------------------------------------------------ environment


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def pip(*arguments: str, what: str, env: dict[str, str] | None = None) -> None:
    """Run this environment's pip.

    Raises:
        InstallError: it failed; pip's own message stands above.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    quiet = {"PIP_ROOT_USER_ACTION": "ignore"}
    if subprocess.run(command, env={**os.environ, **quiet, **(env or {})}).returncode:
        raise InstallError(
            f"{what} failed, see above. Once its cause is mended run the same command again: what was installed stays."
        )


def pins(text: str) -> dict[str, str]:
    """`name==version` lines as {normalised name: version}.

    Raises:
        InstallError: a line is anything else.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!+-]+)", line)
        if not match:
            raise InstallError(f"constraints.txt line {number}: expected name==version, found {line!r}")
        found[normalised(match[1])] = match[2]
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def fingerprint(extras: str, root: Path = REPOSITORY) -> str:
    """Hash of what decides an installation: another value means that it has to be done again."""
    digest = hashlib.sha256(extras.encode())
    for name in FINGERPRINTED:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    digest.update(str(root).encode())  # the package is installed in place: a moved checkout has to be installed again
    return digest.hexdigest()


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def imports(modules: str) -> str:
    """Last line of what importing says, empty when it works."""
    result = subprocess.run([sys.executable, "-c", f"import {modules}"], capture_output=True, text=True)
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["no message"])[-1]


def install(extras: str, wheelhouse: Path | None, anywhere: bool) -> None:
    """Install everything into this python's environment."""
    started = time.monotonic()
    environment = Path(sys.prefix)
    if sys.prefix == sys.base_prefix and not (environment / "conda-meta").is_dir() and not anywhere:
        raise InstallError(
            f"{sys.executable} belongs to the system. Use `make install`, an activated environment, or "
            "--anywhere if you mean it (a container)."
        )
    stamp = environment / STAMP
    ours = read_stamp(environment)
    constraints = pins((REPOSITORY / "constraints.txt").read_text())

    torch, detectron2 = installed("torch"), installed("detectron2")
    keep_torch = torch is not None and not ours.get("torch") and torch.partition("+")[0] != constraints["torch"]
    keep_detectron2 = detectron2 is not None and "+rio" not in detectron2
    if keep_torch:
        say(f"torch {torch} is there and is kept")
    if keep_detectron2:
        if problem := imports("detectron2.engine, detectron2.evaluation, detectron2.model_zoo"):
            raise InstallError(
                f"detectron2 {detectron2} is there but does not import: {problem}. Mend it (v0.6 needs Pillow "
                "< 10 and setuptools < 81), or `pip uninstall detectron2` and run again: rio then brings its own."
            )
        say(f"detectron2 {detectron2} is there and is kept")
    if torch is None and not wheelhouse and shutil.disk_usage(environment).free < FREE_GIB << 30:
        raise InstallError(
            f"{environment}: less than {FREE_GIB} GiB free, and torch alone takes 5.4 GB. Make room, or "
            "put the environment elsewhere: make install VENV=/path/with/room"
        )

    # Somebody else's torch or detectron2 was built against the NumPy beside it: leave versions there alone.
    pinned = not (keep_torch or keep_detectron2)
    source = []
    if wheelhouse:
        if not wheelhouse.is_dir():
            raise InstallError(f"{wheelhouse}: no such folder. `make wheelhouse PYTHON={version_text()}` makes it.")
        if torch is None and not list(wheelhouse.glob("torch-*.whl")):
            raise InstallError(
                "torch is neither in this environment nor in the wheelhouse, which leaves it out (2.5 GB, and "
                "clusters have their own build). Load your cluster's torch and use `make install WHEELHOUSE=... "
                "SYSTEM_SITE_PACKAGES=1 PYTHON=its-python`, or add it where there is a network: pip download "
                f"torch=={constraints['torch']} torchvision=={constraints['torchvision']} -d {wheelhouse}"
            )
        source = ["--no-index", "--find-links", str(wheelhouse)]

    # Written before the first package, so that after an interruption a torch of ours is not taken for theirs.
    ours = {"torch": torch is None or bool(ours.get("torch")), "detectron2": not keep_detectron2}
    write_atomically(stamp, json.dumps(ours).encode())

    # Bars for a person; for a log only errors.
    talk = [] if sys.stdout.isatty() else ["-qq"]
    with tempfile.TemporaryDirectory() as temporary:
        bounds = Path(temporary, "constraints.txt")
        kept = {"torch": torch, "torchvision": installed("torchvision")} if keep_torch else {}
        lines = [
            f"{name}=={version}"
            for name, version in constraints.items()
            if pinned and not (keep_torch and TORCH_FAMILY.match(name))
        ]
        bounds.write_text("\n".join([*lines, *(f"{n}=={v}" for n, v in kept.items() if v)]) + "\n")
        use = [*talk, *source, "-c", str(bounds)]
        tools = [f"{name}=={constraints[name]}" if pinned else name for name in ("pip", "setuptools", "wheel")]
        pip("install", *use, *tools, what="installing pip and setuptools")

        requirements = ["-e", f"{REPOSITORY}[{extras}]" if extras else str(REPOSITORY)]
        if not keep_detectron2:
            wheel = (
                [p for p in wheelhouse.glob("detectron2-*.whl") if wheel_version() in p.name]
                if wheelhouse
                else [detectron2_wheel()]
            )
            if not wheel:
                raise InstallError(
                    f"{wheelhouse}: no detectron2-{wheel_version()}; the wheelhouse was made by another "
                    "version of rio. Make it again: make wheelhouse"
                )
            requirements.append(str(wheel[0]))
        size = "; about 2.5 GB to download, a few minutes" if torch is None and not wheelhouse else ""
        say(f"installing rio and what it needs{size}")
        # Isolation would fetch setuptools once more, which an offline machine cannot.
        pip("install", *use, "--no-build-isolation", *requirements, what="installing rio and what it needs")
        pip(
            "install",
            *use,
            "--no-deps",
            *(f"{name}=={constraints[name]}" for name in WITHOUT_DEPENDENCIES),
            what="installing lvis",
        )
    check()
    ours |= {"fingerprint": fingerprint(extras), "extras": extras, "python": version_text()}
    write_atomically(stamp, json.dumps(ours, indent=1).encode())
    say(
        f"done in {time.monotonic() - started:.0f} s: python {version_text()}, "
        f"torch {fresh_version('torch')}, "
        f"detectron2 {fresh_version('detectron2')}, in {environment}"
    )


def fresh_version(name: str) -> str:
    importlib.invalidate_caches()
    return installed(name) or "missing"


def check() -> None:
    """Raises: InstallError: what was installed does not import."""
    if problem := imports(
        "torch, torchvision, cv2, hotcoco, lvis, detectron2.engine, detectron2.evaluation, detectron2.model_zoo, rio"
    ):
        raise InstallError(f"everything is installed but does not import: {problem}")


def version_text() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def read_stamp(environment: Path) -> dict:
    """What an earlier run left in an environment; empty if there was none."""
    try:
        return json.loads((environment / STAMP).read_text())
    except (OSError, ValueError):
        return {}


def is_done(environment: Path, extras: str) -> bool:
    """Whether an environment holds what this checkout wants."""
    return read_stamp(environment).get("fingerprint") == fingerprint(extras)


def check_python(folder: Path) -> None:
    """Raises: InstallError: the environment is there and of another Python than the one asked for."""
    settings = folder / "pyvenv.cfg"
    found = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", settings.read_text(), re.M) if settings.is_file() else None
    if found and found[1] != version_text():
        raise InstallError(
            f"{folder} is of Python {found[1]}, and {version_text()} was asked for. Remove it "
            f"(rm -r {folder}) or make another: VENV=.venv-{version_text()}"
        )


def make_environment(folder: Path, system_site_packages: bool) -> Path:
    """Make the virtual environment if it is not there; returns its python."""
    python = folder / "bin" / "python"
    if python.exists():
        asked = subprocess.run([str(python), "-c", ""], capture_output=True, text=True)
        if asked.returncode:
            raise InstallError(f"{python} does not run: {asked.stderr.strip()}. Remove {folder} and run again.")
        return python
    say(f"making {folder} with Python {platform.python_version()}")
    options = ["--system-site-packages"] if system_site_packages else []
    if subprocess.run([sys.executable, "-m", "venv", *options, str(folder)]).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"{sys.executable} cannot make a virtual environment. On Debian and Ubuntu: apt-get install "
            f"python{version_text()}-venv"
        )
    return python


# ------------------------------------------------------------------------------------------------- wheelhouse


def platform_tags(newest: str) -> list[str]:
    """A manylinux tag and all older ones, which run wherever it does; any other tag alone.

    >>> platform_tags("manylinux_2_18_x86_64")[:4]
    ['manylinux_2_18_x86_64', 'manylinux_2_17_x86_64', 'manylinux2014_x86_64', 'manylinux_2_16_x86_64']
    """
    match = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", newest)
    if not match:
        return [newest]
    aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags = []
    for minor in range(int(match[1]), 4, -1):
        tags.append(f"manylinux_2_{minor}_{match[2]}")
        if minor in aliases:
            tags.append(f"{aliases[minor]}_{match[2]}")
    return tags + [f"linux_{match[2]}"]


def collect(folder: Path, python: str, newest: str) -> None:
    """Fill a folder with every wheel but torch's own, for an environment of another machine.

    Args:
        folder: made if missing; wheels already in it are not fetched again.
        python: "3.11" or "3.12", the python there.
        newest: the newest platform tag that runs there.
    """
    if tuple(map(int, python.split("."))) not in PYTHONS:
        raise InstallError(f"PYTHON={python}: rio runs on {versions_text()}")
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {n: v for n, v in pins((REPOSITORY / "constraints.txt").read_text()).items() if not TORCH_FAMILY.match(n)}
    with tempfile.TemporaryDirectory() as temporary:
        listed = Path(temporary, "wheels.txt")
        listed.write_text("".join(f"{n}=={v}\n" for n, v in wanted.items() if n not in SOURCE_ONLY))
        say(f"{len(wanted)} wheels for Python {python} on {newest} into {folder}")
        tags = [option for tag in platform_tags(newest) for option in ("--platform", tag)]
        pip(
            "download",
            "-qq",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--python-version",
            python,
            "--implementation",
            "cp",
            *tags,
            "--find-links",
            str(folder),
            "-d",
            str(folder),
            "-r",
            str(listed),
            what=f"collecting wheels for Python {python}",
        )
        pure = Path(temporary, "pure")
        sources = [f"{name}=={wanted[name]}" for name in SOURCE_ONLY]
        pip(
            "wheel",
            "-qq",
            "--no-deps",
            "--find-links",
            str(folder),
            "-w",
            str(pure),
            *sources,
            str(REPOSITORY),
            what="making wheels of what the index has as source only",
        )
        for wheel in pure.iterdir():
            if not wheel.name.endswith("-none-any.whl"):
                raise InstallError(f"{wheel.name} was built for this machine alone, and cannot serve another")
            shutil.copy(wheel, folder)
    shutil.copy(detectron2_wheel(), folder)
    wheels = sorted(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    say(
        f"{len(wheels)} wheels, {size:.0f} MB, in {time.monotonic() - started:.0f} s. Without torch, "
        "torchvision and what they bring: they have to be there already."
    )
    say(f"there: make install WHEELHOUSE={folder.name} PYTHON={python} SYSTEM_SITE_PACKAGES=1")


# ----------------------------------------------------------------------------------------------------- freeze


def closure(extras: str) -> dict[str, str]:
    """What rio with these extras needs of this environment, all dependencies followed: {name: version}.

    Uses `packaging`, which every environment of ours has.
    """
    from packaging.requirements import Requirement

    def wanted(requirement: Requirement, of: set[str]) -> bool:
        """Whether it is needed on this platform by any of the pythons, for any of the extras."""
        return not requirement.marker or any(
            requirement.marker.evaluate(
                {"extra": extra, "python_version": f"{a}.{b}", "python_full_version": f"{a}.{b}.0"}
            )
            for extra in {"", *of}
            for a, b in PYTHONS
        )

    found: dict[str, str] = {}
    seen = set()
    todo = [
        Requirement(f"rio-detection[{extras}]"),
        *map(Requirement, DETECTRON2_REQUIRES),
        *map(Requirement, WITHOUT_DEPENDENCIES),
        *map(Requirement, ("pip", "setuptools", "wheel")),
    ]
    while todo:
        requirement = todo.pop()
        name = normalised(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name == "detectron2":
            continue
        seen.add(key)
        version = installed(name)
        if version is None:  # needed by the other python alone
            say(f"not here, so not pinned: {requirement}")
            continue
        if name != "rio-detection":
            found[name] = version.partition("+")[0]
        if name in WITHOUT_DEPENDENCIES:
            continue
        needs = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [need for need in needs if wanted(need, set(requirement.extras))]
    return dict(sorted(found.items()))


def freeze(extras: str) -> None:
    """Write constraints.txt from this environment."""
    header = (
        "# Versions known to work together, for Python 3.11 and 3.12: rio's needs, its extras' and detectron2's.\n"
        "# Made by `make constraints` from an environment in which the tests passed; only name==version.\n"
    )
    lines = [f"{name}=={version}\n" for name, version in closure(extras).items()]
    write_atomically(REPOSITORY / "constraints.txt", (header + "".join(lines)).encode())
    say(f"constraints.txt: {len(lines)} versions")


def all_extras() -> str:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return ",".join(sorted(project["optional-dependencies"]))


def versions_text() -> str:
    return " or ".join(f"Python {a}.{b}" for a, b in PYTHONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="make this environment if need be and install into it")
    parser.add_argument(
        "--system-site-packages", action="store_true", help="let a new environment see the system's torch"
    )
    parser.add_argument(
        "--extras", default=DEFAULT_EXTRAS, help="of pyproject.toml, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--wheelhouse", type=Path, help="install from this folder, without a network")
    parser.add_argument("--anywhere", action="store_true", help="also into a system's own python")
    parser.add_argument("--force", action="store_true", help="install although nothing has changed")
    parser.add_argument("--collect", type=Path, metavar="DIR", help="fill DIR with wheels instead of installing")
    parser.add_argument("--for-python", default=version_text(), help="the python DIR is for")
    parser.add_argument(
        "--platform", default=f"manylinux_2_28_{platform.machine()}", help="the newest tag DIR may hold"
    )
    parser.add_argument("--freeze", action="store_true", help="write constraints.txt from this environment")
    arguments = parser.parse_args()
    if sys.version_info[:2] not in PYTHONS:
        raise InstallError(
            f"{sys.executable} is Python {platform.python_version()}; rio runs on {versions_text()}. Name "
            "one of those: make install PYTHON=/path/to/python3.12"
        )
    wheelhouse = arguments.wheelhouse.resolve() if arguments.wheelhouse else None
    if arguments.freeze:
        freeze(all_extras())
    elif arguments.collect:
        collect(arguments.collect.resolve(), arguments.for_python, arguments.platform)
    elif arguments.venv:
        check_python(arguments.venv)
        if is_done(arguments.venv, arguments.extras) and not arguments.force:
            return
        python = make_environment(arguments.venv, arguments.system_site_packages)
        options = ["--extras", arguments.extras, "--force"]
        options += ["--wheelhouse", str(wheelhouse)] if wheelhouse else []
        os.execv(python, [str(python), str(Path(__file__).resolve()), *options])
    elif arguments.force or not is_done(Path(sys.prefix), arguments.extras):
        install(arguments.extras, wheelhouse, arguments.anywhere)


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        sys.exit(f"install: {error}")
    except KeyboardInterrupt:
        sys.exit("install: interrupted; run the same command again to go on")
