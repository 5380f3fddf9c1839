"""Token Recycling: its table of successors, its tree, and the state that a session keeps."""

from dataclasses import asdict, replace

import pytest
import torch
from helpers.scripted_records import turn, write_run
from helpers.small_models import CPU, OTHER_PROMPT, PROMPT, Beside, Oracle, build, greedy_text, run, small_target
from helpers.tiny_target import write_suite, write_target

from methods.core.policies import static_tree
from methods.core.recycling import SuccessorTable
from methods.core.tree import PADDING
from methods.registry import resolve
from methods.token_recycling import SUCCESSORS, TEMPLATE
from specbench.config.options import RunConfig
from specbench.measure.session import prepare
from specbench.report import findings
from specbench.report.run import load_runs
from specbench.store.describe import arm_label
from specbench.store.manifest import RunManifest

RIGHTS = (2, 0, 4, 1, 3)


def test_the_tree_is_the_published_one():
    """The published repository describes the tree level by level."""
    assert [sum(len(choice) == depth for choice in TEMPLATE) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
    assert len(set(TEMPLATE)) == 80
    assert {(7, 0), (3, 1), (0, 7, 0), (5, 0, 0), (3, 0, 0, 0), (1, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)} <= set(TEMPLATE)
    assert not {(4, 1), (1, 4), (6, 0, 0), (4, 0, 0, 0), (2, 0, 0, 0, 0)} & set(TEMPLATE)
    assert static_tree(TEMPLATE).width == SUCCESSORS


@pytest.mark.parametrize("nodes", range(1, 81))
def test_every_smaller_tree_is_one(nodes):
    """A draft whose parent is missing would be refused."""
    assert static_tree(TEMPLATE[:nodes]).size == 1 + nodes


def test_smaller_trees_keep_the_drafts_of_the_least_ranks():
    assert set(TEMPLATE[:7]) == {(0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0)}
    assert set(TEMPLATE[7:15]) == {(3,), (0, 2), (1, 1), (2, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0, 0)}


class Reference:
    """The published loop in plain Python: a dictionary token -> its successors, and the tree breadth first."""

    reads = ()

    def __init__(self, nodes, forgets):
        self.choices, self.forgets, self.after = sorted(TEMPLATE[:nodes], key=lambda c: (len(c), c)), forgets, {}

    def learn(self, tokens, logits_NV):
        for token, logits_V in zip(tokens, logits_NV.tolist(), strict=True):
            if token != PADDING:
                self.after[token] = sorted(range(len(logits_V)), key=lambda v: -logits_V[v])[:SUCCESSORS]

    def begin(self, prompt, first, scores, sampling):
        if self.forgets:
            self.after = {}
        self.learn(prompt[-1:], scores.logits_NV)

    def observe(self, tree, accepted, scores):
        self.learn(tree.tokens_N.tolist(), scores.logits_NV)

    def draft(self, tokens):
        found: dict[tuple[int, ...], int] = {(): tokens[-1]}
        for choice in self.choices:
            found[choice] = self.after.get(found[choice[:-1]], [PADDING] * SUCCESSORS)[choice[-1]]
        return list(found.values())


@pytest.mark.parametrize("scope", ["turn", "session"])
@pytest.mark.parametrize("nodes", [4, 15, 80])
def test_every_draft_is_the_references(nodes, scope):
    """Drafts equal the reference's after its own trees and an oracle's, in one conversation after another."""
    target, compared = small_target(), []
    drafter, _ = build("recycling", target, nodes=nodes, scope=scope)
    reference = Reference(nodes, forgets=scope == "turn")

    def compare(tokens, tree, expected):
        assert tree.tokens_N.tolist() == expected
        compared.append(sum(token != PADDING for token in expected))

    for leading, prompt in ((drafter, PROMPT), (Oracle(greedy_text(), RIGHTS), PROMPT), (drafter, OTHER_PROMPT)):
        result = run(target, Beside(leading, [drafter, reference], compare), prompt, 30)
        assert result.tokens == greedy_text(prompt=tuple(prompt))[len(prompt) :][:30]
    assert len(set(compared)) > 2, "trees fill up as the table does"
    assert max(compared) == nodes + 1


@pytest.mark.parametrize("nodes", [15, 80])
def test_what_was_rejected_is_drafted_again_and_taken(nodes):
    target = small_target()
    drafter, accept = build("recycling", target, nodes=nodes)
    result = run(target, drafter, PROMPT, 60, accept)
    assert result.tokens == greedy_text()[len(PROMPT) :][:60]
    assert sum(step.accepted for step in result.steps) > 5
    assert result.steps[0].tree_size == 1, "nothing is known yet of what follows the first token"


@pytest.mark.parametrize(("scope", "kept"), [("turn", False), ("session", True)])
def test_a_session_goes_on_with_what_it_learned_and_a_turn_does_not(scope, kept):
    target, first = small_target(), []
    lived, _ = build("recycling", target, scope=scope)
    fresh, _ = build("recycling", target, scope=scope)
    run(target, lived, PROMPT, 40)

    def note(tokens, *trees):
        first.append([tree.tokens_N.tolist() for tree in trees])

    run(target, Beside(Oracle(greedy_text(), RIGHTS), [lived, fresh], note), PROMPT, 40)
    assert (first[0][0] != first[0][1]) == kept
    drafted = [[sum(token != PADDING for token in tokens) for tokens in each] for each in first]
    assert all(mine > others for mine, others in drafted[:3]) == kept


def test_learning_twice_is_learning_once():
    rng = torch.Generator().manual_seed(0)
    tokens_N, logits_NV = torch.tensor([3, 5, 3, PADDING, 5, 2]), torch.randn(6, 9, generator=rng)
    once, twice = SuccessorTable(9, 4, CPU), SuccessorTable(9, 4, CPU)
    for table, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            table.learn(tokens_N, logits_NV)
    every = torch.arange(-1, 9)
    assert torch.equal(once.after(every), twice.after(every))
    assert torch.equal(once.after(torch.tensor([3])), logits_NV[2:3].topk(4).indices), "the newest sighting"
    assert set(once.after(torch.tensor([PADDING, 0])).flatten().tolist()) == {PADDING}


def test_kept_state_is_declared_in_tables_and_caveats(tmp_path):
    kept, plain = resolve("recycling", {"scope": "session"}, "cpu"), resolve("recycling", {}, "cpu")
    assert (kept.state, plain.state, resolve("s4c", {}, "cpu").state) == ("its table of successors", "", "")
    rows = [turn(name, q, [0]) for q in "ab" for name in ("vanilla", "recycling")]
    for arm in (kept, plain):
        run_dir = write_run(tmp_path / arm.config.scope, rows, methods={"vanilla": "Vanilla", "recycling": "Token Recycling"})
        manifest = RunManifest.read(run_dir)
        facts = replace(manifest.arms["recycling"], config=asdict(arm.config), state=arm.state)
        replace(manifest, arms=manifest.arms | {"recycling": facts}).write(run_dir)
        (found,) = load_runs([run_dir])
        told = [line for line in findings.caveats(found) if "its table of successors" in line]
        assert bool(told) == bool(arm.state)
        assert arm_label(facts) == "Token Recycling" + " (keeps state)" * bool(arm.state)
        if told:
            assert "order of the questions" in told[0]
            assert "resumed or sharded run starts it anew" in told[0]


def test_a_run_records_what_an_arm_keeps(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    arms = ["recycling", "recycling:scope=session"]
    options = RunConfig(arms, str(write_target(tmp_path / "t")), suite_file=suite, max_new_tokens=4, dtype="fp32", device="cpu")
    facts = prepare(options).manifest.arms
    assert [facts[arm].state for arm in ("vanilla", *arms)] == ["", "", "its table of successors"]
