"""The small draft model as a drafter: its greedy text, its cache, its q, and its tokenizer."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.sampling import warped
from helpers.small_models import (
    CPU,
    FAMILIES,
    PROMPT,
    SHAPE,
    Beside,
    Oracle,
    V,
    begun,
    dense,
    draft_model,
    greedy_text,
    run,
    small_model,
    small_target,
    spread,
    taken,
    told,
)
from helpers.tiny_target import write_suite, write_target
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core import sampled_chain
from methods.core.acceptance import Sampling, match, speculative_sampling
from methods.core.errors import UserError
from methods.core.tree import DraftTree
from methods.draft_model import DraftModel
from methods.registry import resolve
from specbench import targets
from specbench.config.options import RunConfig
from specbench.measure.runner import LocalExecutor
from specbench.measure.runner import run as measure
from specbench.measure.session import prepare
from specbench.store.manifest import RunManifest
from specbench.store.records import read
from specbench.targets import checkpoint, drafters
from specbench.util.terminal import Console

NODES = 4


class Noting:
    """A drafter that calls ``look`` with the text and its tree in each step."""

    reads = ()

    def __init__(self, drafter, look):
        self.drafter, self.look = drafter, look
        self.begin, self.observe = drafter.begin, drafter.observe

    def draft(self, tokens):
        tree = self.drafter.draft(tokens)
        self.look(tokens, tree)
        return tree


def beside(drafter, look):
    return Beside(Oracle(greedy_text(), (2, 0, 4, 1, 3)), [drafter], look)


def sized(vocabulary):
    """Return a draft model with a vocabulary of this size."""
    config = LlamaConfig(**{**SHAPE, "vocab_size": vocabulary, "num_hidden_layers": 1})
    return spread(LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double(), seed=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_its_own_greedy_text(family):
    model, target, texts = draft_model(small_model(family).config), small_target(family), []

    def check(tokens, tree):
        text = model.generate(torch.tensor([tokens]), do_sample=False, max_new_tokens=NODES)[0].tolist()
        assert told(tree) == (text[len(tokens) - 1 :], list(range(-1, NODES)))
        assert tree.q is None
        texts.append(tokens)

    run(target, Noting(DraftModel(model, NODES, target), check), PROMPT, 30)
    assert 8 < len(texts) < 29, "drafts were both accepted and rejected"


@pytest.mark.parametrize("how", [Noting, beside])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_its_cache_holds_what_is_committed_and_nothing_else(noise, how):
    """Without noise the draft model is the target: all drafts are accepted, including the last, which it never read."""
    model, target = draft_model(small_model().config, noise), small_target()
    lived = DraftModel(model, NODES, target)

    def check(tokens, tree):
        fresh = begun(DraftModel(model, NODES, target), target, list(tokens))
        fresh.draft(tokens)
        assert int(lived.cache.length) == int(fresh.cache.length) == len(tokens)
        torch.testing.assert_close(*(each.cache.buffers[0][..., : len(tokens), :] for each in (lived, fresh)))

    result = run(target, how(lived, check), PROMPT, 30)
    assert (noise == 0.0 and how is Noting) == all(step.accepted == NODES for step in result.steps)


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_q_is_what_each_draft_was_drawn_from(temperature):
    model, target, drawn = draft_model(small_model().config), small_target(), []

    def check(tokens, tree):
        drafts = told(tree)[0][1:]
        logits_TV = model(input_ids=torch.tensor([[*tokens, *drafts]]), use_cache=False).logits[0]
        expected_NV = torch.softmax(logits_TV[len(tokens) - 1 : -1] / temperature, dim=-1)
        torch.testing.assert_close(dense(tree.q)[1:], expected_NV, rtol=1e-4, atol=1e-6)  # transformers' norms are in fp32
        drawn.append(drafts)

    for seed in (1, 2, 1):
        run(target, Noting(DraftModel(model, NODES, target), check), PROMPT, 12, speculative_sampling, temperature=temperature, seed=seed)
        drawn.append(None)
    first, second, again = "".join(map(str, drawn)).split("None")[:3]
    assert first == again != second


def test_q_is_cut_to_its_likeliest_tokens(monkeypatch):
    """What is left is renormalised, and restricted as the target's p is."""
    monkeypatch.setattr(sampled_chain, "KEPT", 6)
    model, target, seen = draft_model(small_model().config), small_target(), []

    def check(tokens, tree):
        drafts = told(tree)[0][1:]
        logits_TV = model(input_ids=torch.tensor([[*tokens, *drafts]]), use_cache=False).logits[0, len(tokens) - 1 : -1]
        best = logits_TV.topk(6)
        law_T6 = torch.softmax(warped(best.values, 0, 0.9), dim=-1)
        torch.testing.assert_close(dense(tree.q)[1:], torch.zeros(NODES, V).double().scatter(1, best.indices, law_T6), rtol=1e-4, atol=1e-6)
        seen.append((tree.q.q_NK[1:] > 0).sum(dim=-1).tolist())

    run(target, Noting(DraftModel(model, NODES, target), check), PROMPT, 12, speculative_sampling, temperature=1.0, top_p=0.9)
    assert len({count for counts in seen for count in counts}) > 1


