"""Other ways to run the same network on a CPU, each built by its own tool's documented call.

Every builder takes the bundle (whose float32 twin is the network as an exporter writes it, LayerNormalization and Gelu
as one operator each), the model's name and the number of threads, and gives a function from images to logits. What a
tool must calibrate, it calibrates on random images: a latency does not depend on ranges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.openvino import A_CALL
from runtime.bundle import Bundle
from runtime.lanes import equal_piece

Images = npt.NDArray[np.float32]
Runner = Callable[[Images], Any]
CALIBRATION_IMAGES = 4


def calibration(bundle: Bundle) -> Iterator[Images]:
    """A few batches of one random image, float32 standard normal."""
    size = bundle.manifest.preprocess
    generator = np.random.default_rng(0)
    for _ in range(CALIBRATION_IMAGES):
        yield generator.standard_normal((1, size.channels, size.height, size.width)).astype(np.float32)


def ort_session(path: Path | str, threads: int) -> Any:
    """ONNX Runtime at its defaults but for the threads, which stop spinning at the end of a run: others wait here."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ort_runner(path: Path | str, threads: int) -> Runner:
    """:func:`ort_session` as a function."""
    session = ort_session(path, threads)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def ort_fp32(bundle: Bundle, model: str, threads: int) -> Runner:
    """The float32 graph in ONNX Runtime."""
    return ort_runner(bundle.file("float_twin"), threads)


def _prepared(bundle: Bundle, folder: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = folder / "prepared.onnx"
    quant_pre_process(str(bundle.file("float_twin")), str(out))
    return out


def ort_static(activation: str, weight: str, products_only: bool) -> Callable[[Bundle, str, int], Runner]:
    """``onnxruntime.quantization.quantize_static``: QDQ, per channel, after its own pre-processing."""

    def build(bundle: Bundle, model: str, threads: int) -> Runner:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.batches = calibration(bundle)

            def get_next(self) -> dict[str, Images] | None:
                images = next(self.batches, None)
                return None if images is None else {bundle.manifest.input_name: images}

        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "static.onnx"
            quantize_static(
                str(_prepared(bundle, Path(folder))),
                str(out),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"] if products_only else None,
                per_channel=True,
                activation_type=QuantType[activation],
                weight_type=QuantType[weight],
            )
            return ort_runner(out, threads)

    return build


def ort_dynamic(bundle: Bundle, model: str, threads: int) -> Runner:
    """``onnxruntime.quantization.quantize_dynamic`` at its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dynamic.onnx"
        quantize_dynamic(str(_prepared(bundle, Path(folder))), str(out))
        return ort_runner(out, threads)


def _openvino(model: Any, threads: int, precision: str | None, batch: int | None = None) -> Runner:
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]


def openvino(precision: str, *, lanes: bool = False) -> Callable[[Bundle, str, int], Runner]:
    """OpenVINO on the float32 graph; the shapes are fixed at the first call's, as its own benchmark does.

    With ``lanes`` the images of a call are shared among streams of one thread.
    """

    def build(bundle: Bundle, model: str, threads: int) -> Runner:
        import openvino as ov

        model = ov.Core().read_model(bundle.file("float_twin"))
        return fixed_at_first_call(model, threads, precision, threads if lanes else 1)

    return build


def fixed_at_first_call(model: Any, threads: int, precision: str | None, lanes: int = 1) -> Runner:
    """A runner that compiles for the batch it sees first, with a stream for each of ``lanes``."""
    made: list[Runner] = []

    def run(images: Images) -> Any:
        if not made:
            each = len(images) // lanes
            size = equal_piece(each, A_CALL) if lanes > 1 else each
            model.reshape([size, *images.shape[1:]])
            made.append(
                _streams(model, threads, precision, size) if lanes > 1 else _openvino(model, threads, precision)
            )
        return made[0](images)

    return run


def _streams(model: Any, threads: int, precision: str | None, size: int) -> Runner:
    """OpenVINO's asynchronous queue, a stream of one thread for each of its requests: what our engine does itself."""
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": str(threads), "PERFORMANCE_HINT": "THROUGHPUT"}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    queue = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", config), threads)
    answers: dict[int, Any] = {}
    queue.set_callback(lambda request, at: answers.update({at: request.get_output_tensor(0).data.copy()}))

    def run(images: Images) -> Any:
        places = range(0, len(images), size)
        for at in places:
            queue.start_async([images[at : at + size]], at, share_inputs=True)
        queue.wait_all()
        return np.concatenate([answers[at] for at in places])

    return run


