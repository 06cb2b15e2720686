"""The IPluginV3 plugins against a recording TensorRT and launcher: logic, no TensorRT. Names are held to 10.3's."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.errors import IntvitError
from runtime.kernels import plugin_v3
from runtime.kernels.tiles import TILES
from tests.conftest import SHARED
from tests.runtime.kernels import fake_tensorrt
from tests.runtime.kernels.fake_tensorrt import PluginField, Registry

NAMES = SHARED / "data/tensorrt-api/10.3.txt"


class Recorder:
    """A launcher that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def linear(self, *arguments: Any, **options: Any) -> None:
        self.calls.append((arguments, options))


def fields(bits: int = 4, gelu: int = 1, affine: int | None = None) -> list[PluginField]:
    """Of linear_f16; with ``affine`` of linear_i8."""
    values = {"bits": bits, "gelu": gelu} | ({} if affine is None else {"affine": affine})
    return [PluginField(name, np.array([value]), "int32") for name, value in values.items()]


def creators(registry: Registry | None = None) -> list[Any]:
    return plugin_v3.register(Path("nowhere"), trt=fake_tensorrt.module(registry))


def test_both_creators_are_registered() -> None:
    registry = Registry()
    made = creators(registry)
    assert [(creator.name, space) for creator, space in registry.creators] == [
        ("linear_f16", "intvit"),
        ("linear_i8", "intvit"),
    ]
    assert [creator for creator, _ in registry.creators] == made
    names = [[field.name for field in creator.field_names] for creator in made]
    assert names == [["bits", "gelu"], ["bits", "gelu", "affine"]]


def test_a_refused_creator_is_said() -> None:
    with pytest.raises(IntvitError, match="refuses the plugin linear_f16"):
        creators(Registry(accepts=False))


def test_a_plugin_survives_being_cloned_and_serialized() -> None:
    for creator, given in zip(creators(), (fields(4, 1), fields(4, 1, 1)), strict=True):
        plugin = creator.create_plugin("node", given, "build")
        plugin.set_tactic(3)
        copy = plugin.attach_to_context(None)
        assert copy is not plugin
        assert (copy.bits, copy.gelu, copy.tactic, copy.plugin_name) == (4, 1, 3, creator.name)
        assert copy.affine == (creator.name == "linear_i8") and copy.timing_cache_id == plugin.timing_cache_id
        written = {field.name: int(field.data[0]) for field in plugin.get_fields_to_serialize()}
        assert written == {field.name: int(field.data[0]) for field in given}
        assert plugin.get_capability_interface("core") is plugin
        assert plugin.initialised


def test_plugins_of_other_kernels_share_no_timing() -> None:
    made = [creators()[1].create_plugin("node", fields(8, 1, affine), "build") for affine in (0, 1)]
    assert made[0].timing_cache_id != made[1].timing_cache_id


@pytest.mark.parametrize(("index", "out"), [(0, "float16"), (1, "int8")])
def test_types_and_shapes(index: int, out: str) -> None:
    plugin = creators()[index].create_plugin("node", fields(affine=1 if index else None), "build")
    assert plugin.get_output_data_types([]) == [out]
    assert plugin.get_output_shapes([[2, 197, 384], [1536, 192], [1536], [1536]], [], None) == [[2, 197, 1536]]
    types = ["int8", "int8", "float32", "float32", *(["float32"] * 2 if index else []), out]
    tensors = [SimpleNamespace(desc=SimpleNamespace(type=kind, format="linear")) for kind in types]
    inputs = len(types) - 1
    assert all(plugin.supports_format_combination(i, tensors, inputs) for i in range(len(types)))
    tensors[0].desc.format = "chw32"
    tensors[1].desc.type = "float16"
    assert not plugin.supports_format_combination(0, tensors, inputs)
    assert not plugin.supports_format_combination(1, tensors, inputs)
    assert plugin.get_valid_tactics() == [2, 3, 4]


@pytest.mark.parametrize("affine", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_launch_passes_tensorrts_pointers(bits: int, affine: int) -> None:
    launcher = Recorder()
    kind = plugin_v3.plugin_class(fake_tensorrt.module(), lambda: launcher)  # type: ignore[arg-type, return-value]
    plugin = kind("linear_i8", bits, 1, affine)
    plugin.set_tactic(2)
    shapes = [(2, 197, 384), (1536, 384 * bits // 8), (1536,), (1536,), (1536,), (4,)]
    descs = [SimpleNamespace(dims=shape) for shape in shapes]
    plugin.enqueue(descs, [SimpleNamespace(dims=(2, 197, 1536))], [16, 32, 48, 64, 80, 112], [96], 0, 7)
    ((arguments, options),) = launcher.calls
    assert (options["factor"] is not None) == bool(affine)
    factor = [options["factor"]] if affine else []
    views = [view.__cuda_array_interface__ for view in (*arguments, *factor, options["quantizer"])]
    assert [view["data"][0] for view in views] == [16, 32, 96, 48, 64, *([80] if affine else []), 112]
    assert [view["typestr"] for view in views[:3]] == ["|i1", "|u1" if bits == 4 else "|i1", "|i1"]
    assert {view["typestr"] for view in views[3:]} == {"<f4"}
    floats = [(1536,)] * (3 if affine else 2)
    assert [view["shape"] for view in views] == [shapes[0], shapes[1], (2, 197, 1536), *floats, (4,)]
    assert (options["gelu"], options["tile"], options["stream"]) == (True, TILES[1], 7)


@pytest.mark.parametrize(
    ("index", "wrong"),
    [(0, fields(3, 0)), (0, fields(4, 2)), (0, []), (1, fields(4, 1)), (1, fields(4, 1, 2)), (1, fields(4, 0, 1))],
)
def test_wrong_attributes_are_refused(index: int, wrong: list[PluginField]) -> None:
    with pytest.raises(IntvitError, match="cannot be made"):
        creators()[index].create_plugin("node", wrong, "build")


@pytest.mark.real
def test_every_name_of_tensorrt_is_in_10_3() -> None:
    if not NAMES.is_file():
        pytest.skip(f"no list of names at {NAMES}")
    known = set(NAMES.read_text("utf-8").split())
    tree = ast.parse(Path(plugin_v3.__file__).read_text("utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used = {name.removeprefix("trt.") for name in used if name.startswith("trt.")}
    assert len(used) > 10
    assert used - {"int8", "float16", "float32"} - {name for name in used if name.endswith("__init__")} <= known
    overridden = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    bases = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    interface = {name.split(".")[1] for name in known if name.split(".")[0] in bases and "." in name}
    own = {"__init__", "int8", "register", "kernels", "plugin_class", "creator_class"}
    assert overridden - own <= interface
