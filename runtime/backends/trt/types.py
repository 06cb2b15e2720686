"""TensorRT's classes by their own names, for annotations: the library is not there when this is imported.

A test walks these sources, takes a name annotated with one of these for an object of that class, and holds every
attribute it is asked for against the lists of names of each supported version (tests/runtime/data/tensorrt-api).
"""

from __future__ import annotations

from typing import Any, TypeAlias

TensorRT: TypeAlias = Any  # the module: tensorrt or tensorrt_rtx
Builder: TypeAlias = Any
EngineInspector: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IOptimizationProfile: TypeAlias = Any
ITimingCache: TypeAlias = Any
OnnxParser: TypeAlias = Any
ParserError: TypeAlias = Any
Runtime: TypeAlias = Any
