"""The static back end writes the eager one's tokens, and functions of a step keep the rules for being captured."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from helpers.small_models import (
    CPU,
    FAMILIES,
    OTHER_PROMPT,
    PROMPT,
    Beside,
    Oracle,
    begun,
    build,
    greedy_text,
    narrow,
    plant,
    run,
    small_model,
    small_target,
    told,
)
from torch._dynamo.utils import counters
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from methods.core import attention, kv_cache
from methods.core import backend as backends
from methods.core.acceptance import Sampling, noise_for, speculative_sampling
from methods.core.backend import TREE_SIZES, Captured, Eager, PackedLinear, Static, backend, copy_leaves
from methods.core.decode import warm_up
from methods.core.errors import UserError
from methods.core.target import Target
from methods.core.tree import MAX_TREE_SIZE
from methods.registry import METHODS

NEW = 16  # tokens an answer
PROMPTS = (OTHER_PROMPT, PROMPT)
SWITCHES = [
    *((name, {}) for name in METHODS),
    ("hydra", {"prefix": "none"}),
    ("recycling", {"scope": "session"}),
    ("eagle3", {"vocabulary": 40, "nodes": 12, "depth": 4, "width": 4}),
    ("medusa", narrow("medusa")),
    *(("s4c", options) for options in ({"tree": "fresh"}, {"prefix": "none"}, {"recycle": "on", "nodes": 9})),
]


@pytest.fixture(scope="module")
def fp32():
    """Return a model of each family in fp32, for which oneDNN packs weights."""
    return {family: copy.deepcopy(small_model(family)).float() for family in FAMILIES}


@pytest.fixture(scope="module")
def fp32_texts(fp32):
    """Return the eager back end's own answers of each family, without drafts."""
    return {family: texts(Target(model, capacity=200, backend=Eager()), "vanilla", {}) for family, model in fp32.items()}


def texts(target, name, options, **sampling):
    """Return the answers to both prompts; the second would show anything that the first left behind."""
    drafter, accept = build(name, target, **options)
    warm_up(target, drafter, accept, Sampling(1, **sampling))
    return [run(target, drafter, prompt, NEW, accept, **sampling).tokens for prompt in PROMPTS]


def greedy_texts(family="llama", kernel="sdpa"):
    return [greedy_text(family, kernel, tuple(prompt))[len(prompt) :][:NEW] for prompt in PROMPTS]


@pytest.mark.parametrize(("name", "options"), SWITCHES)
def test_static_writes_eagers_tokens_in_fp32(name, options, fp32, fp32_texts):
    """Layers are compiled and weights packed."""
    assert texts(Target(fp32["llama"], capacity=200, backend=backend("static", CPU)), name, options) == fp32_texts["llama"]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("llama", "smollm2")])
def test_static_takes_every_family(family, fp32, fp32_texts):
    assert texts(Target(fp32[family], capacity=200, backend=backend("static", CPU)), "eagle2", narrow("eagle2")) == fp32_texts[family]


def test_static_samples_as_eager_does(fp32):
    static, eager = (Target(fp32["llama"], capacity=200, backend=backend(each, CPU)) for each in ("static", "eager"))
    assert texts(static, "s4c", {}, temperature=0.7, seed=4) == texts(eager, "s4c", {}, temperature=0.7, seed=4)


def test_layers_share_what_is_compiled_and_prompts_are_not():
    torch._dynamo.reset()
    counters.clear()
    target = Target(copy.deepcopy(small_model()).float(), capacity=200, backend=backend("static", CPU))
    texts(target, "medusa", {"nodes": 5})
    assert counters["stats"]["unique_graphs"] == 1
    texts(Target(copy.deepcopy(small_model()).float(), capacity=300, backend=backend("static", CPU)), "medusa", {"nodes": 5})
    assert counters["stats"]["unique_graphs"] == 1, "nor does the size of the cache compile anything anew"


@pytest.mark.usefixtures("no_length")
def test_how_far_back_a_mask_reaches_compiles_nothing_new():
    """On a GPU spans grow with the text, and each new graph of the layers would cost seconds."""
    torch._dynamo.reset()
    counters.clear()
    target = Target(copy.deepcopy(small_model()).float(), capacity=200, backend=backend("static", CPU))
    assert texts(target, "medusa", {"nodes": 5}) == greedy_texts()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def no_length(monkeypatch):
    """Read whole spans of the cache under a mask, as on a GPU, where reading the length would wait. Spans are short, so that they grow."""
    for module in (attention, kv_cache):
        monkeypatch.setattr(module, "length_is_at_hand", lambda device: False)
    monkeypatch.setattr(kv_cache, "SHORTEST_SPAN", 16)


