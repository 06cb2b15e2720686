"""The rules as a whole: every one has a planted fault, a stable name and something to say."""

from __future__ import annotations

import re

import pytest

from tests.toolchain.nets import from_text
from tests.toolchain.rules import (
    test_bias,
    test_integers,
    test_kernels,
    test_operators,
    test_opsets,
    test_scales,
    test_structure,
    test_zero_points,
)
from tests.toolchain.rules.planted import GEMM, GOOD, WEIGHT, WEIGHT_ONLY
from toolchain.rules import RULES, Rule, findings
from toolchain.targets.choices import TARGETS

FAMILIES = (
    test_integers,
    test_scales,
    test_bias,
    test_operators,
    test_opsets,
    test_kernels,
    test_structure,
    test_zero_points,
)


def test_every_rule_has_a_planted_fault_on_every_target_it_names() -> None:
    planted = {
        (case.rule, target)
        for family in FAMILIES
        for case in family.CASES
        for target in case.targets or next(rule for rule in RULES if rule.id == case.rule).verdicts
    }
    assert planted == {(rule.id, target) for rule in RULES for target in rule.verdicts}


def test_names_are_unique() -> None:
    names = [rule.id for rule in RULES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_says_what_why_and_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.id)
    assert rule.title
    assert rule.next
    assert rule.verdicts
    assert set(rule.verdicts) <= set(TARGETS)
    for verdict in rule.verdicts.values():
        assert verdict.severity in ("error", "warning")
        assert verdict.why


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", [GOOD, GEMM, WEIGHT_ONLY], ids=["matmul", "gemm", "weight-only"])
def test_the_layers_without_a_fault_are_clean(text: str, target: str) -> None:
    assert findings(from_text(text), target) == []


def test_errors_come_before_warnings() -> None:
    text = GOOD.replace("int8 z = {0}", "int8 z = {3}").replace(WEIGHT, WEIGHT.replace("int8", "int4"))
    found = findings(from_text(text), "tensorrt")
    assert [(finding.rule, finding.severity) for finding in found] == [
        ("zero-point", "error"),
        ("zero-point", "error"),
        ("int4-activations", "warning"),
    ]