def test_drafts_from_the_target_itself_are_all_accepted_at_any_temperature():
    target = small_target()
    for temperature, accept in ((0.0, match), (0.9, speculative_sampling)):
        drafter = DraftModel(small_model(), NODES, target)
        steps = run(target, drafter, PROMPT, 41, accept, temperature=temperature, seed=3).steps
        assert [step.accepted for step in steps] == [NODES] * 8


@pytest.mark.parametrize("vocabulary", [40, 90])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_ids_both_have_are_drafted(vocabulary, temperature):
    """A smaller vocabulary meets ids in the text that it lacks; a larger one must not draft what the target cannot read."""
    model, target, drafted = sized(vocabulary), small_target(), set()

    def check(tokens, tree):
        drafted.update(told(tree)[0][1:])
        if temperature:
            assert tree.q.q_NK.shape == (1 + NODES, min(vocabulary, 64))
            assert tree.q.tokens_NK.max() < vocabulary
            torch.testing.assert_close(tree.q.q_NK[1:].sum(dim=-1), torch.ones(NODES, dtype=torch.float64))

    result = run(target, Noting(DraftModel(model, NODES, target), check), PROMPT, 40, speculative_sampling, temperature=temperature)
    assert max(drafted) < min(vocabulary, 64)
    assert len(drafted) > 10
    if not temperature:
        assert result.tokens == greedy_text()[len(PROMPT) :][:40]
        assert max(result.tokens) >= 40


def test_a_draft_model_gone_nan_is_an_error_of_the_turn():
    for temperature in (0.0, 1.0):
        model, target = draft_model(small_model().config), small_target()
        model.lm_head.weight[3] = torch.nan
        with pytest.raises(FloatingPointError, match="the drafter's logits are NaN"):
            run(target, DraftModel(model, NODES, target), PROMPT, 4, speculative_sampling, temperature=temperature)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target") / "target")


def other(folder, place, **changes):
    """Write a draft model into ``place``: the target's tokenizer and one of its layers."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1} | changes))
    tensors = load_file(place / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "layers.1" not in name}, place / "model.safetensors", metadata={"format": "pt"})
    return place


def test_it_is_loaded_run_and_told_of(folder, tmp_path):
    draft, suite = other(folder, tmp_path / "draft"), write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    options = RunConfig(["sps:nodes=2"], str(folder), suite_file=suite, max_new_tokens=8, dtype="fp32", device="cpu")
    with pytest.raises(UserError, match=r"^sps drafts with a small model .*give one: --drafter sps=FOLDER or sps=HUB_ID$"):
        prepare(options)
    measure(LocalExecutor(prepare(replace(options, drafters={"sps": draft}))), tmp_path / "run", Console())
    facts, (records, *_) = RunManifest.read(tmp_path / "run").arms["sps:nodes=2"], read(tmp_path / "run")
    assert (facts.drafter, facts.acceptance, facts.config) == (str(draft), "speculative_sampling", {"nodes": 2})
    assert facts.weights_sha256 == checkpoint.sha256(draft)
    assert {record.status for record in records} == {"ok"}
    assert len({tuple(record.output_ids) for record in records}) == 1


def refusal(folder, draft):
    target = targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa", drafter_files={"sps": draft})
    with pytest.raises(UserError) as caught:
        target.drafter_for(resolve("sps", {}, "cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_tokenizer_is_refused_in_one_line(folder, tmp_path):
    draft = other(folder, tmp_path / "draft")
    facts = json.loads((draft / "tokenizer.json").read_text())
    vocabulary = facts["model"]["vocab"]
    vocabulary["a"], vocabulary["b"], vocabulary["c"] = vocabulary["b"], vocabulary["c"], vocabulary["a"]
    (draft / "tokenizer.json").write_text(json.dumps(facts))
    message = refusal(folder, draft)
    assert "has another tokenizer than" in message
    assert "of 259 ids 3 differ, the first is" in message


def test_what_is_no_model_is_refused(folder, tmp_path):
    assert "draft model 'nowhere' is neither a folder here nor a hub id" in refusal(folder, "nowhere")
    assert "cannot be loaded" in refusal(folder, other(folder, tmp_path / "draft", intermediate_size=7))
    assert drafters.next_step("sps") == "give one: --drafter sps=FOLDER or sps=HUB_ID"


def test_random_numbers_are_its_own_and_drawn_only_where_drafts_are():
    """Acceptance would be biased if it used the random numbers that drafts are drawn with."""
    target = small_target()
    drafter = begun(DraftModel(small_model(), NODES, target), target, PROMPT)
    first = taken(DraftTree.chain(PROMPT[-2:-1], CPU), torch.zeros(1, V), 0, PROMPT[-1])
    before = drafter.chain._rng.get_state()
    drafter.draft(PROMPT)
    assert torch.equal(drafter.chain._rng.get_state(), before)
    seeds = set()
    for seed in (5, 6):
        drafter.begin(PROMPT[:-1], first, None, Sampling(1, temperature=1.0, seed=seed))
        seeds |= {seed, drafter.chain._rng.initial_seed()}
    assert len(seeds) == 4
    before = drafter.chain._rng.get_state()
    drafter.draft(PROMPT)
    assert not torch.equal(drafter.chain._rng.get_state(), before)
