"""Random fp64 models and drafters of a few thousand weights, scripted drafters, and tree policies that record or replay."""

import copy
import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from methods import registry
from methods.core.acceptance import Sampling, match, path_to
from methods.core.backend import backend
from methods.core.clock import HostClock
from methods.core.decode import decode
from methods.core.target import Target
from methods.core.tree import DraftTree, SparseRows
from methods.core.weights import Trained
from specbench.studies.tune.record import reads_of

CPU = torch.device("cpu")
V = 64
CAPACITY = 256
PROMPT = list(range(3, 15))
OTHER_PROMPT = [40, 2, 40, 2, 17, 40, 2]
RANK_ACCURACY = ((0.5, 0.2, 0.1, 0.05),) * 4
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "smollm2": (  # a Llama whose output matrix is its embedding, with three query heads for each key head
        LlamaConfig,
        LlamaForCausalLM,
        {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True},
    ),
}


def spread(module, seed):
    """Fill a module with random weights that are large enough to make ties rare; with the default initialisation ties are frequent.

    Norm weights and biases are random too, so that leaving one out shows.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        mean, std = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, 0.3)
        nn.init.normal_(parameter, mean, std, generator=rng)
    return module.eval().requires_grad_(False)


@lru_cache
def small_model(family="llama", attention="sdpa"):
    config, model, extra = FAMILIES[family]
    return spread(model._from_config(config(**{**SHAPE, **extra}), attn_implementation=attention).double(), seed=0)


@lru_cache
def greedy_text(family="llama", attention="sdpa", prompt=tuple(PROMPT), new=60):
    """Return the prompt and the answer of transformers' own ``generate``."""
    return small_model(family, attention).generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=new)[0].tolist()


def trained(kind, model, **architecture):
    row = next(row for row in registry.METHODS.values() if row.weights == kind)
    if row.model:
        return Trained(draft_model(model.config).to(model.dtype), (), "0" * 64)
    code = importlib.import_module(row.module)
    module = spread(code.Module(model.config, code.Architecture(**architecture)).to(model.dtype), seed=1)
    module.choose_vocabulary(torch.rand(model.config.vocab_size, generator=torch.Generator().manual_seed(2)))
    return Trained(module, RANK_ACCURACY, "0" * 64)


def narrow(name):
    """Return options of a method's weights that guess among 40 tokens, by the target's output matrix; none without trained weights."""
    kind = registry.METHODS[name].weights
    if kind is None or registry.METHODS[name].model:
        return {}
    return {"vocabulary": 40} | ({"output": "target"} if kind in ("medusa", "hydra", "eagle3") else {})


def draft_model(config, noise=0.1):
    """Return a draft model close to the small model of the same config, so that its drafts are often accepted."""
    draft, other = (AutoModelForCausalLM.from_config(copy.deepcopy(config)) for _ in range(2))
    spread(draft.double(), seed=0), spread(other.double(), seed=1)
    for parameter, apart in zip(draft.parameters(), other.parameters(), strict=True):
        parameter.lerp_(apart, noise)
    return draft


def build(name, target, **options):
    """Build a method of the table with random weights; ``options`` are those of ``--set``, or of the weights' architecture."""
    architecture = {key: options[key] for key in ("heads", "layers", "prefix", "vocabulary", "output") if key in options}
    given = {key: str(value) for key, value in options.items() if key in registry.options(name) or key not in architecture}
    resolved = registry.resolve(name, given, "cpu")
    weights = trained(resolved.method.weights, target, **architecture) if resolved.method.weights else None
    return registry.build(resolved, target, weights)


def run(target, drafter, prompt, new, accept=match, **sampling):
    return decode(target, drafter, accept, list(prompt), Sampling(new, **sampling), HostClock())


def features_of(model, tokens):
    """Return the target's features, T x D, from one plain forward pass."""
    return model.base_model(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]


def entered(model, tokens, layers):
    """Return the inputs of these layers of the target, concatenated to T rows, from one plain forward pass."""
    states = model.base_model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][0] for layer in layers], dim=-1)


def plant(tokens, parents, q_NV=None, kept=None):
    """Return a tree; ``q_NV`` is dense, of which the tree keeps the ``kept`` likeliest tokens of each row, or all."""
    return DraftTree.of(tokens, parents, CPU, None if q_NV is None else SparseRows(*q_NV.topk(kept or q_NV.shape[1])))


def dense(q, vocabulary=V):
    """Return a tree's q as rows over the vocabulary."""
    return torch.zeros(len(q.q_NK), vocabulary, dtype=q.q_NK.dtype).scatter(1, q.tokens_NK, q.q_NK)


