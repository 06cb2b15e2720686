"""What the one real TensorRT parser at hand, TensorRT-RTX's, makes of a graph with nodes of our kernels.

It looks the nodes up as NVIDIA's parsers do, finds our IPluginV3, and has it made from the node's attributes; then it
ends the process, because networks of TensorRT-RTX have no plugin layers. So this runs in a process of its own, and
shows name, namespace, version, attributes and types of the inputs, and nothing of what a TensorRT builds of them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.kernels import plugin_v3
from runtime.kernels.nodes import LINEAR_F16, LINEAR_I8
from tests.conftest import REPO
from tests.toolchain.nets import serialized, tiny_canonical
from toolchain.targets import tensorrt
from toolchain.targets.choices import TensorRtOptions

PARSE = """
import sys
from pathlib import Path
import tensorrt_rtx as trt
from runtime.kernels import plugin_v3

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, text):
        print(text, flush=True)

if sys.argv[2] == "registered":
    creators = plugin_v3.register(Path("nowhere"), trt=trt)
log = Log()
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
print("parsed:", parser.parse(Path(sys.argv[1]).read_bytes()), flush=True)
"""


def parsed(path: Path, registered: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PARSE, str(path), registered]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="pip install 'intvit[rtx]'")
def test_the_parser_finds_and_makes_the_plugin(tmp_path: Path) -> None:
    import tensorrt_rtx as trt

    if not trt.__version__.startswith("1.7."):
        pytest.skip(f"what is said here was seen with 1.7; here is {trt.__version__}")
    assert not hasattr(trt.INetworkDefinition, "add_plugin_v3")
    path = tmp_path / "model.onnx"
    path.write_bytes(serialized(tensorrt.lower(tiny_canonical("vit", "w4a8"), TensorRtOptions(kernels="on"))))
    alone = parsed(path, "alone")
    assert alone.returncode == 0 and "parsed: False" in alone.stdout
    assert "Plugin not found" in alone.stdout
    done = parsed(path, "registered")
    inputs = "[INT8]], [patch_embed.proj.weight_q -> (32, 64)[INT8]], [patch_embed.proj.weight_q.scale -> (32)[FLOAT]]"
    assert inputs in done.stdout
    assert "Searching for plugin: linear_f16, plugin_version: 1, plugin_namespace: intvit" in done.stdout
    assert "Successfully created plugin: linear_f16" in done.stdout
    assert "parsed:" not in done.stdout and done.returncode < 0  # std::terminate, behind the plugin's creation


@pytest.mark.parametrize(("name", "values"), [(LINEAR_F16, (4, 1)), (LINEAR_I8, (8, 1, 1))])
def test_a_plugins_attributes_are_still_there_when_tensorrt_reads_them(name: str, values: tuple[int, ...]) -> None:
    """TensorRT keeps addresses alone: arrays that are gone by then were read as whatever had taken their place."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'intvit[rtx]'")
    made = plugin_v3.plugin_class(trt, lambda: None)(name, *values)
    fields = made.get_fields_to_serialize()
    junk = [np.array([1000 + i], np.int32) for i in range(1000)]
    assert tuple(int(np.asarray(field.data)[0]) for field in fields) == values
    assert len(junk) == 1000