def nncf_int8(bundle: Bundle, model: str, threads: int, *, lanes: int = 1) -> Runner:
    """``nncf.quantize`` for transformers on OpenVINO, run at OpenVINO's default precision for this processor."""
    import nncf
    import openvino as ov

    network = ov.Core().read_model(bundle.file("float_twin"))
    dataset = nncf.Dataset(list(calibration(bundle)))
    quantized = nncf.quantize(
        network,
        dataset,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION_IMAGES,
        fast_bias_correction=True,
    )
    return fixed_at_first_call(quantized, threads, None, lanes)


def nncf_in_lanes(bundle: Bundle, model: str, threads: int) -> Runner:
    """:func:`nncf_int8`, the images of a call shared among streams of one thread."""
    return nncf_int8(bundle, model, threads, lanes=threads)


def _timm(model: str, threads: int) -> Any:
    import torch

    from calib.models import load

    torch.set_num_threads(threads)
    return load(model, "random").module.eval()


def torch_runner(dtype: str) -> Callable[[Bundle, str, int], Runner]:
    """timm's network in eager PyTorch, which takes its own fused attention."""

    def build(bundle: Bundle, model: str, threads: int) -> Runner:
        import torch

        kind = getattr(torch, dtype)
        network = _timm(model, threads).to(kind)

        def run(images: Images) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(images).to(kind)).float().numpy()

        return run

    return build


def torchao_int8(bundle: Bundle, model: str, threads: int) -> Runner:
    """torchao's int8 weights with int8 activations quantized at each call, compiled by Inductor."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    network = _timm(model, threads)
    quantize_(network, Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(network)

    def run(images: Images) -> Any:
        with torch.inference_mode():
            return compiled(torch.from_numpy(images)).numpy()

    return run


def ours(backend: str, **options: str) -> Callable[[Bundle, str, int], Runner]:
    """The bundle's integer engine."""

    def build(bundle: Bundle, model: str, threads: int) -> Runner:
        from runtime.backends import open_engine

        return open_engine(bundle, backend, threads=threads, options=options).run

    return build


ENGINES: dict[str, Callable[[Bundle, str, int], Runner]] = {
    "ours on ONNX Runtime": ours("ort"),
    "ours on OpenVINO": ours("openvino"),
    "ours on OpenVINO bf16": ours("openvino", precision="bf16"),
    "ONNX Runtime float32": ort_fp32,
    "ONNX Runtime quantize_dynamic": ort_dynamic,
    "ONNX Runtime quantize_static u8s8": ort_static("QUInt8", "QInt8", False),
    "ONNX Runtime quantize_static u8s8 products": ort_static("QUInt8", "QInt8", True),
    "ONNX Runtime quantize_static s8s8 products": ort_static("QInt8", "QInt8", True),
    "OpenVINO float32": openvino("f32"),
    "OpenVINO bfloat16": openvino("bf16"),
    "OpenVINO bfloat16 in lanes": openvino("bf16", lanes=True),
    "NNCF int8 on OpenVINO": nncf_int8,
    "NNCF int8 on OpenVINO in lanes": nncf_in_lanes,
    "PyTorch float32": torch_runner("float32"),
    "PyTorch bfloat16": torch_runner("bfloat16"),
    "torchao int8": torchao_int8,
}
# Not how their documentation calls them, but what an expert does with a batch of at least as many images as threads.
LANES = tuple(name for name in ENGINES if name.endswith("in lanes"))
OURS = tuple(name for name in ENGINES if name.startswith("ours"))