@pytest.mark.usefixtures("no_length")
@pytest.mark.parametrize("name", ["eagle2", "s4c"])
def test_the_text_is_the_same_where_the_length_is_not_read(name):
    assert texts(Target(small_model("qwen3", "eager"), capacity=200, backend=Replaying()), name, {}) == greedy_texts("qwen3", "eager")


@pytest.mark.parametrize("name", ["medusa", "eagle2"])
@pytest.mark.parametrize("prompt", [[5], [40, 2]])
def test_the_shortest_prompts_see_nothing_an_earlier_text_left(name, prompt, monkeypatch):
    for module in (attention, kv_cache):
        monkeypatch.setattr(module, "length_is_at_hand", lambda device: False)
    target = small_target()
    drafter, accept = build(name, target)
    run(target, drafter, PROMPT, 30, accept)
    seen = []
    lived = run(
        target, Beside(Oracle(greedy_text(prompt=tuple(prompt)), (1,)), [drafter], lambda tokens, tree: seen.append(told(tree))), prompt, 9
    )
    assert lived.tokens == greedy_text(prompt=tuple(prompt))[len(prompt) :][:9]
    assert seen[0] == told(begun(build(name, target)[0], target, [*prompt, lived.tokens[0]]).draft([*prompt, lived.tokens[0]]))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_without_a_compiler_static_is_plain(kernel, monkeypatch):
    monkeypatch.setattr(backends, "_compiler_present", lambda device: False)
    target = small_target(attention=kernel, back_end="static")
    assert texts(target, "eagle2", {}) == greedy_texts(kernel=kernel)


DISABLED = {  # what is set, patched or configured, and the reason that is given
    "TORCH_COMPILE_DISABLE": ({"TORCH_COMPILE_DISABLE": "1"}, (), True, "TORCH_COMPILE_DISABLE=1 is set; unset it"),
    "TORCHDYNAMO_DISABLE": ({"TORCHDYNAMO_DISABLE": "1"}, (), False, "TORCHDYNAMO_DISABLE=1 is set; unset it"),
    "dynamo's config": ({}, (), True, "torch._dynamo.config.disable is set; clear it"),
    "no compiler": ({}, (backends, "_compiler_present", False), False, "no compiler for cpu"),
    "no cache folder": ({"TORCHINDUCTOR_CACHE_DIR": "/proc/no"}, (), False, "torch cannot write its compiler cache to /proc/no;"),
    "a cache folder of others": ({}, (backends, "cache_dir", "/proc/none"), False, "torch cannot write its compiler cache to /proc/none;"),
}


@pytest.mark.parametrize("how", DISABLED)
def test_where_nothing_can_be_compiled_static_is_plain_and_says_why(how, fp32, fp32_texts, monkeypatch):
    variables, patched, configured, reason = DISABLED[how]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if patched:
        monkeypatch.setattr(*patched[:2], lambda *asked: patched[2])
    counters.clear()
    with torch._dynamo.config.patch(disable=configured):
        static = Target(fp32["llama"], capacity=200, backend=backend("static", CPU))
        assert texts(static, "eagle2", {}) == fp32_texts["llama"]
    assert counters["stats"]["unique_graphs"] == 0
    assert static.backend.notice.startswith(f"the static back end runs layers uncompiled: {reason}")
    assert "\n" not in static.backend.notice


def test_back_ends_that_do_all_they_can_have_nothing_to_say():
    assert [backend(name, CPU).notice for name in ("eager", "static")] == ["", ""]


def test_a_cache_folder_that_cannot_be_made_does_not_keep_the_package_from_being_imported(tmp_path):
    (tmp_path / "file").write_text("")
    code = "import os; from methods.core.backend import why_uncompiled as why; import torch; "
    code += "print(why(torch.device('cpu'))); print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"
    folder = str(tmp_path / "file" / "cache")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"torch cannot write its compiler cache to {folder}; set TORCHINDUCTOR_CACHE_DIR to a folder it can write to",
        folder,
    ]


class Replayed(Captured):
    """A captured graph on a CPU: it runs the function twice on its own inputs and returns the same tensors every time."""

    def _record(self, args):
        outputs = pytree.tree_map_only(torch.Tensor, torch.clone, self._function(*args))

        def replay():
            for _ in range(2):
                copy_leaves(self._function(*args), outputs)

        return replay, outputs


class Replaying(Eager):
    """The eager back end, with every function of a step captured and trees padded as on the static one."""

    tree_size = Static(CPU).tree_size

    def capture(self, function):
        return Replayed(function, None, None)


