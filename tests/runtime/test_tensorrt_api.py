"""Every name of TensorRT that our code touches exists in every version it is for, or stands behind its ``hasattr``.

The lists are the public names of the real Python bindings of 10.3, 10.13, 10.16, 11.0, 11.4 and TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.runtime.tensorrt_names import VERSIONS, names, ours, problems, uses

HEAD = """
from runtime.backends.trt.types import Builder, IBuilderConfig, ICudaEngine, IExecutionContext, TensorRT
class Holder:
    engine: ICudaEngine
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_lists_are_whole(version: str) -> None:
    assert len(names(version)) > 1900
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= names(version)
    assert ("BuilderFlag.FP16" in names(version)) is version.startswith("10.")


def test_our_sources_use_only_what_is_there() -> None:
    sources = ours()
    assert {"runtime/backends/trt/build.py", "runtime/backends/trt/log.py", "runtime/backends/trt/run.py"} <= set(
        sources
    )
    assert problems(sources) == []


def test_the_walk_sees_what_the_code_does() -> None:
    """So that it cannot pass by looking away: these calls are known to be in the sources."""
    seen = {use.name for use in uses(ours())}
    assert {
        "Builder",
        "Builder.build_serialized_network",
        "Builder.create_network",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.profiling_verbosity",
        "IBuilderConfig.set_timing_cache",
        "IOptimizationProfile.set_shape",
        "ITimingCache.serialize",
        "OnnxParser.parse",
        "ParserError.node_name",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.create_execution_context",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "EngineInspector.get_engine_information",
        "ILogger.Severity.ERROR",
        "MemoryPoolType.WORKSPACE",
    } <= seen
    guarded = {use.name for use in uses(ours()) if use.guards}
    assert "IBuilderConfig.set_compute_capability" in guarded


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("trt.BuilderFlag.FP16", "11.0, 11.4, rtx-1.7.1 without BuilderFlag.FP16"),
        ("config.set_flag(trt.BuilderFlag.FP16)", "without BuilderFlag.FP16"),
        ("config.set_flag(trt.BuilderFlag.FP16) if hasattr(trt.BuilderFlag, 'FP16') else None", ""),
        ("[hasattr(trt.BuilderFlag, 'FP16') and config.set_flag(trt.BuilderFlag.FP16)]", ""),
        ("[hasattr(trt.BuilderFlag, 'FP16') or config.set_flag(trt.BuilderFlag.FP16)]", "without BuilderFlag.FP16"),
        ("[hasattr(trt.BuilderFlag, 'INT8') and config.set_flag(trt.BuilderFlag.FP16)]", "without BuilderFlag.FP16"),
        ("1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)", "11.0, 11.4, rtx-1.7.1 without"),
        ("config.int8_calibrator", "without IBuilderConfig.int8_calibrator"),
        ("holder.engine.device_memory_size", "without ICudaEngine.device_memory_size"),
        ("holder.engine.device_memory_size_v2", ""),
        ("builder.platform_has_fast_int8", "without Builder.platform_has_fast_int8"),
        ("config.set_compute_capability(None, 0)", "10.3, 10.13, 10.16, 11.0, 11.4 without"),
        ("context.execute_async_v4(0)", "no version has IExecutionContext.execute_async_v4"),
        ("something.execute_async_v3(0)", "execute_async_v3 of an object whose class is not told"),
        ("context.execute_async_v3(0)", ""),
    ],
)
def test_a_planted_use(body: str, said: str) -> None:
    arguments = "trt: TensorRT, config: IBuilderConfig, builder: Builder, context: IExecutionContext, holder, something"
    found = problems({"planted.py": f"{HEAD}\ndef f({arguments}):\n    return {body}\n"})
    assert said in found[0] if said else found == [], found


def test_a_guard_holds_only_in_its_branch() -> None:
    text = f"""{HEAD}
def f(trt: TensorRT, config: IBuilderConfig):
    if hasattr(config, "set_compute_capability"):
        config.set_compute_capability(1, 0)
    else:
        config.set_compute_capability(2, 0)
    config.set_compute_capability(3, 0)
"""
    assert [line.split(":")[1] for line in problems({"planted.py": text})] == ["10", "11"]


def test_an_object_that_lost_its_class_is_seen() -> None:
    text = f"""{HEAD}
def f(trt: TensorRT, builder: Builder):
    made = builder.create_builder_config()
    made.set_flag(trt.BuilderFlag.REFIT)
    known: IBuilderConfig = builder.create_builder_config()
    known.set_flag(trt.BuilderFlag.REFIT)
"""
    (line,) = problems({"planted.py": text})
    assert "set_flag of an object whose class is not told" in line


def test_direct_imports_are_read_too() -> None:
    (line,) = problems({"planted.py": "import tensorrt as t\nt.BuilderFlag.FP16\n"})
    assert "11.0, 11.4 without BuilderFlag.FP16" in line
    assert problems({"planted.py": "import tensorrt_rtx as t\nt.ComputeCapability.SM86\n"}) == []
    (line,) = problems({"planted.py": "import tensorrt_rtx as t\nt.BuilderFlag.FP16\n"})
    assert "rtx-1.7.1 without" in line
    both = "import tensorrt\nimport tensorrt_rtx\ntensorrt.ComputeCapability.SM86\n"
    assert "10.3, 10.13, 10.16, 11.0, 11.4 without" in problems({"planted.py": both})[0]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="pip install 'intvit[rtx]'")
def test_the_list_of_tensorrt_rtx_is_that_of_the_wheel() -> None:
    import tensorrt_rtx as trt

    if not trt.__version__.startswith("1.7.1"):
        pytest.skip(f"the list is of 1.7.1; here is {trt.__version__}")
    for use in uses(ours()):
        value: object = trt
        if use.name in names("rtx-1.7.1"):
            for part in use.name.split("."):
                value = getattr(value, part)
