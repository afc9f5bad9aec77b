"""Parts of the pretend device (see pretend_cuda): what it needs of torch, call sites, generators, events, autocast."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.utils._foreach_utils
import torchvision  # noqa: F401  (its operators)
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PRIVATE = (  # names of torch 2.15 that may change without notice
    "torch._C._DisableTorchDispatch",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C._current_autograd_node",
    "torch._C._disabled_torch_function_impl",
    "torch._C._nn._parse_to",
    "torch._C.DispatchKey.AutocastCUDA",
    "torch.utils._foreach_utils._foreach_supported_types",
    "torch.utils._pytree.tree_leaves",
)
_HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"  # which operators autocast casts
_LISTS = ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")
_LIBRARIES = ("/torch/", "/torchvision/", "/unittest/", "/contextlib.py", "/tests/support/pretend_cuda")
_rng: list[torch.Tensor] = []  # the state of the pretend device's default generator


class UnsupportedTorch(RuntimeError):
    """This torch lacks what the pretend device is made of."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"pretend_cuda rests on private names of torch 2.15, found torch {torch.__version__} without: {what}. "
            "Fix: run these tests with torch 2.15, or adapt tests/support/pretend_cuda.py"
        )


def check_private_names() -> None:
    """Raise UnsupportedTorch where a name is missing."""
    for name in PRIVATE:
        found = torch
        for part in name.split(".")[1:]:
            if (found := getattr(found, part, None)) is None:
                raise UnsupportedTorch(name)
    text = _HEADER.read_text() if _HEADER.is_file() else ""
    if missing := [name for name in _LISTS if f"define AT_FORALL_{name}(_)" not in text]:
        raise UnsupportedTorch(f"AT_FORALL_{missing[0]} in {_HEADER}")


def call_site() -> tuple[str, str]:
    """(owner, "folder/file.py:line function") of the innermost frame that is neither torch's nor the device's own."""
    frame = sys._getframe(1)
    while frame.f_back and any(library in frame.f_code.co_filename for library in _LIBRARIES):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename).parts[-4:]
    owner = next((part for part in path[-2::-1] if part in ("rio", "detectron2", "fvcore", "tests")), "other")
    return owner, f"{'/'.join(path[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


class Generator(torch.Generator):
    device = property(lambda self: self.pretended)

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.pretended = CUDA if torch.device(device).type == "cuda" else CPU
        return made


def seed(number: int) -> None:
    """torch.cuda.manual_seed."""
    _rng[:] = [Generator().manual_seed(number).get_state()]


@contextlib.contextmanager
def own_random_state(drawn: bool):
    """Let a block draw from the pretend device's generator, if it draws at all."""
    if not drawn:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_rng[0])
    try:
        yield
    finally:
        _rng[0] = torch.default_generator.get_state()
        torch.default_generator.set_state(before)


def autocast_kernels(pretend: type) -> list[torch.library.Library]:
    """torch.autocast("cuda"): torch's own kernels ask in C++ whether a tensor is on a GPU, and would do nothing."""
    header = _HEADER.read_text()
    aten, vision = (torch.library.Library(name, "IMPL") for name in ("aten", "torchvision"))
    for what in _LISTS:
        block = re.search(rf"define AT_FORALL_{what}\(_\)(.*?[^\\])\n", header, re.DOTALL).group(1)
        for name, overload in re.findall(r"_\((\w+)(?:, ?(\w+))?\)", block):
            op = getattr(getattr(torch.ops.aten, name), overload or "default")
            aten.impl(op.name(), partial(_autocast, pretend, what, op), "AutocastCUDA")
    for op in (torch.ops.torchvision.roi_align.default, torch.ops.torchvision.nms.default):
        vision.impl(op.name(), partial(_autocast, pretend, "AND_BACK", op), "AutocastCUDA")
    return [aten, vision]


def _autocast(pretend: type, what: str, op, *args, **kwargs):
    def is_float(t):
        return isinstance(t, pretend) and t.is_floating_point() and t.dtype != torch.float64

    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
        dtypes = [t.dtype for t in tree_leaves((args, kwargs)) if is_float(t)]
        wanted = torch.get_autocast_dtype("cuda") if what == "LOWER_PRECISION_FP" else torch.float32
        if what == "FP32_SET_OPT_DTYPE":
            place = [a.name for a in op._schema.arguments].index("dtype")
            given = args[place] if len(args) > place else kwargs.get("dtype")
            given = torch.float32 if given is None and is_float(args[0]) else given
            return op(*args[:place], **kwargs | {"dtype": given})
        if what != "PROMOTE" or torch.float32 in dtypes:
            args, kwargs = tree_map(lambda t: t.to(wanted) if is_float(t) else t, (args, kwargs))
        out = op(*args, **kwargs)
        return out.to(dtypes[0]) if what == "AND_BACK" and out.is_floating_point() else out


class Event:
    def __init__(self, *args, **kwargs): ...

    def record(self, stream=None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other.at - self.at)
