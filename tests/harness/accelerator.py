"""A stand-in for an accelerator: a device of PyTorch's PrivateUse1 kind, written in Python, on a machine without one.

Its tensors hold a CPU tensor, so results are the CPU's. What an accelerator adds is there: operators that mix devices
raise, as CUDA's do (there are two devices, and `standin:1` is as far from `standin:0` as from the CPU); dropout draws
from generators of the device; autocast; and every wait of the host for the device is kept, with the line of
`benchmark/` or `methods/` that caused it.

PyTorch's autograd takes only the first of such devices, so training is on `standin:0`: make the other one the device in
use (`torch.accelerator.set_device_index(1)`), and whatever forgets which device was asked for lands there and raises.

Installing it changes the whole process (it renames PrivateUse1 and replaces a few functions of torch), and cannot be
undone: do it in a process of its own. Not here: streams, events, memory statistics, compiled code, float8.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME, DEVICES = "standin", 2
ROOT = Path(__file__).resolve().parents[2]
WATCHED = tuple(f"{ROOT / room}/" for room in ("benchmark", "methods"))
ASKING = f"{ROOT}/methods/core/answers.py"  # asks on behalf of another line
CPU = torch.device("cpu")
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")  # in this torch


@dataclass(frozen=True)
class Wait:
    """A wait of the host for the device: how it was caused, and the nearest line of the engine or a method."""

    kind: str
    place: str  # file:line, from the root of the repository; empty where neither room is on the stack
    text: str  # of the line

    def __str__(self) -> str:
        return f"{self.kind} at {self.place or 'no line of the engine'}: {self.text}"


WAITS: list[Wait] = []


def find_line() -> tuple[str, str]:
    """Return the place and the text of the nearest line of the engine or a method above; empty where there is none."""
    frame = sys._getframe(1)
    while frame is not None and (
        not frame.f_code.co_filename.startswith(WATCHED) or frame.f_code.co_filename == ASKING
    ):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "", ""
    path, line = Path(frame.f_code.co_filename), frame.f_lineno
    return f"{path.relative_to(ROOT)}:{line}", path.read_text().splitlines()[line - 1].strip()


def wait(kind: str) -> None:
    """Keep a wait."""
    WAITS.append(Wait(kind, *find_line()))


@contextmanager
def watch() -> Iterator[list[Wait]]:
    """Give the list that will hold the waits of the block, once it has ended."""
    first, seen = len(WAITS), []
    try:
        yield seen
    finally:
        seen += WAITS[first:]


# --- tensors ----------------------------------------------------------------------------------------------------------


class Held(torch.Tensor):
    """A tensor on the device: the CPU tensor `raw` that it holds, out of reach of everything but `run`."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor, device: torch.device) -> Held:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=device,
            requires_grad=False,
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        wait("tolist()")
        return self.raw.tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.raw}, device='{self.device}')"


def on(device: Any) -> torch.device:
    """Return a device with its number: that in use where none is named."""
    found = torch.device(device)
    return torch.device(NAME, CURRENT[0]) if found.type == NAME and found.index is None else found


