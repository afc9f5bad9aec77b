"""A pretend CUDA device: finds device mistakes on a machine without a GPU, and counts what makes the host wait.

    with pretend_cuda() as report:          # torch.cuda.is_available() is True in here
        model.to("cuda"); model(batch); ...
    print(report.table())

A `PretendCuda` tensor holds a CPU tensor with the real numbers, tells Python that its device is cuda:0, has CUDA's
dispatch keys, runs every operator on the CPU tensors within, and refuses what CUDA refuses: operands on the CPU,
numpy(), generators of the other device, pin_memory(). A `DeviceError` names the operator, the tensors and the line.
torch.autocast("cuda") casts by the lists of the installed torch. Whatever would make the host wait for the device is
counted with its line. The device has a random number stream of its own.

It cannot see: CUDA's kernels, their numbers and what only they refuse; memory; streams, and races after non_blocking
copies; operands in backward and its threads (C++ is told "cpu", as autograd would ask the driver); `map_location` of
checkpoints; several GPUs, NCCL and DDP's reducer; DataLoader(pin_memory=True); CUDA graphs; torch.compile.

It rests on private names of torch 2.15, see `PRIVATE` in pretend_cuda_parts. With a torch that lacks one of them, or
where they have another meaning, `pretend_cuda()` raises `UnsupportedTorch` and nothing runs.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections import Counter
from unittest import mock

import torch
import torch._dynamo  # before anything is replaced: it looks at all of torch.cuda when it is first imported
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from tests.support.pretend_cuda_parts import (
    CPU,
    CUDA,
    Event,
    Generator,
    UnsupportedTorch,
    autocast_kernels,
    call_site,
    check_private_names,
    own_random_state,
    seed,
)

HALVES = (torch.float16, torch.bfloat16)
# Indices may be on the CPU (they are copied), the indexed tensor may not.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# The host has to know the size or the value of the result.
SYNCHRONISING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount", "histc", "nms")
}
# A 0-dim CPU tensor is a number to the elementwise operators, not to these.
NO_NUMBERS = {
    *("cat", "stack", "index_select", "gather", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_copy"),
    *("index_copy_", "index_add", "index_add_", "mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "embedding"),
    *("nll_loss_forward", "roi_align", "nms", "grid_sampler_2d"),
}
SUMS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"}  # of halves, in float32 as on a GPU


class DeviceError(RuntimeError):
    """What a CUDA device would have refused."""


class Report:
    """What made the host wait.

    Attributes:
        waits: {(kind, owner, "folder/file.py:line function"): times}; the owner is the package of the calling code:
            "rio", "detectron2", "fvcore", "tests" or "other".
        errors: the text of every DeviceError, whether or not something caught it.
    """

    def __init__(self) -> None:
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.errors: list[str] = []
        self.warn = False

    def wait(self, kind: str) -> None:
        self.waits[kind, *call_site()] += 1
        if self.warn:  # torch.cuda.set_sync_debug_mode("warn"), in torch's words
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)

    def refuse(self, text: str, kind: type[Exception] = DeviceError) -> Exception:
        self.errors.append(f"{text}, at {call_site()[1]}")
        return kind(self.errors[-1])

    def table(self) -> str:
        rows = self.waits.most_common()
        return "\n".join(f"{times:6d}  {kind:20s} {owner:12s} {site}" for (kind, owner, site), times in rows)


_report = Report()


class PretendCuda(Tensor):
    """A CPU tensor, `elem`, that says it is on cuda:0."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = property(lambda self: CUDA), property(lambda self: True), property(lambda self: False)

    @staticmethod
    def __new__(cls, elem: Tensor) -> PretendCuda:
        made = Tensor._make_subclass(cls, elem.detach(), False, device_for_backend_keys=CUDA)
        made.elem = elem.detach()
        return made

    def __reduce_ex__(self, protocol: int):  # files hold it as a CPU tensor
        return self.elem.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, kwargs, leaves = func._schema.name.split("::")[1], kwargs or {}, tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        _check_devices(name, args, tensors)
        _count(name, args, tensors, kwargs)
        inner = tree_map(lambda t: t.elem if isinstance(t, PretendCuda) else t, (args, kwargs))
        halves = {t.dtype for t in tensors if t.dtype in HALVES} if name in SUMS else ()
        if halves:
            inner = tree_map_only(Tensor, lambda t: t.float() if t.dtype in HALVES else t, inner)
        given = any(isinstance(a, torch.Generator) for a in leaves)
        with own_random_state(torch.Tag.nondeterministic_seeded in func.tags and not given):
            out = func(*inner[0], **inner[1])
        if name == "copy_" and not isinstance(args[0], PretendCuda):
            return args[0]  # a CPU tensor was copied into
        back = {id(t.elem): t for t in tensors if isinstance(t, PretendCuda)}

        def wrap(value: Tensor) -> Tensor:
            found = back.get(id(value))
            if found is None:
                return PretendCuda(value.to(*halves) if halves else value)
            if found.shape != value.shape or found.stride() != value.stride():  # unsqueeze_ and the like
                with torch._C._DisableTorchDispatch():
                    found.as_strided_(value.shape, value.stride(), value.storage_offset())
            return found

        return tree_map_only(Tensor, wrap, out)


