"""Back ends: how modules and the functions of a step are run.

``eager`` calls them as they are. ``static`` compiles decoder layers where torch can compile. On a
CPU it also reorders the weights of linear layers for the CPU's kernels once, where torch would do
so in every call. On CUDA it captures functions of a step as CUDA graphs, whose replay costs one
launch.

A function to be captured has fixed shapes, reads nothing on the host, and may be run twice on the
same inputs: apart from its result it leaves only cache rows that are not live, and state that a
second run leaves unchanged.
"""

import copy
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.utils import _pytree as pytree
from transformers.modeling_layers import GradientCheckpointingLayer

from methods.core.attention import KERNELS, PREFIX
from methods.core.errors import unknown

BACKENDS = ("eager", "static")
DEFAULT_BACKEND = "static"  # also the faster one on a CPU
# The static back end pads trees to these sizes, so that methods share compiled and captured shapes.
TREE_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
WARM_UPS = 3  # runs before a capture, in which kernels are compiled and workspaces allocated
SHAPES_A_LAYER = 256  # limit of compiled shapes: tree sizes, and rows of drafters' layers

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


class Backend(Protocol):
    """A way to run modules and functions. All back ends compute the same values."""

    name: str
    notice: str  # one line on what it does not do here, for the user; empty where it does all

    def prepare(self, module: M) -> M:
        """Return a copy of a module that runs on this back end and shares its tensors."""
        ...

    def capture(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function of a step as this back end runs it.

        On CUDA its result is overwritten by the next call.
        """
        ...

    def tree_size(self, size: int) -> int:
        """Return the size to which a tree of size ``size`` (root counted) is padded."""
        ...


class Eager:
    """The back end that calls everything as it is."""

    name, notice = "eager", ""

    def prepare(self, module: M) -> M:
        """Return a copy of the module with this package's attention, sharing its tensors."""
        return _shared(module)

    def capture(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function itself."""
        return function

    def tree_size(self, size: int) -> int:
        """Return ``size``: nothing is padded."""
        return size


EAGER = Eager()


class Static:
    """The back end that compiles layers, packs weights on a CPU and captures graphs on CUDA."""

    name = "static"

    def __init__(self, device: torch.device):
        reason = why_uncompiled(device)
        self.notice = f"the static back end runs layers uncompiled: {reason}" if reason else ""
        self._device, self._compiles = device, not reason
        self._packed = _packed_dtypes() if device.type == "cpu" else ()
        if device.type == "cuda":
            self._pool, self._aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = SHAPES_A_LAYER

    def prepare(self, module: M) -> M:
        """Return a copy with packed linear layers and compiled decoder layers."""
        prepared = _shared(module)

        for parent in list(prepared.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Linear and child.weight.dtype in self._packed:
                    parent.set_submodule(name, PackedLinear(child))

        if self._compiles:
            for part in prepared.modules():
                if isinstance(part, GradientCheckpointingLayer):  # the base of transformers' decoder layers
                    # Between two matrix products there is too little work to pay for a second thread.
                    part.compile(fullgraph=True, dynamic=False, options={"cpp.threads": 1})
        return prepared

    def capture(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function as CUDA graphs; on a CPU the function itself."""
        if self._device.type != "cuda":
            return function
        return cast(Callable[P, R], Captured(function, self._pool, self._aside))

    def tree_size(self, size: int) -> int:
        """Return the smallest of ``TREE_SIZES`` that is at least ``size``."""
        return next(padded for padded in TREE_SIZES if padded >= size)


def backend(name: str, device: torch.device) -> Backend:
    """Return the back end of a name. Raises UserError for one that does not exist."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return EAGER if name == "eager" else Static(device)


def _shared(module: M) -> M:
    """Return a copy of the modules on the same tensors, with this package's attention."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    own = copy.deepcopy(module, memo)
    for part in own.modules():
        config = getattr(part, "config", None)
        if config is not None and config._attn_implementation in KERNELS:
            config._attn_implementation = PREFIX + config._attn_implementation
    return own


def _packed_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes that oneDNN has kernels for on this processor."""
    if not torch.backends.mkldnn.is_available():
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


def why_uncompiled(device: torch.device) -> str:
    """Return why layers cannot be compiled for a device in this process, and what to do; empty if they can.

    Compiling would raise in every turn otherwise: with ``fullgraph`` torch does not fall back to the
    layers as they are.
    """
    for variable in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(variable) == "1":
            return f"{variable}=1 is set; unset it to compile them"
    if torch._dynamo.config.disable:
        return "torch._dynamo.config.disable is set; clear it to compile them"
    if not _compiler_present(device):
        return f"no compiler for {device.type} with Python's headers was found; install them to compile them"

    try:
        folder = cache_dir()
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        folder, usable = os.environ["TORCHINDUCTOR_CACHE_DIR"], False
    return "" if usable else f"torch cannot write its compiler cache to {folder}; set TORCHINDUCTOR_CACHE_DIR to a folder it can write to"


def _compiler_present(device: torch.device) -> bool:
    """Return whether inductor has what it needs.

    That is Python's headers and, on a CPU, a C++ compiler; on CUDA, Triton and the C compiler it
    builds its launcher with.
    """
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    if device.type == "cuda":
        found = any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))
        return headers and found and importlib.util.find_spec("triton") is not None
    return headers and shutil.which(os.environ.get("CXX", "g++")) is not None


class PackedLinear(nn.Module):
    """A linear layer whose weight is stored in the layout that oneDNN's kernels read."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features = linear.out_features
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return torch.ops.specbench.packed_linear(x, self.weight, self.bias, self.out_features)


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_library = torch.library.Library("specbench", "FRAGMENT")
_library.define("packed_linear(Tensor x, Tensor weight, Tensor? bias, int out_features) -> Tensor")
_library.impl("packed_linear", _packed_linear, "CompositeExplicitAutograd")


@torch.library.register_fake("specbench::packed_linear", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


class Captured:
    """A function on tensors as CUDA graphs.

    It is captured once for each combination of shapes, dtypes and other arguments. All graphs share
    the memory of ``pool`` and overwrite each other's values there, so inputs and outputs are kept
    outside it. ``aside`` is the stream on which the runs before a capture take place.
    """

    def __init__(self, function: Callable[..., Any], pool: Any, aside: Any):
        self._function, self._pool, self._aside = function, pool, aside
        self._recorded: dict[Any, tuple[Callable[[], None], list[Tensor], Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Replay the graph for these arguments; the result is overwritten by the next call."""
        leaves, structure = pytree.tree_flatten(args)
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (structure, *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves))

        if key not in self._recorded:
            own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            replay, outputs = self._record(pytree.tree_unflatten(own, structure))
            self._recorded[key] = replay, [leaf for leaf in own if isinstance(leaf, Tensor)], outputs

        replay, inputs, outputs = self._recorded[key]
        for own_input, new in zip(inputs, given, strict=True):
            own_input.copy_(new)
        replay()
        return outputs

    def _record(self, args: Any) -> tuple[Callable[[], None], Any]:
        """Capture the function; return a replay that reads ``args`` in place, and its output tensors."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(WARM_UPS):
                made = self._function(*args)
        torch.cuda.current_stream().wait_stream(self._aside)

        outputs = pytree.tree_map_only(Tensor, torch.clone, made)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            copy_leaves(self._function(*args), outputs)
        return graph.replay, outputs


def copy_leaves(new: Any, own: Any) -> None:
    """Copy every tensor of the structure ``new`` into its counterpart in ``own``."""
    for source, place in zip(pytree.tree_leaves(new), pytree.tree_leaves(own), strict=True):
        if isinstance(place, Tensor):
            place.copy_(source)
