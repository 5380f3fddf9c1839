"""The gate's rules at their thresholds and stated sample sizes, and every format of its result."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from specbench.analysis.stats import FEWEST
from specbench.gate import outputs, rules
from specbench.gate.rules import Check, GateResult, Outcome
from specbench.gate.snapshot import ArmNumbers, DepthAcceptance, Snapshot
from specbench.util.terminal import Console


def side(logs, noise=None, depths=(), mat=2.0):
    arm = ArmNumbers({}, mat, dict(depths), {f"q{index}": float(value) for index, value in enumerate(logs)})
    return Snapshot("here", "", {}, {}, {"medusa": arm}, {f"q{index}": str(index % 6) for index in range(len(logs))}, noise)


def simulated(seed, slowdown, repeats, noise=0.05):
    """Return the outcome for 48 questions whose turns' times scatter by ``noise``, independently for each arm and side."""
    rng = np.random.default_rng([seed, repeats])
    vanilla, method = (rng.normal(0, noise, (2, 48, repeats)).mean(axis=2) for _ in range(2))
    base, new = rng.normal(0.5, 0.2, 48) + vanilla - method - np.array([[0.0], [np.log1p(slowdown)]])
    return rules.check_speedup("medusa", side(new), side(base)).outcome


# The sample sizes the gate is stated for: at 5 % noise a turn, 48 questions. Eight repeats see a slowdown of 5 %, two one of 10 %.
# Without a slowdown, four and more repeats pass 99 times in 100; with two, one run in six stays inconclusive (of 200 simulated).
@pytest.mark.parametrize(("slowdown", "repeats", "caught"), [(0.05, 8, 0.9), (0.10, 2, 0.99)])
def test_a_slowdown_is_caught_at_the_stated_sample_sizes(slowdown, repeats, caught):
    found = [simulated(seed, slowdown, repeats) for seed in range(60)]
    assert found.count(Outcome.FAIL) / len(found) >= caught


@pytest.mark.parametrize(("repeats", "passed"), [(2, 0.7), (4, 0.95), (8, 0.98)])
def test_no_slowdown_is_never_caught_and_passes_at_the_stated_sample_sizes(repeats, passed):
    found = [simulated(seed, 0.0, repeats) for seed in range(60)]
    assert Outcome.FAIL not in found
    assert found.count(Outcome.PASS) / len(found) >= passed


@pytest.mark.parametrize("slowdown", [0.03, 0.05, 0.10])
def test_a_slowdown_beyond_the_threshold_hardly_ever_passes(slowdown):
    found = [simulated(seed, slowdown + 0.005, repeats=2) for seed in range(60)]
    assert found.count(Outcome.PASS) / len(found) <= 0.05


def test_the_speedup_rule_at_its_edges():
    flat, slow = np.zeros(48), np.full(48, -0.04)
    wide = np.tile(np.repeat([0.5, -0.5], 6), 4)
    judged = lambda new, base, noise=None: rules.check_speedup("medusa", side(new, noise), side(base)).outcome  # noqa: E731
    assert judged(slow, flat) is Outcome.FAIL
    assert judged(slow, flat, noise=0.021) is Outcome.PASS  # twice the noise is the threshold then
    for shift in (0.0, 0.02):  # the middle of the interval below the threshold, then above it
        likely = rules.check_speedup("medusa", side(np.tile(np.repeat([-0.11, 0.03], 6), 4) + shift), side(flat))
        assert likely.numbers["low"] < likely.numbers["threshold"] < likely.numbers["high"]
        assert (likely.outcome, "too few samples to exclude" in likely.evidence) == (Outcome.INCONCLUSIVE, True)
    assert judged(wide, flat) is Outcome.INCONCLUSIVE
    assert judged(wide + 1, flat) is Outcome.PASS  # wide, but all of it above
    assert judged(wide - 2, flat) is Outcome.FAIL  # wide, but all of it below
    assert judged(flat[:FEWEST], flat[:FEWEST]) is Outcome.PASS
    few = FEWEST - 1
    assert judged(flat[:few], flat[:few]) is Outcome.INCONCLUSIVE
    assert judged(slow[:few] * 10, flat[:few]) is Outcome.INCONCLUSIVE
    assert rules.check_speedup("medusa", side(flat), side(flat, noise=0.02)).numbers["threshold"] == pytest.approx(np.exp(-0.04))


def test_a_noisy_machine_passes_nothing_and_fails_slowdowns_beyond_the_ceiling():
    flat = np.zeros(48)
    for noise in (0.026, 0.3):
        found = rules.check_speedup("medusa", side(flat), side(flat, noise))
        assert (found.outcome, "the machine is too noisy" in found.evidence) == (Outcome.INCONCLUSIVE, True)
        assert found.numbers["threshold"] == pytest.approx(np.exp(-rules.CEILING))
        assert rules.check_speedup("medusa", side(flat - 0.051, noise), side(flat)).outcome is Outcome.FAIL
        assert rules.check_speedup("medusa", side(flat - 0.049, noise), side(flat)).outcome is Outcome.INCONCLUSIVE
    assert rules.check_speedup("medusa", side(flat), side(flat, noise=0.025)).outcome is Outcome.PASS