@pytest.mark.usefixtures("no_length")
@pytest.mark.parametrize(("name", "options"), SWITCHES)
def test_functions_of_a_step_can_be_captured(name, options, monkeypatch):
    """A step keeps nothing in tensors that the next call overwrites, and running a function twice changes nothing.

    After ``warm_up`` and one short answer nothing is captured, in texts that reach every span and have a late first match to look up.
    """
    captures, record = [], Replayed._record

    def recording(captured, args):
        captures.append(args)
        return record(captured, args)

    monkeypatch.setattr(Replayed, "_record", recording)
    target = Target(small_model(), capacity=200, backend=Replaying())
    drafter, accept = build(name, target, **options)
    warm_up(target, drafter, accept, Sampling(1))
    run(target, drafter, [9, 8], 4, accept)
    assert captures
    captures.clear()
    assert [run(target, drafter, prompt, NEW, accept).tokens for prompt in PROMPTS] == greedy_texts()
    run(target, drafter, PROMPT * 3, 40, accept)
    assert captures == []


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        *((name, {"temperature": 0.8}) for name in ("vanilla", "medusa", "sps", "s4c")),
        *((name, {"temperature": 1.0, "top_k": 20, "top_p": 0.9}) for name in ("vanilla", "sps")),
    ],
)
def test_functions_of_a_sampled_step_can_be_captured(name, sampling):
    captured, eager = (Target(small_model(), capacity=200, backend=each) for each in (Replaying(), Eager()))
    assert texts(captured, name, {}, **sampling, seed=3) == texts(eager, name, {}, **sampling, seed=3)


WAITS = {f"aten::{name}" for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal")}


class HostReads(TorchDispatchMode):
    """A counter of ops that would wait for a device; on a CPU attention may read the cache's length."""

    def __init__(self):
        super().__init__()
        self.seen, self.attending = [], False

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op._schema.name in WAITS and not self.attending:
            self.seen.append(op._schema.name)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "options", "sampling"),
    [
        *((*each, {}) for each in SWITCHES if each[1] != {"tree": "fresh"}),
        *((name, {}, {"temperature": 0.8}) for name in METHODS),
        *((name, {}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9}) for name in ("vanilla", "sps")),
        *((name, {"acceptance": "speculative_sampling"}, {"temperature": 0.8}) for name in ("eagle", "eagle3", "s4c")),
    ],
)
def test_the_host_reads_once_a_step(name, options, sampling, monkeypatch):
    target, reads, attend, tolist = small_target(), HostReads(), attention.attend, torch.Tensor.tolist

    def attending(*args):
        reads.attending = True
        out = attend(*args)
        reads.attending = False
        return out

    def listing(tensor):
        reads.seen.append("tolist")
        return tolist(tensor)

    monkeypatch.setattr(attention, "attend", attending)
    monkeypatch.setattr(torch.Tensor, "tolist", listing)
    drafter, accept = build(name, target, **options)
    run(target, drafter, PROMPT, 3, accept)  # static trees are brought to the device once
    reads.seen.clear()
    with reads:
        result = run(target, drafter, PROMPT, 14, accept, **sampling)
    assert reads.seen == ["tolist"] * (1 + len(result.steps))


def test_trying_siblings_in_turn_can_be_captured():
    tree = plant([0, 1, 2, 3], (-1, 0, 0, 1), torch.full((4, 5), 0.2))
    rule, rng = Replayed(speculative_sampling, None, None), torch.Generator().manual_seed(1)
    for _ in range(20):
        logits_NV, noise = torch.randn(4, 5, generator=rng), noise_for(tree, 5, Sampling(1, 1.0), rng)
        assert rule(tree, logits_NV, 1.0, noise).read() == speculative_sampling(tree, logits_NV, 1.0, noise).read()


def test_modules_share_their_tensors_and_the_original_stays_as_it_is(fp32):
    model = fp32["llama"]
    ready = backend("static", CPU).prepare(model)
    assert model.config._attn_implementation == "sdpa"
    assert type(model.lm_head) is torch.nn.Linear
    assert isinstance(ready.lm_head, PackedLinear)
    assert ready.get_input_embeddings().weight is model.get_input_embeddings().weight
    x = torch.randn(3, 32)
    torch.testing.assert_close(ready.lm_head(x), model.lm_head(x))


def test_tree_sizes_cover_every_tree_and_are_few():
    static = Static(CPU)
    assert [static.tree_size(size) for size in TREE_SIZES] == list(TREE_SIZES)
    assert static.tree_size(MAX_TREE_SIZE) == MAX_TREE_SIZE
    assert static.tree_size(7) == 8
    assert Eager().tree_size(7) == 7


def test_an_unknown_back_end_is_refused():
    with pytest.raises(UserError, match="unknown backend 'statik'; did you mean 'static'"):
        backend("statik", CPU)


def test_bent_paths_through_padded_trees_are_committed():
    rights = (3, 0, 5, 1)
    result = run(Target(small_model(), capacity=200, backend=Replaying()), Oracle(greedy_text(), rights), PROMPT, 40)
    assert result.tokens == greedy_text()[len(PROMPT) :][:40]
    assert [step.accepted for step in result.steps[:4]] == list(rights)
    assert [step.tree_size for step in result.steps[:4]] == [2 * right + 3 for right in rights]
