"""At T > 0 every method's output, with its drafter, cache and rng, follows the target's softmax.

A chi-square test compares the joint distribution of four tokens over many seeds with one plain batched forward pass of the
model. Four tokens are needed because a step that accepts a draft writes the second and the third: only the fourth is
computed from the cache rows that were kept.
"""

import itertools
from functools import lru_cache

import pytest
import torch
from helpers.sampling import warped
from helpers.small_models import SHAPE, build, run, spread
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core import decode, sampled_chain, vocabulary
from methods.core.acceptance import match, noise_for, speculative_sampling, truncated, typical
from methods.core.kv_cache import KVCache
from methods.core.sampled_chain import Law, SampledChain
from methods.core.target import Target
from methods.registry import METHODS

V, NEW, TEMPERATURE = 8, 4, 0.7
PROMPT = [3, 1, 4, 1, 5, 2, 6, 5, 3]
SEEDS = 400  # enough that every broken variant below is caught
SIGNIFICANCE = 1e-4
RARE = 5  # cells expected less often than this are counted as one


def model():
    config = LlamaConfig(**{**SHAPE, "vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1})
    return spread(LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double(), seed=2)


@lru_cache
def joint_law(temperature=TEMPERATURE, top_k=0, top_p=1.0):
    """Return p(x) p(y | x) p(z | x, y) p(w | x, y, z) of the tokens after the prompt, one dimension for each.

    It is restricted to the likeliest tokens by transformers' own warpers.
    """
    texts = [[*PROMPT, *first] for first in itertools.product(range(V), repeat=NEW - 1)]
    logits_BTV = model()(input_ids=torch.tensor(texts), use_cache=False).logits
    assert logits_BTV.dtype == torch.float64
    scores_RV = warped(logits_BTV[:, -NEW:].flatten(0, 1) / temperature, top_k, top_p)
    p_BTV = torch.softmax(scores_RV, dim=-1).unflatten(0, (-1, NEW))
    joint = torch.ones((), dtype=torch.float64)
    for place in range(NEW):
        following = p_BTV[:: V ** (NEW - 1 - place), place].view([V] * (place + 1))  # the tokens from here on do not matter
        joint = joint[..., None] * following
    return joint


def remember(stack):
    """Make decoder layers return stored results for the same inputs on the same cache rows."""
    compute, known = stack._run, {}

    def answered(vectors_ND, positions_N, places_N, mask, layers, reads):
        rows = slice(int(places_N[0]), int(places_N[0]) + len(vectors_ND))
        asked = (stack.cache.buffers[0][..., : rows.start, :], vectors_ND, positions_N, mask, reads)
        key = tuple(each.numpy().tobytes() if isinstance(each, torch.Tensor) else each for each in asked)
        if key not in known:
            out = compute(vectors_ND, positions_N, places_N, mask, layers, reads)
            known[key] = out, stack.cache.buffers[0][..., rows, :].clone()
        out, stack.cache.buffers[0][..., rows, :] = known[key]
        return out

    stack._run = answered


def p_values(name, rule=None, *, temperature=TEMPERATURE, options=None, **restricted):
    """Yield the p-values and numbers of cells of the texts that ``decode`` wrote for half and for all of the seeds.

    Drafts must have been both accepted and rejected.
    """
    target = Target(model(), capacity=32)
    drafter, accept = build(name, target, **(options or {}))
    reader = getattr(drafter, "stream", drafter)
    for stack in (target.stack, *([reader.stack] if hasattr(reader, "stack") else [])):
        remember(stack)
    counts, steps = torch.zeros([V] * NEW, dtype=torch.float64), []
    for seed in range(SEEDS):
        result = run(target, drafter, PROMPT, NEW, rule or accept, temperature=temperature, seed=seed, **restricted)
        counts[tuple(result.tokens)] += 1
        steps += result.steps
        written = seed + 1
        if written % (SEEDS // 2) == 0:
            if name != "vanilla":
                assert written / 10 < sum(step.accepted > 0 for step in steps) < len(steps) - written / 10
            yield chi_square(counts.flatten(), written * joint_law(temperature, **restricted).flatten())


def sampled(*asked, **more):
    """Return whether all texts together follow the target's law, in more than ten cells."""
    *_, (last, cells) = p_values(*asked, **more)
    assert cells > 10
    return last > SIGNIFICANCE


def caught(*asked, **more):
    """Return whether a difference from the target's law shows, stopping as soon as it does."""
    return any(p < SIGNIFICANCE for p, _ in p_values(*asked, **more))


def chi_square(counts, expected):
    """Return the p-value of the counts, and the number of cells that were compared."""
    assert expected.sum() == pytest.approx(counts.sum())
    if counts[expected == 0].any():
        return 0.0, len(expected)
    counts, expected = counts[expected > 0], expected[expected > 0]
    rare = expected < RARE
    counts, expected = (torch.cat([each[~rare], each[rare].sum()[None]][: 1 + rare.any()]) for each in (counts, expected))
    distance = ((counts - expected) ** 2 / expected).sum()
    p = torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), distance / 2)
    return float(p), len(expected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_samples_from_the_target(name):
    assert sampled(name)


@pytest.mark.parametrize(("name", "rule"), [("s4c", speculative_sampling), ("sps", match)])
def test_so_it_does_under_another_lossless_rule(name, rule):
    assert sampled(name, rule)


# Drafters whose q is not nearly certain: the broken variants below show only with these.
JUDGED = {"acceptance": "speculative_sampling", "nodes": 3, "depth": 3}
CHAINS = [("eagle3", {}), ("eagle3", {"vocabulary": 6}), ("s4c", {"prefix": "none", "vocabulary": 6})]


@pytest.fixture
def few_tokens(monkeypatch):
    """Cut q to three tokens, and allow draft vocabularies of fewer than a tree needs."""
    monkeypatch.setattr(sampled_chain, "KEPT", 3)
    monkeypatch.setattr(vocabulary, "MAX_WIDTH", 4)


@pytest.mark.parametrize(("name", "options"), CHAINS)
def test_chains_drawn_from_q_are_accepted_as_the_target_samples(name, options, few_tokens):
    assert sampled(name, options=JUDGED | options)


@pytest.mark.parametrize(("name", "options"), [("sps", {}), ("eagle3", JUDGED)])
def test_drafts_that_were_not_drawn_from_their_q_are_caught(name, options, monkeypatch):
    monkeypatch.setattr(sampled_chain, "exponential", lambda rows, vocabulary, rng: torch.ones(rows, vocabulary))
    assert caught(name, options=options)


@pytest.mark.parametrize("name", ["vanilla", "s4c"])
def test_a_first_token_that_is_always_greedy_is_caught(name, monkeypatch):
    monkeypatch.setattr(decode, "match", lambda tree, logits_NV, temperature, noise: match(tree, logits_NV, 0.0, None))
    assert caught(name)


@pytest.mark.parametrize("name", ["vanilla", "s4c"])
def test_an_rng_that_starts_again_every_round_is_caught(name, monkeypatch):
    monkeypatch.setattr(
        decode, "noise_for", lambda tree, vocabulary, sampling, rng: noise_for(tree, vocabulary, sampling, rng.manual_seed(sampling.seed))
    )
    assert caught(name)


def test_a_cache_that_keeps_other_rows_than_the_accepted_is_caught(monkeypatch):
    commit = KVCache.commit
    monkeypatch.setattr(KVCache, "commit", lambda cache, path_P, length: commit(cache, torch.arange(len(path_P)), length))
    assert caught("eagle")


def test_the_typical_rule_is_caught():
    assert caught("s4c", typical)


RESTRICTED = {"top_k": 4, "top_p": 0.8}


@pytest.mark.parametrize(
    ("name", "rule"),
    [("vanilla", None), ("eagle2", match), ("sps", speculative_sampling)],
)
def test_the_loop_samples_from_the_restricted_target(name, rule):
    assert sampled(name, rule, temperature=1.0, **RESTRICTED)


def top_p_first(logits_NV, temperature, top_k, top_p):
    """The other order: the share is then one of all tokens' probability, and more of them stay."""
    return truncated(truncated(logits_NV, temperature, 0, top_p), temperature, top_k, 1.0)


def one_too_many(logits_NV, temperature, top_k, top_p):
    return truncated(logits_NV, temperature, top_k + 1, top_p)


def below_the_share(logits_NV, temperature, top_k, top_p):
    """Leaves out the token with which the share is reached."""
    least = truncated(logits_NV, temperature, top_k, top_p)
    last = torch.where(least.isinf(), torch.inf, least).argmin(dim=-1, keepdim=True)
    return least.scatter(-1, last, torch.where(least.isfinite().sum(dim=-1, keepdim=True) > 1, -torch.inf, least.gather(-1, last)))


@pytest.mark.parametrize(
    ("broken", "restricted"),
    [
        (one_too_many, {"top_k": 4}),
        (below_the_share, {"top_p": 0.8}),
        (top_p_first, RESTRICTED),
    ],
)
def test_a_target_restricted_otherwise_is_caught(broken, restricted, monkeypatch):
    monkeypatch.setattr(decode, "truncated", broken)
    assert caught("vanilla", temperature=1.0, **restricted)


def test_a_q_wider_than_the_one_drawn_from_is_caught(monkeypatch):
    """The draft is drawn from the restricted distribution, and the whole one returned with it."""
    grow = SampledChain.grow

    def wider(chain, root, logits_WV, state, expand, draws):
        tree = grow(chain, root, logits_WV, state, expand, draws)
        return tree._replace(q=grow(chain, root, logits_WV, state, expand, draws._replace(law=Law(draws.law.temperature))).q)

    monkeypatch.setattr(SampledChain, "grow", wider)
    assert caught("sps", temperature=1.0, top_k=2)
