"""The recipe grammar: read, printed back the same, and refused with reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calib.errors import IntvitError
from calib.scheme import COMMON, GROUPS, Scheme, parse, require_buildable
from tests.calib.networks import complete

PLAIN = st.builds(
    Scheme,
    st.integers(2, 8),
    st.one_of(st.integers(2, 8), st.just(16)),
    st.sampled_from([None, 8]),
    st.sampled_from([None, *GROUPS]),
    st.booleans(),
    residual_bits=st.sampled_from([None, 8]),
)
SCHEMES = st.builds(lambda scheme, uniform: replace(scheme, uniform=uniform and scheme.widens), PLAIN, st.booleans())


def test_integer_only_implies_integer_attention_and_prints_without_it() -> None:
    assert parse("w8a8+int") == parse("w8a8+attn8+int") == Scheme(8, 8, 8, None, True)
    assert str(parse("w8a8+attn8+int")) == "w8a8+int"


@given(SCHEMES)
def test_printed_and_read_back(scheme: Scheme) -> None:
    assert parse(str(scheme)) == scheme


@given(SCHEMES, st.randoms(use_true_random=False))
def test_case_space_and_order_of_options_do_not_matter(scheme: Scheme, random) -> None:
    base, *options = str(scheme).split("+")
    random.shuffle(options)
    assert parse(f"  {'+'.join([base, *options]).upper()} ") == scheme


@pytest.mark.parametrize("text", COMMON)
def test_common_schemes_print_as_written(text: str) -> None:
    assert str(parse(text)) == text


def test_widths_mean_what_they_say() -> None:
    scheme = parse("w4a16+attn8+g64+int")
    assert scheme == Scheme(4, 16, 8, 64, True)
    assert parse("w4a8+res8+attn8") == parse("w4a8+attn8+res8") == Scheme(4, 8, 8, residual_bits=8)
    assert scheme.float_activations
    assert not parse("w4a8").float_activations


def test_single_layers_may_be_wider_where_integers_are_few_unless_told() -> None:
    assert all(parse(text).widens for text in ("w4a4", "w4a8", "w3a8+attn8", "w8a4"))
    assert not any(parse(text).widens for text in ("w8a8", "w4a16", "auto:5", "w4a4+uniform"))
    assert all(parse(text).turns for text in ("w4a4", "w4a16", "auto:5", "w8a8+res8"))
    assert not any(parse(text).turns for text in ("w8a8", "w8a16", "w8a8+attn8", "w4a4+uniform", "w4a8+res8+uniform"))
    assert parse("w4a8+uniform+res8") == Scheme(4, 8, residual_bits=8, uniform=True)
    assert str(parse("w4a8+uniform+res8")) == "w4a8+res8+uniform"


@pytest.mark.parametrize(
    ("text", "why", "near"),
    [
        ("w4a9", "activations take 2 to 8 bits, or 16 for float, not 9", "w4a4"),
        ("w9a8", "weights take 2 to 8 bits, not 9", "w8a8"),
        ("w1a8", "weights take 2 to 8 bits, not 1", "w4a8"),
        ("w8a1", "activations take 2 to 8 bits, or 16 for float, not 1", "w8a8"),
        ("w8a32", "activations take 2 to 8 bits, or 16 for float, not 32", "w8a16"),
        ("w8b8", "a scheme is w<weight bits>a<activation bits>", "w8a8"),
        ("int8", "a scheme is", "near matches: w8a8, "),
        ("4-bit", "a scheme is", "near matches: w4a8, "),
        ("w8", "a scheme is", "near matches: w8a8, "),
        ("", "a scheme is", "w8a8"),
        ("w8a8+attn4", "option +attn4; known: +attn8, +res8, +int, +uniform, +g16, +g32, +g64, +g128", "w8a8+attn8"),
        ("w8a8+res16", "unknown option +res16; known: ", "w8a8+res8"),
        ("w8a8+g65", "unknown option +g65", "w8a8"),
        ("w8a8+uniform", "+uniform says nothing here: no layer of w8a8 has other bits", "w8a8"),
        ("w4a16+uniform", "+uniform says nothing here", "w4a16"),
        ("auto:5+uniform", "a scheme is", "w8a8"),
        ("w8a8+", "unknown option +", "w8a8"),
        ("w4a16+g16+g64", "one group size only, not +g16 and +g64", "w4a16+g64"),
        ("w4a16+g64+g64", "one group size only, not +g64 and +g64", "w4a16+g64"),
        ("w-8a8", "a scheme is", "w8a8"),
        ("w8a8\n+attn8", "a scheme is", "w8a8+attn8"),
    ],
)
def test_bad_schemes_say_why_and_what_is_near(text: str, why: str, near: str) -> None:
    with pytest.raises(IntvitError, match="unknown scheme") as caught:
        parse(text)
    error = complete(caught.value)
    assert why in error.why
    assert error.next.startswith("near matches: ")
    assert near in error.next


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        scheme = parse(text)
    except IntvitError:
        return
    assert parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    "text",
    [
        *("w8a8", "w4a8", "w4a4", "w3a8", "w2a2", "w4a16", "w8a8+attn8", "w4a16+attn8", "w8a8+int", "w4a8+int"),
        *(f"w{bits}a16+g{group}" for bits, group in zip((2, 3, 4, 8), GROUPS, strict=True)),
        *("w4a16+attn8+g64", "w8a8+res8", "w4a4+attn8+res8", "w4a16+res8+g64"),
    ],
)
def test_these_schemes_can_be_built(text: str) -> None:
    require_buildable(parse(text))


@pytest.mark.parametrize(
    ("text", "named", "instead"),
    [
        ("w4a8+g64", "+g64", "w4a8: one scale for each output channel; or w4a16+g64: float activations"),
        ("w4a8+g64+int", "+g64", "w4a8+int: one scale for each output channel; or w4a16+g64: float activations"),
        ("w4a16+int", "+int", "w4a8+int"),
        ("w4a16+g64+int", "+int", "w4a8+int"),
        ("w4a4+attn8+g32", "+g32", "w4a4+attn8: one scale for each output channel; or w4a16+attn8+g32"),
        ("w8a8+res8+int", "+res8", "w8a8+int; or w8a8+attn8+res8: 8 bits a point, with float between them"),
    ],
)
def test_what_no_target_runs_is_refused_with_an_alternative(text: str, named: str, instead: str) -> None:
    with pytest.raises(IntvitError) as caught:
        require_buildable(parse(text))
    error = complete(caught.value)
    assert error.what.startswith(named + " cannot be built with ")
    assert error.next.startswith(f"build --bits {instead}")
    assert text in error.where


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_beside_integers_are_refused_for_want_of_a_kernel(bits: int) -> None:
    with pytest.raises(IntvitError, match=f"with {bits}-bit activations") as caught:
        require_buildable(Scheme(4, bits, group=64))
    assert "every 64 products would need an integer sum of their own" in caught.value.why