COPIES = ("aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")
INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index")
# Operators whose result has a size that the device must tell first.
SIZED = ("aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::bincount", "aten::unique_dim")
SIZED += ("aten::unique_consecutive", "aten::repeat_interleave.Tensor", "aten::is_nonzero")


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operator on what its tensors hold; raise where they are on several devices; keep waits."""
    name = func.name()
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    held = [tensor for tensor in tensors if isinstance(tensor, Held)]
    target = held[0].device if held else CPU
    if kwargs.get("device") is not None:
        target = on(kwargs["device"])
        kwargs = {**kwargs, "device": CPU, **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    if name.startswith(COPIES):
        look_at_copy(name, args, kwargs, target)
    else:
        refuse_mixture(name, tensors, held)
        look_at_question(name, args, tensors)
    given, named = tree_map(lambda x: x.raw if isinstance(x, Held) else x, (args, kwargs))
    if torch.Tag.nondeterministic_seeded in func.tags and target.type == NAME:
        result = draw(func, given, named, target)
    else:
        result = func(*given, **named)
    if name == "aten::copy_" and not isinstance(args[0], Held):
        return args[0]
    if target.type != NAME:
        return result
    known = {id(tensor.raw): tensor for tensor in held}  # changed in place, or handed through

    def hold(x: Any) -> Any:
        return (known[id(x)] if id(x) in known else Held(x, target)) if isinstance(x, Tensor) else x

    return tree_map(hold, result)


def refuse_mixture(name: str, tensors: list[Tensor], held: list[Held]) -> None:
    """Raise RuntimeError, as CUDA does, for tensors on several devices; numbers on the CPU (no dimension) may be."""
    mixed = {str(tensor.device) for tensor in held}
    mixed |= {"cpu" for tensor in tensors if not isinstance(tensor, Held) and tensor.dim() > 0}
    if len(mixed) > 1 and not (name.startswith(INDEXING) and len({tensor.device for tensor in held}) == 1):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(mixed))}! ({name}, {' '.join(find_line())})"
        )


def look_at_question(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Keep a wait for what an operator has to know from the device, or to bring to it."""
    if name == "aten::_local_scalar_dense":
        wait("item()")
    elif name.startswith(SIZED):
        wait(f"{name.removeprefix('aten::')}()")
    elif name.startswith(INDEXING):
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        asks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if asks and (len(args) < 3 or args[2].numel() != 1):  # one number for all of a mask is filled in
            wait("indexing by a bool tensor")
        elif any(not isinstance(index, Held) for index in indices):
            wait("indexing by a tensor of the CPU")


def look_at_copy(name: str, args: Any, kwargs: dict[str, Any], target: torch.device) -> None:
    """Keep a wait for a copy between devices that does not go on beside the host (non_blocking)."""
    if kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True):
        return
    if name.startswith("aten::_to_copy"):
        pairs = [(target, args[0].device)]
    elif name.startswith("aten::copy_"):
        pairs = [(args[0].device, args[1].device)]
    else:
        pairs = [(to.device, of.device) for to, of in zip(args[0], args[1], strict=True)]
    for to, of in pairs:
        if to != of:
            wait("copy to the CPU" if to.type == "cpu" else "copy to the device")


# --- random numbers ---------------------------------------------------------------------------------------------------

CURRENT = [0]  # the device in use


class DeviceGenerator(torch.Generator):
    """A generator of the device: its numbers are those of the CPU's of the same seed."""

    def __new__(cls, device: Any = NAME) -> DeviceGenerator:
        made = super().__new__(cls)
        made.where = on(device)
        KNOWN.add(made._cdata)  # torch hands operators another Python object for it
        return made

    def __init__(self, device: Any = NAME) -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where  # type: ignore[attr-defined]


KNOWN: set[int] = set()  # addresses of the device's generators
GENERATORS: list[DeviceGenerator] = []  # one for each device


