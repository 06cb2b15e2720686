"""What the command line offers is what the toolchain can do."""

from __future__ import annotations

import pytest

from calib.given import DEVICES, PACKAGED, SHORT_NAMES, device_of
from calib.recipes import methods, recipe
from calib.scheme import parse
from runtime.backends import BACKENDS
from runtime.errors import IntvitError
from toolchain.lowering import LOWERINGS
from toolchain.targets import choices
from toolchain.targets.choices import TensorRtOptions, require_carried


def test_every_target_has_a_dialect_and_a_backend() -> None:
    assert tuple(LOWERINGS) == choices.TARGETS
    assert set(choices.TARGETS) == set(BACKENDS)
    assert {choices.DEFAULT_TARGET, *choices.INTEGER_ONLY} <= set(choices.TARGETS)


def test_a_bundle_without_the_default_target_wants_its_backend_named() -> None:
    assert choices.backend_option(["openvino", "ort"]) == choices.backend_option([]) == ""
    assert choices.backend_option(["openvino"]) == " --backend openvino"


def test_every_value_of_an_option_is_taken() -> None:
    for part in choices.option_choices().split(", "):
        name, values = part.split("=")
        for value in values.split("|"):
            assert getattr(choices.TensorRtOptions.parse({name: value}), name) == value


def test_every_method_and_device_that_help_names_exists() -> None:
    assert [recipe(name).method for name in methods()] == methods()
    assert device_of("cpu") == "cpu" and device_of("auto") in DEVICES[1:]
    assert not set(PACKAGED) & set(SHORT_NAMES)


@pytest.mark.parametrize(
    ("bits", "option", "why"),
    [
        ("w4a16", "quantizers=fp8", "stay float"),
        ("w4a4", "quantizers=fp8", "fewer than 8 bits"),
        ("w8a8+res8", "quantizers=fp8", "residual stream"),
        ("w4a16", "kernels=on", "stay float"),
    ],
)
def test_an_option_that_a_scheme_has_no_use_for_is_refused_before_any_work(bits: str, option: str, why: str) -> None:
    options = TensorRtOptions.parse(dict([option.split("=")]))
    with pytest.raises(IntvitError) as refused:
        require_carried(parse(bits), ["tensorrt"], options)
    assert why in refused.value.why and option in refused.value.where
    require_carried(parse("w4a8+attn8"), ["tensorrt"], options)
    require_carried(parse(bits), ["tensorrt"], TensorRtOptions())