def _check_devices(name: str, args: tuple, tensors: list[Tensor]) -> None:
    plain = [t for t in tensors if not isinstance(t, PretendCuda)]
    if not plain or name == "copy_" or torch._C._current_autograd_node():  # C++ fills CPU zeros in in backward
        return
    on_cuda = isinstance((tree_leaves(args[:1]) or [None])[0], PretendCuda)
    if name in INDEXING and on_cuda:
        if len(args) < 3 or isinstance(args[2], PretendCuda) or args[2].dim() == 0:
            return
    elif all(t.dim() == 0 for t in plain) and name not in NO_NUMBERS and (on_cuda or not name.endswith("_")):
        return
    found = ", ".join(f"{tuple(t.shape)} on {t.device.type}" for t in tensors)
    raise _report.refuse(f"{name}: expected all tensors on one device, found {found}")


def _count(name: str, args: tuple, tensors: list[Tensor], kwargs: dict) -> None:
    if name in SYNCHRONISING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _report.wait(name)
    elif name in INDEXING:
        indices = [i for i in args[1] if i is not None]
        # Of x[mask] = 1.0 torch makes a masked_fill, which waits for nothing.
        fill = name != "index" and len(indices) == 1 and not isinstance(args[2], PretendCuda)
        if not fill and any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            _report.wait("mask index")
        if not all(isinstance(i, PretendCuda) for i in indices):
            _report.wait("copy to GPU")
    elif name == "copy_" and len({isinstance(t, PretendCuda) for t in tensors}) == 2 and args[1].dim():
        _copied(isinstance(args[0], PretendCuda), any(a is True for a in (*args[2:], kwargs.get("non_blocking"))))


def _copied(to_cuda: bool, non_blocking: bool) -> None:
    if not (to_cuda and non_blocking):  # of a non_blocking copy to the host nobody knows when it has arrived
        _report.wait("copy to GPU" if to_cuda else "unsafe copy to CPU" if non_blocking else "copy to CPU")


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, to_cuda):
        ctx.to_cuda = to_cuda
        return PretendCuda(tensor.detach().clone()) if to_cuda else tensor.elem.clone()

    @staticmethod
    def backward(ctx, grad):
        return _moved(grad, not ctx.to_cuda), None


def _moved(tensor: Tensor, to_cuda: bool) -> Tensor:
    return tensor if isinstance(tensor, PretendCuda) == to_cuda else _Move.apply(tensor, to_cuda)