def draw(func: Any, args: Any, kwargs: dict[str, Any], target: torch.device) -> Any:
    """Compute an operator that draws random numbers, from the generator it is given or the device's own."""
    given = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Generator)), None)
    if given is not None:
        if given._cdata not in KNOWN:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        return func(*args, **kwargs)
    own = GENERATORS[target.index]
    before = torch.get_rng_state()
    torch.set_rng_state(own.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        own.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def make_generator(usual: Any) -> Any:
    """Return what stands for torch.Generator: isinstance() works, and the device has generators too."""

    class Meta(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, usual)

    class Generator(metaclass=Meta):
        def __new__(cls, device: Any = "cpu") -> Any:
            return DeviceGenerator(device) if torch.device(device).type == NAME else usual(device)

    return Generator


def make_tensor(usual: Any) -> Any:
    """Return what stands for torch.tensor, which PyTorch can't do for a device in Python."""

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            return usual(data, device=device, requires_grad=requires_grad, **kwargs)
        return usual(data, **kwargs).to(device).requires_grad_(requires_grad)

    return tensor


# --- the module torch.standin, and torch.accelerator ------------------------------------------------------------------


@dataclass(frozen=True)
class Properties:
    """What torch.cuda.get_device_properties tells of a GPU, as far as anyone asks."""

    name: str = "Stand-in"
    total_memory: int = 2**34
    multi_processor_count: int = 1


def number_of(device: Any = None) -> int:
    """Return the number of a device, given as torch takes it."""
    if device is None:
        return CURRENT[0]
    return device if isinstance(device, int) else on(device).index


def use(device: Any) -> None:
    """Make a device the one in use."""
    CURRENT[0] = number_of(device)


def make_module() -> types.ModuleType:
    """Return the module of the device, as `torch.cuda` is that of CUDA."""
    module = types.ModuleType(f"torch.{NAME}")
    functions: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: DEVICES,
        "current_device": lambda: CURRENT[0],
        "set_device": use,
        "synchronize": lambda device=None: wait("synchronize()"),
        "manual_seed": lambda seed: GENERATORS[CURRENT[0]].manual_seed(seed),
        "manual_seed_all": lambda seed: [generator.manual_seed(seed) for generator in GENERATORS],
        "get_rng_state": lambda device=None: GENERATORS[number_of(device)].get_state(),
        "set_rng_state": lambda state, device=None: GENERATORS[number_of(device)].set_state(state),
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "is_bf16_supported": lambda *args, **kwargs: True,
        "get_device_name": lambda device=None: Properties.name,
        "get_device_properties": lambda device=None: Properties(),
        "empty_cache": lambda: None,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module


class Guard(torch._C._acc.DeviceGuard if AVAILABLE else object):  # type: ignore[misc]
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


# --- autocast ---------------------------------------------------------------------------------------------------------

LOWER = "conv1d conv2d conv3d conv_transpose2d linear matmul mm bmm addmm baddbmm scaled_dot_product_attention"
AUTOCAST: list[torch.library.Library] = []  # kept, or the registrations end


def cast_in(packet: str) -> None:
    """Have an operator compute in the type of autocast, as the CPU's autocast does."""
    for overload in getattr(torch.ops.aten, packet).overloads():
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        if any(argument.is_out for argument in operator._schema.arguments):
            continue

        def kernel(*args: Any, operator: Any = operator, **kwargs: Any) -> Any:
            kind = torch.get_autocast_dtype(NAME)

            def cast(x: Any) -> Any:
                wide = isinstance(x, Tensor) and x.dtype in (torch.float32, torch.bfloat16) and x.device.type == NAME
                return x.to(kind) if wide else x

            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
                return operator(*tree_map(cast, args), **tree_map(cast, kwargs))

        AUTOCAST[0].impl(operator, kernel)


# --- installing it ----------------------------------------------------------------------------------------------------


def install() -> None:
    """Make the stand-in the accelerator of this process, for good."""
    if GENERATORS:
        return
    if torch.accelerator.is_available() or not AVAILABLE:
        raise RuntimeError("the stand-in needs a torch that takes devices in Python, and no accelerator beside it")
    module = make_module()
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=module, device_guard=Guard())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda operator, *args, **kwargs: run(operator, args, kwargs), "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    AUTOCAST.extend([torch.library.Library("aten", "IMPL", "AutocastPrivateUse1"), library])
    for packet in LOWER.split():
        cast_in(packet)
    GENERATORS.extend(DeviceGenerator(f"{NAME}:{index}") for index in range(DEVICES))
    module.manual_seed_all(torch.initial_seed())
    torch.Generator = make_generator(torch.Generator)  # type: ignore[misc]
    torch.tensor = make_tensor(torch.tensor)
    torch.accelerator.synchronize = module.synchronize
    torch.accelerator.current_device_index = module.current_device
    torch.accelerator.set_device_index = use
    torch.Tensor.pin_memory = lambda self, device=None: self.clone()  # type: ignore[method-assign,assignment]
    torch.__future__.set_swap_module_params_on_conversion(True)  # its tensors have no storage to put in another's place
