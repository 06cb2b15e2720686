"""What the command line offers is what the toolchain can do."""

from __future__ import annotations

from calib.given import DEVICES, PACKAGED, SHORT_NAMES, device_of
from calib.recipes import methods, recipe
from runtime.backends import BACKENDS
from toolchain.lowering import LOWERINGS
from toolchain.targets import choices


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