def told(tree):
    """Return a tree's tokens and parents on the host, without padding."""
    nodes = [(token, parent) for token, parent in zip(tree.tokens_N.tolist(), tree.shape.parents_N.tolist(), strict=True) if token >= 0]
    return [token for token, _ in nodes], [-1, *(parent for _, parent in nodes[1:])]


def paths_of(tree):
    """Return each node of a tree as the tokens on the path from the root to it."""
    paths = [()]
    for token, parent in list(zip(*told(tree), strict=True))[1:]:
        paths.append((*paths[parent], token))
    return paths


def taken(tree, logits_NV, last, bonus):
    """Return the result of an acceptance rule that accepts the path to the node ``last``."""
    return path_to(tree, logits_NV, torch.tensor([last]), torch.tensor([bonus]))


def path_of(accepted):
    return accepted.path_P.tolist()[: int(accepted.length)]


class Oracle:
    """A drafter that knows the text and drafts some right tokens, then a wrong one.

    A wrong sibling precedes each right token, so that the accepted path skips nodes. ``rights`` are the numbers of right
    tokens, step after step.
    """

    reads = ()

    def __init__(self, text, rights):
        self.text, self.rights, self.steps = text, rights, 0

    def begin(self, prompt, first, scores, sampling):
        self.steps = 0

    def observe(self, tree, accepted, scores):
        pass

    def wipe(self):
        pass

    def draft(self, tokens):
        right = self.rights[self.steps % len(self.rights)]
        self.steps += 1
        following = self.text[len(tokens) : len(tokens) + right + 1]
        drafted, parents, parent = [tokens[-1]], [-1], 0
        for depth, token in enumerate(following):
            drafted += [(token + 7) % V, token if depth < right else (token + 1) % V]
            parents += [parent, parent]
            parent = len(drafted) - 1
        return plant(drafted, parents)


class Beside:
    """Drafters that observe an oracle's accepted trees, whose paths are long and skip nodes.

    ``look`` is called in each step with the text and the tree that each of them drafts.
    """

    def __init__(self, oracle, drafters, look):
        self.oracle, self.drafters, self.look = oracle, drafters, look
        self.reads = reads_of(drafters)

    def begin(self, prompt, first, scores, sampling):
        for drafter in (self.oracle, *self.drafters):
            drafter.begin(prompt, first, scores, sampling)

    def observe(self, tree, accepted, scores):
        for drafter in self.drafters:
            drafter.observe(tree, accepted, scores)

    def wipe(self):
        for drafter in self.drafters:
            drafter.wipe()

    def draft(self, tokens):
        self.look(tokens, *(drafter.draft(tokens) for drafter in self.drafters))
        return self.oracle.draft(tokens)


class Watched:
    """A tree policy that records the logits it was given for each path of guesses."""

    def __init__(self, policy):
        self.policy, self.depth, self.size = policy, policy.depth, policy.size

    def grow(self, root, logits_WV, state, expand):
        self.logits, paths = {(): logits_WV[0]}, [()]

        def watched(tokens_W, rows_W, level, state):
            nonlocal paths
            paths = [(*paths[row], token) for row, token in zip(rows_W.tolist(), tokens_W.tolist(), strict=True)]
            logits_WV, state = expand(tokens_W, rows_W, level, state)
            self.logits |= dict(zip(paths, logits_WV.expand(len(paths), -1), strict=True))
            return logits_WV, state

        return self.policy.grow(root, logits_WV, state, watched)


def watch_policy(drafter):
    """Make the drafter's tree policy record the logits it is given."""
    drafter.policy = watched = Watched(drafter.policy)
    return watched


class Follow:
    """A tree policy that guesses a given text, whatever the drafter says."""

    def __init__(self, guesses):
        self.guesses, self.depth, self.size = guesses, len(guesses) + 1, len(guesses) + 1

    def grow(self, root, logits_WV, state, expand):
        row = torch.zeros(1, dtype=torch.long)
        for level, token in enumerate(self.guesses, start=1):
            _, state = expand(torch.tensor([token]), row, level, state)
        return DraftTree.chain([int(root), *self.guesses], CPU)


def small_target(family="llama", attention="sdpa", back_end="eager"):
    return Target(small_model(family, attention), capacity=CAPACITY, backend=backend(back_end, CPU))


def begun(drafter, target, text):
    """Begin the drafter on a prompt that ``text`` continues by one token, and return it."""
    prompt = text[:-1]
    scores = target.prefill(prompt, drafter.reads)
    drafter.begin(prompt, taken(DraftTree.chain(prompt[-1:], CPU), scores.logits_NV, 0, text[-1]), scores, Sampling(1))
    return drafter