def test_the_mat_rule_at_its_edge():
    arms = [side([], mat=value).arms["medusa"] for value in (2.0, 1.961, 1.959)]
    assert [rules.check_mat("medusa", arm, arms[0]).outcome for arm in arms] == [Outcome.PASS, Outcome.PASS, Outcome.FAIL]


@pytest.mark.parametrize(
    ("new", "outcome"),
    [
        ({1: DepthAcceptance(900, 0.48), 2: DepthAcceptance(300, 0.5)}, Outcome.PASS),
        ({1: DepthAcceptance(900, 0.5), 2: DepthAcceptance(300, 0.47)}, Outcome.FAIL),
        ({1: DepthAcceptance(900, 0.5), 2: DepthAcceptance(100, 0.1)}, Outcome.PASS),  # too few steps to say
        ({1: DepthAcceptance(900, 0.5), 2: DepthAcceptance(99, 0.5)}, Outcome.INCONCLUSIVE),  # hardly ever that deep any more
        ({1: DepthAcceptance(900, 0.4), 2: DepthAcceptance(99, 0.5)}, Outcome.FAIL),
        ({1: DepthAcceptance(900, 0.5)}, Outcome.FAIL),  # never that deep any more
        ({1: DepthAcceptance(190, 0.5), 2: DepthAcceptance(90, 0.5)}, Outcome.INCONCLUSIVE),
    ],
)
def test_acceptance_is_judged_where_enough_steps_reach(new, outcome):
    base = {1: DepthAcceptance(1000, 0.5), 2: DepthAcceptance(300, 0.5), 3: DepthAcceptance(100, 0.9)}
    arms = [side([], depths=depths.items()).arms["medusa"] for depths in (new, base)]
    assert rules.check_acceptance("medusa", *arms).outcome is outcome


def test_the_depths_that_are_not_judged_are_named():
    base = {
        1: DepthAcceptance(1000, 0.5),
        2: DepthAcceptance(300, 0.5),
        3: DepthAcceptance(200, 0.5),
        4: DepthAcceptance(100, 0.9),
        5: DepthAcceptance(0, 0.0),
    }
    new = {1: DepthAcceptance(1000, 0.5), 2: DepthAcceptance(150, 0.5), 3: DepthAcceptance(50, 0.5)}
    arms = [side([], depths=depths.items()).arms["medusa"] for depths in (new, base)]
    assert rules.check_acceptance("medusa", *arms).evidence == (
        "depth 1 (reached in 200 steps): lowest ratio 1.000 at depth 1 (fails below 0.95); "
        "too few steps left to judge at depth 3; not judged: depths 2, 4"
    )


def test_the_terminal_shows_one_printable_line_per_check(capsys):
    checks = [Check("a\x1b[2J", Outcome.FAIL, "out\nof \x1b]0;owned\x07\r memory\u202e")]
    outputs.show(GateResult("new\n", "base\x1b", checks, ["odd\nname\x9b"]), Console())
    assert capsys.readouterr().out.splitlines() == [
        "fail           a\ufffd[2J: out of \ufffd]0;owned\ufffd memory\ufffd",
        "warning: odd name\ufffd",
        "fail: new against base\ufffd",
    ]


def test_every_output_format_agrees_and_escapes_names():
    checks = [
        Check("good", Outcome.PASS, "fine", {"ratio": 1.0}),
        Check("b|ad<script>", Outcome.FAIL, "q\x00[x](http://y) `z` & *w*", {"ratio": float("nan")}),
        Check("thin", Outcome.INCONCLUSIVE, "few"),
        Check("sampled", Outcome.NOT_APPLICABLE, "hot"),
    ]
    result = GateResult("new", "base", checks, ["Versions differ: <b>."])
    suite = ET.fromstring(outputs.junit(result).encode())
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "0", "2"]
    failure = suite.find("testcase[2]/failure")
    assert failure is not None
    assert failure.get("message") == "q\ufffd[x](http://y) `z` & *w*"
    assert [each.get("message") for each in suite.iter("skipped")] == ["inconclusive: few", "not applicable: hot"]
    text = outputs.markdown(result)
    assert text.startswith("## specbench check: fail\n")
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {5}
    assert [row[1].strip() for row in rows[2:]] == [str(check.outcome) for check in checks]
    assert not any(markup in text for markup in ("<", "](", " `", " *w"))
    facts = outputs.to_json(result)
    assert (facts["schema"], facts["outcome"], facts["exit_code"]) == (1, "fail", 1)
    assert [each["numbers"] for each in facts["checks"]][:2] == [{"ratio": 1.0}, {"ratio": None}]
    codes = [replace(result, checks=chosen).exit_code for chosen in (checks[:1], checks[3:], checks[2:], checks)]
    assert codes == [0, 0, 3, 1]
