"""Arms: their names parsed, and repetitions of an A/A test."""

import pytest

from methods.core.errors import UserError
from specbench.config.arm import Arm


def test_name_of_an_arm_is_parsed_into_method_and_options():
    plain, variant = Arm.parse("s4c"), Arm.parse("s4c:nodes=8,tree=fresh")
    assert (plain.name, plain.method, plain.options, plain.variant) == ("s4c", "s4c", {}, "")
    assert (variant.name, variant.method, variant.variant) == ("s4c:nodes=8,tree=fresh", "s4c", " nodes=8,tree=fresh")
    assert variant.options == {"nodes": "8", "tree": "fresh"}


def test_repetition_has_its_own_name_and_the_same_options():
    arm = Arm.parse("s4c:nodes=8")
    assert arm.again() == Arm("s4c:nodes=8#2", "s4c", {"nodes": "8"}, repeat_of="s4c:nodes=8")
    assert arm.again().variant == arm.variant


def test_option_given_twice_is_refused():
    with pytest.raises(UserError, match="arm 's4c:nodes=4,nodes=8' gives its option 'nodes' twice"):
        Arm.parse("s4c:nodes=4,nodes=8")
