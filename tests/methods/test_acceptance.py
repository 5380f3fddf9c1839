"""At T > 0 a lossless rule's output follows the target's p: chi-square tests, with rules that must fail them.

Fixed seeds; a lossless rule must have a p-value above 0.001, a broken or lossy one below 0.000001.
"""

import pytest
import torch
from helpers.sampling import warped
from helpers.small_models import CPU, path_of, plant, taken

from methods.core.acceptance import RULES, Sampling, match, noise_for, probabilities, speculative_sampling, truncated, typical
from methods.core.errors import UserError
from methods.core.tree import PADDING, DraftTree, SparseRows, padded

V = 5
DRAWS = 2000
TEMPERATURE = 0.7
SAMPLING = Sampling(1, TEMPERATURE)
PASSES, FAILS = 1e-3, 1e-6


def random_logits():
    """Return the logits after the root and after each token, for a target whose logits depend on the last token only."""
    rng = torch.Generator().manual_seed(5)
    return torch.randn(V, generator=rng, dtype=torch.float64), torch.randn(V, V, generator=rng, dtype=torch.float64)


def fixed_tree(rng):
    """Return a tree of two guesses with two more after each."""
    return plant([0, 1, 4, 0, 2, 4, 3], (-1, 0, 0, 1, 1, 2, 2))


def drawn_tree(rng):
    """Return a tree of the same shape whose siblings are drawn from q, so that some are equal."""
    q_V = torch.softmax(torch.arange(V, dtype=torch.float64) * 0.4, dim=-1)
    tokens = torch.multinomial(q_V, 6, replacement=True, generator=rng).tolist()
    return plant([0, *tokens], (-1, 0, 0, 1, 1, 2, 2), q_V.expand(7, V))


def cut(q_V, kept):
    """Return q restricted to its likeliest tokens."""
    return torch.where(q_V < q_V.topk(kept).values[-1], 0.0, q_V)


def drawn_from_few(rng, stated=2):
    """Return such a tree whose drafts are drawn from the two likeliest tokens of q, which states those it ``stated``."""
    q_V = torch.softmax(torch.arange(V, dtype=torch.float64) * 0.4, dim=-1)
    tokens = torch.multinomial(cut(q_V, 2), 6, replacement=True, generator=rng).tolist()
    stated_V = cut(q_V, stated) / cut(q_V, stated).sum()
    return plant([0, *tokens], (-1, 0, 0, 1, 1, 2, 2), stated_V.expand(7, V), kept=stated)


def law_of(logits, temperature, top_k, top_p):
    """Return the distribution that transformers' own warpers leave."""
    return torch.softmax(warped(logits.view(-1, V) / temperature, top_k, top_p), dim=-1)


def p_value(rule, planter, temperature=TEMPERATURE, top_k=0, top_p=1.0, truncate=truncated, draws=DRAWS):
    """Return the p-value of the first two tokens' joint distribution against p(x) p(y | x).

    A second token that the step did not emit is drawn from p.
    """
    rng = torch.Generator().manual_seed(11)
    root_V, after_VV = random_logits()
    p_VV = law_of(after_VV, temperature, top_k, top_p)
    counts = torch.zeros(V, V, dtype=torch.float64)
    for _ in range(draws):
        tree = planter(rng)
        logits_NV = truncate(torch.cat([root_V[None], after_VV[tree.tokens_N[1:]]]), temperature, top_k, top_p)
        emitted = rule(tree, logits_NV, temperature, noise_for(tree, V, SAMPLING, rng)).read().tokens
        if len(emitted) == 1:
            emitted.append(int(torch.multinomial(p_VV[emitted[0]], 1, generator=rng)))
        counts[emitted[0], emitted[1]] += 1
    expected = draws * law_of(root_V, temperature, top_k, top_p).view(V, 1) * p_VV
    if counts[expected == 0].any():
        return 0.0
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), chi_square / 2))


@pytest.mark.parametrize("planter", [fixed_tree, drawn_tree, drawn_from_few])
@pytest.mark.parametrize("rule", [rule.apply for rule in RULES.values() if rule.lossless])
def test_a_lossless_rule_samples_from_the_target(rule, planter):
    assert p_value(rule, planter) > PASSES


@pytest.mark.parametrize(
    ("rule", "planter", "restricted"),
    [
        (match, fixed_tree, {"top_k": 3}),
        (speculative_sampling, drawn_tree, {"top_p": 0.8}),
        (speculative_sampling, drawn_tree, {"top_k": 3, "top_p": 0.8}),
    ],
)
def test_a_lossless_rule_samples_from_the_likeliest_tokens(rule, planter, restricted):
    assert p_value(rule, planter, 1.0, **restricted) > PASSES


