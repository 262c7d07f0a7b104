"""The engines in the race, each set up the way its makers advise for speed, in float32 on the CPU.

An engine is a function ``(layer, x, weight, bias, threads) -> (run, fetch)``: ``run()`` is what the clock measures,
``fetch(result)`` gives its values as a contiguous array. Everything that a program does once (packing weights,
compiling, moving the input into the engine's layout) happens before ``run``; some engines borrow the memory of the
arrays, which have to outlive ``run``. Imports stand inside the functions, because each engine runs in a process that
loads no other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.layers import Array, Layer

# Of torch, without gradients: as a program that serves, a process is in it from one layer's calls to the next one's.
_MODE = contextlib.ExitStack()

Prepared = tuple[Callable[[], Any], Callable[[Any], Array]]


class NotSupportedError(Exception):
    """The engine has no such layer; the message says what is missing."""


def arguments(layer: Layer) -> dict[str, Any]:
    return {
        "stride": layer.stride,
        "padding": layer.padding,
        "output_padding": layer.output_padding,
        "groups": layer.groups,
        "dilation": layer.dilation,
    }


def upscore_plan(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    import upscore

    upscore.cpu.set_threads(threads)
    plan = upscore.plan(w, b, **arguments(layer))
    return lambda: plan(x), np.ascontiguousarray


def torch_arrays(arrays: tuple[Array, ...], channels_last: bool) -> list[Any]:
    import torch

    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    return [t.contiguous(memory_format=formats[t.ndim]) if channels_last and t.ndim > 3 else t for t in tensors]


def flat(layer: Layer) -> Layer:
    """A 1D layer as a 2D one of height 1, for engines that have no 1D layer or no channels-last layout for it."""
    if layer.rank != 1:
        return layer
    one = {name: (1, *getattr(layer, name)) for name in ("size", "kernel", "stride")}
    zero = {name: (0, *getattr(layer, name)) for name in ("padding", "output_padding")}
    return Layer.from_dict(layer.as_dict() | one | zero)


def _prepare_torch(
    module: Any, layer: Layer, arrays: tuple[Array, ...], channels_last: bool, compiled: bool
) -> Prepared:
    import torch

    _MODE.close()
    x, weight, bias = torch_arrays(arrays, channels_last)
    with torch.device("meta"):
        module = module(layer.channels_in, layer.channels_out, layer.kernel, **arguments(layer))
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    module.bias = torch.nn.Parameter(bias, requires_grad=False)
    module.eval()
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # packs the weights for oneDNN, once; refuses inference mode
        torch.compiler.reset()
        module = torch.compile(module, dynamic=False)
    _MODE.enter_context(torch.no_grad() if compiled else torch.inference_mode())
    return lambda: module(x), lambda y: y.contiguous().numpy()


def torch_function(layer: Layer) -> Any:
    from torch.nn import functional

    return {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[layer.rank]


def torch_module(threads: int, layer: Layer) -> Any:
    import torch

    torch.set_num_threads(threads)
    return {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}[layer.rank]


def upscore_module(threads: int, layer: Layer) -> Any:
    import torch

    from upscore import nn

    torch.set_num_threads(threads)
    return {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[layer.rank]


def upscore_nn(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    return _prepare_torch(upscore_module(threads, layer), layer, (x, w, b), channels_last=False, compiled=False)


def upscore_nn_channels_last(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    if layer.rank == 1:
        raise NotSupportedError("torch has no channels-last layout in 1D")
    return _prepare_torch(upscore_module(threads, layer), layer, (x, w, b), channels_last=True, compiled=False)


def torch_contiguous(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    return _prepare_torch(torch_module(threads, layer), layer, (x, w, b), channels_last=False, compiled=False)


def torch_channels_last(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    thin = flat(layer)
    if layer.rank == 1:
        x, w = x[:, :, None], w[:, :, None]
    run, fetch = _prepare_torch(torch_module(threads, thin), thin, (x, w, b), channels_last=True, compiled=False)
    return run, lambda y: fetch(y).reshape(layer.output_shape)


def torch_compiled(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    return _prepare_torch(torch_module(threads, layer), layer, (x, w, b), channels_last=False, compiled=True)


def _onnx_model(layer: Layer, w: Array, b: Array) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    node = helper.make_node(
        "ConvTranspose",
        ["x", "w", "b"],
        ["y"],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        output_padding=layer.output_padding,
        group=layer.groups,
        dilations=(layer.dilation,) * layer.rank,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, layer.output_shape)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def onnxruntime(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(_onnx_model(layer, w, b), options, providers=["CPUExecutionProvider"])
    y = np.empty(layer.output_shape, dtype=np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
    binding.bind_output("y", "cpu", 0, np.float32, layer.output_shape, y.ctypes.data)

    def run() -> Array:
        session.run_with_iobinding(binding)
        return y  # this closure is what keeps the bound memory alive

    return run, np.ascontiguousarray


def openvino(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = core.compile_model(core.read_model(_onnx_model(layer, w, b)), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    return lambda: request.infer(), lambda _: np.ascontiguousarray(request.get_output_tensor().data)


def ncnn(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    """One image at a time: ncnn has no batch axis. Its weights are (out, in / groups, *kernel) in each group."""
    import tempfile
    from pathlib import Path

    import ncnn as engine

    axes = {1: ("w",), 2: ("h", "w"), 3: ("d", "h", "w")}[layer.rank]
    ids = {
        "kernel": {"w": 1, "h": 11, "d": 21},
        "dilation": {"w": 2, "h": 12, "d": 22},
        "stride": {"w": 3, "h": 13, "d": 23},
        "before": {"w": 4, "h": 14, "d": 24},
        "after": {"w": 15, "h": 16, "d": 17},
        "output_padding": {"w": 18, "h": 19, "d": 20},
    }
    values = {
        "kernel": layer.kernel,
        "dilation": (layer.dilation,) * layer.rank,
        "stride": layer.stride,
        "before": layer.padding,
        "after": layer.padding,
        "output_padding": layer.output_padding,
    }
    numbers = {ids[what][axis]: n for what, along in values.items() for axis, n in zip(axes, along, strict=True)}
    numbers |= {0: layer.channels_out, 5: 1, 6: w.size} | ({7: layer.groups} if layer.groups > 1 else {})
    kind = "Deconvolution" + ("DepthWise" if layer.groups > 1 else "") + ("" if layer.rank == 2 else f"{layer.rank}D")
    settings = " ".join(f"{key}={value}" for key, value in sorted(numbers.items()))
    text = f"7767517\n2 2\nInput x 0 1 x\n{kind} layer 1 1 x y {settings}\n"

    grouped = w.reshape(layer.groups, layer.channels_in // layer.groups, *w.shape[1:])
    packed = np.ascontiguousarray(grouped.swapaxes(1, 2))
    net = engine.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for precision in ("fp16", "bf16", "int8"):
        for what in ("packed", "storage", "arithmetic"):
            if hasattr(net.opt, f"use_{precision}_{what}"):
                setattr(net.opt, f"use_{precision}_{what}", False)
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "layer.bin")
        binary.write_bytes(np.uint32(0).tobytes() + packed.tobytes() + b.tobytes())  # tag 0: float32 follows
        if net.load_param_mem(text) != 0 or net.load_model(str(binary)) != 0:
            raise NotSupportedError(f"ncnn does not load {kind}")
    images = [engine.Mat(image).clone() for image in x]

    def run() -> list[Any]:
        results = []
        for image in images:
            extractor = net.create_extractor()
            extractor.input("x", image)
            results.append(extractor.extract("y")[1])
        return results

    return run, lambda results: np.stack([np.array(y) for y in results]).reshape(layer.output_shape)


def tensorflow(layer: Layer, x: Array, w: Array, b: Array, threads: int) -> Prepared:
    """Channels last, which is the only layout of TensorFlow's CPU kernels; grouped layers channelwise only."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    thin = flat(layer)
    if layer.groups not in (1, layer.channels_in):
        raise NotSupportedError("TensorFlow's transposed convolution has no groups")
    if layer.dilation != 1:
        raise NotSupportedError("TensorFlow's transposed convolution has no dilation on the CPU")
    last = (0, *range(2, thin.rank + 2), 1)
    image = tf.constant(np.ascontiguousarray(x.reshape(thin.input_shape).transpose(last)))
    kernel = tf.constant(np.ascontiguousarray(w.reshape(thin.weight_shape).transpose(*range(2, thin.rank + 2), 1, 0)))
    bias = tf.constant(b)
    shape = (thin.batch, *thin.output_size, thin.channels_out)
    explicit = [[0, 0], *([p, p] for p in thin.padding), [0, 0]]

    @tf.function
    def run(image: Any, kernel: Any, bias: Any) -> Any:
        if thin.rank == 3:  # conv3d_transpose has SAME and VALID only: compute the whole and cut
            full = [m + 2 * p for m, p in zip(thin.output_size, thin.padding, strict=True)]
            y = tf.nn.conv3d_transpose(image, kernel, [thin.batch, *full, thin.channels_out], thin.stride, "VALID")
            y = tf.slice(y, [0, *thin.padding, 0], shape)
        elif thin.groups > 1:
            kernel = tf.transpose(kernel, (0, 1, 3, 2))
            y = tf.nn.depthwise_conv2d_backprop_input(shape, kernel, image, (1, *thin.stride, 1), explicit)
        else:
            y = tf.nn.conv2d_transpose(image, kernel, shape, thin.stride, explicit)
        return tf.nn.bias_add(y, bias)

    if thin.rank == 2 and thin.groups > 1 and thin.stride[0] != thin.stride[1]:
        raise NotSupportedError("TensorFlow's channelwise layers need equal strides")
    ready = run.get_concrete_function(image, kernel, bias)
    first = (0, thin.rank + 1, *range(1, thin.rank + 1))
    return (
        lambda: ready(image, kernel, bias),
        lambda y: np.ascontiguousarray(y.numpy().transpose(first)).reshape(layer.output_shape),
    )


OURS: dict[str, Callable[..., Prepared]] = {
    "upscore": upscore_plan,
    "upscore.nn": upscore_nn,
    "upscore.nn channels-last": upscore_nn_channels_last,
}
PEERS: dict[str, Callable[..., Prepared]] = {
    "torch": torch_contiguous,
    "torch channels-last": torch_channels_last,
    "torch compiled": torch_compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "tensorflow": tensorflow,
}
ENGINES = OURS | PEERS


def exact(layer: Layer) -> np.ndarray[Any, Any]:
    """The layer by torch in float64."""
    import torch

    x, w, b = (torch.from_numpy(a).double() for a in layer.arrays())
    return np.asarray(torch_function(layer)(x, w, b, **arguments(layer)).numpy())


def relative_error(y: Array, exact: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The 2-norm of the difference over the 2-norm of the exact values."""
    if y.shape != exact.shape:
        raise ValueError(f"the result has the shape {y.shape}, expected {exact.shape}")
    norm = math.sqrt(float(np.square(exact).sum()))
    return math.sqrt(float(np.square(y - exact).sum())) / norm