class _Devices(TorchFunctionMode):
    """What takes a device or leaves it, before it reaches C++."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_cuda = isinstance(first, PretendCuda)
        if first is not None and name in ("to", "cpu", "cuda"):
            return _to(name, first, args[1:], kwargs)
        if on_cuda and name in ("numpy", "__array__"):
            raise _report.refuse("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first", TypeError)
        if on_cuda and name == "tolist":
            _report.wait("tolist")
            return first.elem.tolist()
        if on_cuda and name == "one_hot":  # in C++ it makes a tensor on "cpu" beside its argument
            if (kwargs.get("num_classes", -1) if len(args) < 2 else args[1]) < 0:
                _report.wait("one_hot")
            return PretendCuda(func(first.elem, *args[1:], **kwargs))
        if on_cuda and name == "pin_memory":
            raise _report.refuse("cannot pin a tensor of the GPU: only dense CPU tensors can be pinned")
        if name == "pin_memory":
            return first
        device = kwargs.pop("device", None)
        wanted = None if device is None else "cuda" if isinstance(device, int) else torch.device(device).type
        for generator in (a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Generator)):
            if generator.device.type != (wanted or ("cuda" if on_cuda else "cpu")):
                raise _report.refuse(f"{name}: a generator on {generator.device.type} for a tensor that is not")
        if wanted is None:
            return func(*args, **kwargs)
        if wanted != "cuda":
            return tree_map_only(PretendCuda, lambda t: t.elem, func(*args, device=device, **kwargs))
        if name in ("tensor", "as_tensor", "asarray") and not on_cuda:
            _report.wait("copy to GPU")
        with own_random_state(name in ("rand", "randn", "randint", "randperm") and kwargs.get("generator") is None):
            needs_grad = kwargs.pop("requires_grad", False)
            made = tree_map_only(Tensor, lambda t: _moved(t, True), func(*args, **kwargs))
        return made.requires_grad_() if needs_grad else made


def _to(name: str, tensor: Tensor, args: tuple, kwargs: dict) -> Tensor:
    copy, other = kwargs.pop("copy", False), kwargs.pop("other", None)
    args = (other, *args) if other is not None else args
    if name != "to":
        args, kwargs = (CPU if name == "cpu" else CUDA,), {k: v for k, v in kwargs.items() if k != "device"}
    elif args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    to_cuda = isinstance(tensor, PretendCuda) if device is None else device.type == "cuda"
    if isinstance(tensor, PretendCuda) != to_cuda:
        _copied(to_cuda, non_blocking)
        tensor, copy = _moved(tensor, to_cuda), False
    return tensor.to(dtype or tensor.dtype, copy=copy, **({"memory_format": layout} if layout else {}))


@contextlib.contextmanager
def pretend_cuda():
    """Let torch have one CUDA device for a block; yields the block's Report.

    Raises:
        UnsupportedTorch: this torch lacks what the device is made of.
    """
    global _report
    check_private_names()
    _report = report = Report()
    seed(0)
    gpu = types.SimpleNamespace(name="pretend", total_memory=2**34, major=8, minor=0, multi_processor_count=1)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": gpu.name,
        "get_device_properties": gpu,
        "get_device_capability": (8, 0),
        "set_device": None,
        "memory_allocated": 2**20,
        "max_memory_allocated": 2**20,
        "memory_reserved": 2**20,
        "max_memory_reserved": 2**20,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "_lazy_init": None,
        "init": None,
    }
    cuda = {name: lambda *args, answer=answer, **kwargs: answer for name, answer in answers.items()} | {
        "synchronize": lambda *args: report.wait("synchronize"), "Event": Event, "manual_seed": seed,
        "manual_seed_all": seed, "set_sync_debug_mode": lambda mode: setattr(report, "warn", mode == "warn"),
    }  # fmt: skip
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    known = [Tensor, torch.nn.Parameter, PretendCuda]  # optimisers take all parameters at once, as on a GPU
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.utils._foreach_utils, "_foreach_supported_types", known))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a plain one cannot become a PretendCuda
        for library in autocast_kernels(PretendCuda):
            stack.callback(library._destroy)
        stack.enter_context(_Devices())
        _try_out()
        report.waits.clear()
        report.errors.clear()
        yield report


def _try_out() -> None:
    """Raise UnsupportedTorch unless the device does the least that it promises."""
    said = ""
    try:
        x = torch.ones(2, 2, device="cuda", requires_grad=True)
        with torch.autocast("cuda"):
            y = x @ x
        y.float().sum().backward()
        facts = {"device": x.grad.is_cuda, "autocast": y.dtype == torch.float16, "wait": _report.waits == Counter()}
        float(y.detach().sum())
        facts["item"] = sum(_report.waits.values()) == 1
        try:
            torch.ones(2) + torch.ones(2, device="cuda")
        except DeviceError:
            facts["mix"] = True
        said = ", ".join(name for name in ("device", "autocast", "wait", "item", "mix") if not facts.get(name))
    except (RuntimeError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
    if said:
        raise UnsupportedTorch(said)
