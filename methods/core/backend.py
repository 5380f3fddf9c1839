"""Back ends: how the same modules and the same pieces of a round are run.

``eager`` calls them as they are. ``static`` compiles decoder layers where a compiler is present; on a CPU it also lays the
weights of linear layers out for its kernels, once, where torch would at every call; on CUDA it captures each piece of a
round as a graph, whose replay costs one launch. A piece has fixed shapes, asks the host nothing, and may be run twice on
the same inputs: all it leaves behind is what it returns, cache rows that are not live, and what a second run leaves as it is.
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
from torch.utils import _pytree as pytree
from transformers.modeling_layers import GradientCheckpointingLayer

from methods.core.attention import KERNELS, PREFIX
from methods.core.errors import unknown

BACKENDS = ("eager", "static")
DEFAULT_BACKEND = "static"  # the faster one on a CPU too: reports/bench
TREE_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # what static trees are padded to, so that methods share them
WARM_UPS = 3  # runs before a capture: kernels are compiled and chosen, workspaces allocated
SHAPES_A_LAYER = 256  # compiled at most: tree sizes, and rows of the drafters' own layers

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


class Backend(Protocol):
    name: str

    def module(self, module: M) -> M:
        """A module made ready, sharing its tensors; the one given stays as it is."""
        ...

    def piece(self, function: Callable[P, R]) -> Callable[P, R]:
        """A piece of a round made ready; on CUDA what it returns is overwritten when it is called again."""
        ...

    def tree_size(self, nodes: int) -> int:
        """How many nodes a tree of ``nodes`` is scored as."""
        ...


class Eager:
    name = "eager"

    def module(self, module: M) -> M:
        return _shared(module)

    def piece(self, function: Callable[P, R]) -> Callable[P, R]:
        return function

    def tree_size(self, nodes: int) -> int:
        return nodes


EAGER = Eager()


class Static:
    name = "static"

    def __init__(self, device: torch.device):
        self._device = device
        self._compiles = _compiler_present(device)
        self._packed = _packed_dtypes() if device.type == "cpu" else ()
        if device.type == "cuda":
            self._pool, self._aside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = SHAPES_A_LAYER

    def module(self, module: M) -> M:
        ready = _shared(module)
        for parent in list(ready.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Linear and child.weight.dtype in self._packed:
                    parent.set_submodule(name, PackedLinear(child))
        if self._compiles:
            for part in ready.modules():
                if isinstance(part, GradientCheckpointingLayer):  # what transformers derives every decoder layer from
                    # A wake-up of the second thread costs more than the few thousand numbers between two products.
                    part.compile(fullgraph=True, dynamic=False, options={"cpp.threads": 1})
        return ready

    def piece(self, function: Callable[P, R]) -> Callable[P, R]:
        if self._device.type != "cuda":
            return function
        return cast(Callable[P, R], Captured(function, self._pool, self._aside))

    def tree_size(self, nodes: int) -> int:
        return next(size for size in TREE_SIZES if size >= nodes)


def backend(name: str, device: torch.device) -> Backend:
    """By name. Raises UserError for one that does not exist."""
    if name not in BACKENDS:
        raise unknown("backend", name, BACKENDS)
    return EAGER if name == "eager" else Static(device)


def _shared(module: M) -> M:
    """A copy of the modules on the same tensors, whose attention is ours."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    own = copy.deepcopy(module, memo)
    for part in own.modules():
        config = getattr(part, "config", None)
        if config is not None and config._attn_implementation in KERNELS:
            config._attn_implementation = PREFIX + config._attn_implementation
    return own


def _packed_dtypes() -> tuple[torch.dtype, ...]:
    """Those oneDNN has kernels for on this processor."""
    if not torch.backends.mkldnn.is_available():
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


def _compiler_present(device: torch.device) -> bool:
    """What inductor needs: a C++ compiler on a CPU, Triton and the C compiler it builds its launcher with on CUDA, Python's headers."""
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    if device.type == "cuda":
        found = any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang"))))
        return headers and found and importlib.util.find_spec("triton") is not None
    return headers and shutil.which(os.environ.get("CXX", "g++")) is not None


class PackedLinear(nn.Module):
    """A linear layer with its weight in the layout that oneDNN's kernels read."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features = linear.out_features
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
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
    """A function on tensors as CUDA graphs, one for each combination of shapes and other arguments it is called with.

    All graphs share the memory of ``pool``, and each writes over what others left there: inputs and outputs are outside it.
    ``aside`` is the stream that captures are prepared on.
    """

    def __init__(self, function: Callable[..., Any], pool: Any, aside: Any):
        self._function, self._pool, self._aside = function, pool, aside
        self._recorded: dict[Any, tuple[Callable[[], None], list[Tensor], Any]] = {}

    def __call__(self, *args: Any) -> Any:
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
        """A call that runs the function on these very tensors again, and what it returns into."""
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
    """Every tensor of one structure into its place in another of the same form."""
    for source, place in zip(pytree.tree_leaves(new), pytree.tree_leaves(own), strict=True):
        if isinstance(place, Tensor):
            place.copy_(source)