def renormalised_at_the_draft(logits_NV, temperature, top_k, top_p):
    """Restricts what follows the root alone, as when only the first token of a step were sampled from fewer tokens."""
    return torch.cat([truncated(logits_NV[:1], temperature, top_k, top_p), logits_NV[1:]])


def at_another_temperature(logits_NV, temperature, top_k, top_p):
    return truncated(logits_NV, temperature * 3, top_k, top_p)


@pytest.mark.parametrize(("broken", "restricted"), [(renormalised_at_the_draft, {"top_k": 3}), (at_another_temperature, {"top_p": 0.8})])
def test_a_wrong_restriction_is_caught(broken, restricted):
    assert p_value(match, drawn_tree, 1.0, **restricted, truncate=broken, draws=DRAWS // 2) < FAILS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (1, 1.0), (20, 1.0), (400, 1.0), (0, 1e-9), (0, 0.5), (0, 0.999), (20, 0.95), (1, 0.1)]
)
def test_the_tokens_sampled_are_those_of_transformers_warpers(top_k, top_p, temperature, dtype):
    logits_NV = (torch.randn(60, 300, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    logits_NV[::7, 5] = logits_NV[::7, 9] = logits_NV[::7].amax(dim=-1)  # ties
    scores = warped(logits_NV.float() / temperature, top_k, top_p)
    ours = truncated(logits_NV.float(), temperature, top_k, top_p)
    assert torch.equal(ours.isinf(), scores.isinf())
    assert torch.equal(ours[ours.isfinite()], logits_NV.float()[ours.isfinite()])


@pytest.mark.parametrize(
    ("restricted", "said"),
    [({"top_k": -1}, "top_k is -1; choose 0 for all tokens")]
    + [({"top_p": p}, f"top_p is {p}; choose a share above 0") for p in (0.0, -0.5, 1.5, float("nan"))],
)
def test_restrictions_out_of_range_are_refused(restricted, said):
    with pytest.raises(UserError, match=said):
        Sampling(1, 1.0, **restricted)


def test_match_does_not_choose_between_equal_siblings():
    """Both siblings carry token 1. A rule that takes the one whose own guess is right would favour the guesses."""

    def twins(rng):
        return plant([0, 1, 1, 0, 2, 4, 3], (-1, 0, 0, 1, 1, 2, 2), torch.full((7, V), 1 / V))

    assert p_value(match, twins) > PASSES


def bonus_without_residual(tree, logits_NV, temperature, noise):
    last = path_of(speculative_sampling(tree, logits_NV, temperature, noise))[-1]
    p_V = probabilities(logits_NV[last], temperature)
    return taken(tree, logits_NV, last, int((p_V / noise.exponential_NV[0]).argmax()))


def every_sibling_against_p(tree, logits_NV, temperature, noise):
    """Accept with p after a rejected sibling, where the residual would be right."""
    for child in (1, 2):
        lone = plant([0, int(tree.tokens_N[child])], (-1, 0))._replace(q=SparseRows(*(each[:2] for each in tree.q)))
        its_own = noise._replace(uniform_N=noise.uniform_N[[0, child]], exponential_NV=noise.exponential_NV[[child, 0]])
        said = speculative_sampling(lone, logits_NV[[0, child]], temperature, its_own)
        if int(said.length) > 1:
            return taken(tree, logits_NV, child, int(said.emitted_P[-1]))
    return taken(tree, logits_NV, 0, int(said.emitted_P[-1]))


@pytest.mark.parametrize("broken", [bonus_without_residual, every_sibling_against_p])
def test_a_broken_rule_is_caught(broken):
    assert p_value(broken, drawn_tree) < FAILS


def test_a_q_that_was_not_the_one_drawn_from_is_caught():
    assert p_value(speculative_sampling, lambda rng: drawn_from_few(rng, stated=4)) < FAILS


def test_typical_acceptance_is_lossy_and_says_so():
    assert p_value(typical, fixed_tree, draws=DRAWS // 2) < FAILS
    assert not RULES["typical"].lossless


@pytest.mark.parametrize("rule", [match, speculative_sampling])
def test_the_temperature_counts(rule):
    """The same draws do not fit p at another temperature, so the tests above would see a wrong one."""

    def hotter(tree, logits_NV, temperature, noise):
        return rule(tree, logits_NV, temperature * 1.5, noise)

    assert p_value(hotter, drawn_tree, draws=DRAWS // 2) < FAILS


@pytest.mark.parametrize("rule", [rule.apply for rule in RULES.values()])
def test_greedy_takes_the_deepest_agreeing_path(rule):
    tree = plant([9, 1, 2, 3, 4, 0], (-1, 0, 0, 2, 2, 4))
    logits_NV = torch.zeros(6, V)
    for node, best in ((0, 2), (2, 4), (4, 3), (5, 1), (1, 0), (3, 0)):
        logits_NV[node, best] = 1.0
    accepted = rule(tree, logits_NV, 0.0, None)
    assert (path_of(accepted), accepted.read()) == ([0, 2, 4], ([2, 4, 3], 6, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-4, 1e-37, 1e-40, 5e-324])
def test_an_extreme_temperature_is_greedy(temperature, dtype):
    logits_NV = torch.tensor([[80.0, 90.0, -3.0], [-7.0, -9.0, -7.0]], dtype=dtype)
    assert probabilities(logits_NV, temperature).tolist() == [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]


def test_ordinary_temperatures_divide_the_logits():
    logits_NV = torch.randn(20, V, generator=torch.Generator().manual_seed(3), dtype=torch.float32) * 9
    assert torch.equal(probabilities(logits_NV, 1.0), torch.softmax(logits_NV, dim=-1))
    for temperature in (0.1, 0.7, 1.3):
        torch.testing.assert_close(
            probabilities(logits_NV, temperature), torch.softmax(logits_NV / temperature, dim=-1), rtol=2e-5, atol=1e-7
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [rule.apply for rule in RULES.values()])
def test_nan_logits_are_an_error(rule, temperature):
    logits_NV = torch.zeros(2, V)
    logits_NV[0, 3] = float("nan")
    tree = DraftTree.chain([0, 1], CPU)
    logits_NV = truncated(logits_NV, temperature, 2, 0.5)  # which must not hide them
    accepted = rule(tree, logits_NV, temperature, noise_for(tree, V, Sampling(8, temperature), torch.Generator()))
    with pytest.raises(FloatingPointError, match="the target's logits are NaN"):
        accepted.read()


def test_typical_takes_the_longest_plausible_path():
    """Nodes 4 to 7 descend from the implausible node 2, so they must not count although they are plausible themselves."""
    tree = plant([0, 1, 4, 2, 3, 3, 3, 3], (-1, 0, 0, 1, 2, 4, 5, 6))
    logits_NV = torch.full((8, V), -20.0)
    for node, best in enumerate((1, 2, 3, 4, 3, 3, 3, 0)):
        logits_NV[node, best] = 20.0
    accepted = typical(tree, logits_NV, 1.0, noise_for(tree, V, Sampling(8, 1.0), torch.Generator()))
    assert (path_of(accepted), accepted.read().tokens) == ([0, 1, 3], [1, 2, 4])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", [rule.apply for rule in RULES.values()])
def test_padding_is_never_accepted_nor_counted(rule, temperature):
    """A drafter's own padding is the child of its last token, the back end's that of the root; neither may be accepted."""
    tree = padded(DraftTree.chain([3, 1, PADDING, PADDING], CPU), 6)
    logits_NV = torch.full((6, V), -20.0)
    logits_NV[0, 1] = logits_NV[1, 4] = logits_NV[2:, V - 1] = 20.0  # V - 1 is where an index of -1 points
    accepted = rule(tree, logits_NV, temperature, noise_for(tree, V, Sampling(8, temperature), torch.Generator()))
    assert (path_of(accepted), accepted.read()) == ([0, 1], ([1, 4], 2, 1))


def test_padding_of_a_drawn_tree_is_not_accepted():
    tree = plant([3, PADDING], (-1, 0), torch.full((2, V), 1 / V))
    noise = noise_for(tree, V, SAMPLING, torch.Generator())
    assert path_of(speculative_sampling(tree, torch.zeros(2, V), 1.0, noise)) == [0]


@pytest.mark.parametrize("rule", [rule.apply for rule in RULES.values()])
def test_a_drafters_nan_is_its_own(rule):
    tree = DraftTree.chain([0, 1], CPU)._replace(faulty=torch.tensor(True))
    accepted = rule(tree, torch.zeros(2, V), 0.0, None)
    with pytest.raises(FloatingPointError, match="the drafter's logits are NaN"):
        accepted.read()
