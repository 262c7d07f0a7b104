"""Run layers in TensorFlow, TFLite, Keras, JAX, Flax or Haiku, in a process of their own. No part of upscore is used.

Keras fixes its backend at import and the frameworks do not like each other's company, so the tests keep one such
process per backend and send it batches. A request is the path of a pickle: a list of ``(system, job)``. The answer
is a pickle of the outputs, each an array or the message of the error. Arrays are ``(N, C, *size)`` here.

    system "code": job = (text, names, layout of x: "first" or "last"); the text leaves its result in y
    any other:     job = (parameters, weights, x)
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings

import numpy as np

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
warnings.simplefilter("ignore")

FAST = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
BATCH = 100


def last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def first(y):
    return np.ascontiguousarray(np.moveaxis(np.asarray(y), -1, 1))


def tensorflow(job):
    import tensorflow as tf

    p, w, x = job
    rank = x.ndim - 2
    function = getattr(tf.nn, f"conv{rank}d_transpose")
    shape = [len(x), *p["output_shape"][1:]]
    front = str(p.get("data_format") or "").startswith("NC")
    names = ("strides", "padding", "data_format", "dilations")
    more = {k: p[k] for k in names if p.get(k) is not None}
    x = x if front else last(x)

    def call():
        return function(x, w["filters"], shape, **more)

    try:
        y = call().numpy()
    except tf.errors.InvalidArgumentError as error:
        if "dilation rates larger than 1" not in str(error):
            raise
        y = tf.function(call, jit_compile=True)().numpy()  # the eager CPU kernel lacks it, the compiler does not
    y = y if front else first(y)
    return y + w["bias"].reshape(1, -1, *[1] * rank) if "bias" in w else y


def tflite(job):
    import flatbuffers
    import tensorflow as tf
    from tensorflow.lite.python import schema_py_generated as s

    p, w, x = job
    x = last(x)
    shape = np.array([len(x), *p["output_shape"][1:]], np.int32)
    arrays = [shape, w["weights"].astype(np.float32), None, *([w["bias"].astype(np.float32)] if "bias" in w else [])]
    model = s.ModelT()
    model.version = 3
    model.buffers = [s.BufferT()]
    graph = s.SubGraphT()
    graph.tensors = []
    for i, array in enumerate([*arrays, np.zeros(shape, np.float32)]):
        tensor = s.TensorT()
        tensor.name = f"t{i}"
        data = x if array is None else array
        tensor.shape = list(data.shape)
        tensor.type = s.TensorType.INT32 if data.dtype == np.int32 else s.TensorType.FLOAT32
        tensor.buffer = 0
        if array is not None and i < len(arrays):
            buffer = s.BufferT()
            buffer.data = np.frombuffer(array.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    options = s.TransposeConvOptionsT()
    options.padding = getattr(s.Padding, p["padding"])
    options.strideH, options.strideW = p["stride_h"], p["stride_w"]
    operator = s.OperatorT()
    operator.inputs = list(range(len(arrays)))
    operator.outputs = [len(arrays)]
    operator.builtinOptionsType = s.BuiltinOptions.TransposeConvOptions
    operator.builtinOptions = options
    graph.operators, graph.inputs, graph.outputs = [operator], [2], [len(arrays)]
    code = s.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = s.BuiltinOperator.TRANSPOSE_CONV
    code.version = 3 if "bias" in w else 1
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = tf.lite.Interpreter(
        model_content=bytes(builder.Output()),
        num_threads=1,
        experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return first(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def keras(job):
    """The layer, called on a tensor of the backend (a tracer, inside JAX)."""
    import keras as k

    p, w, x = job
    p = {"data_format": "channels_last", **p}
    front = p["data_format"] == "channels_first"
    # weights as initial values, on the device: JAX would compile a program for every shape that it fills or converts
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax as j

        w = {name: j.device_put(value) for name, value in w.items()}
    p |= {f"{name}_initializer": (lambda shape, dtype=None, value=value: value) for name, value in w.items()}
    layer = getattr(k.layers, f"Conv{x.ndim - 2}DTranspose")(**p)
    layer.build(x.shape if front else (len(x), *x.shape[2:], x.shape[1]))

    def apply(x):
        if front:
            return layer(x)
        return k.ops.moveaxis(layer(k.ops.moveaxis(x, 1, -1)), -1, 1)

    return apply


def upsampling(job):
    import keras as k

    p, _, x = job
    layer = getattr(k.layers, f"UpSampling{x.ndim - 2}D")(**p)
    return lambda x: k.ops.moveaxis(layer(k.ops.moveaxis(x, 1, -1)), -1, 1)


def old_torch_padding(job):
    """What the torch backend's symmetric padding was: Keras still has the function."""
    from keras.src.backend.common.backend_utils import compute_conv_transpose_padding_args_for_torch as old

    (k, s, mode, more), _, _ = job
    return [int(v[0]) for v in old((1, 4, 1), (k, 1, 1), s, mode, more, 1)]


def jax(job):
    from jax import lax

    p, w, x = job
    p = dict(p)
    function = lax.conv_general_dilated if "lhs_dilation" in p else lax.conv_transpose
    numbers = p.get("dimension_numbers")
    default = "NCHWD"[: x.ndim] if "lhs_dilation" in p else "N" + "HWD"[: x.ndim - 2] + "C"
    spec, out = (numbers[0], numbers[2]) if numbers else (default, default)
    bias = w.get("bias")

    def to(spec):  # (N, C, *size) -> spec, with the spatial letters in the order of the spec
        letters = [c for c in spec if c not in "NC"]
        return [("NC" + "".join(letters)).index(c) for c in spec]

    def apply(x):
        y = function(x.transpose(to(spec)), w["rhs"], **p).transpose(np.argsort(to(out)))
        return y if bias is None else y + bias.reshape(1, -1, *[1] * (x.ndim - 2))

    return apply


def flax(job):
    import flax.linen as nn

    p, w, _ = job
    return lambda x: _moved(lambda x: nn.ConvTranspose(**p).apply({"params": w}, x), x)


def nnx(job):
    """Flax' newer module, which keeps its weights itself."""
    from flax import nnx as fx

    p, w, x = job
    p = dict(p)
    layer = fx.ConvTranspose(x.shape[1], p.pop("features"), rngs=fx.Rngs(0), **p)
    layer.kernel = fx.Param(w["kernel"])
    if "bias" in w:
        layer.bias = fx.Param(w["bias"])
    return lambda x: _moved(layer, x)


def haiku(job):
    import haiku as hk

    p, w, x = job
    name = f"Conv{x.ndim - 2}DTranspose"
    front = p.get("data_format") == "channels_first"
    forward = hk.without_apply_rng(hk.transform(lambda x: getattr(hk, name)(**p, name="up")(x)))
    return lambda x: (lambda f: f(x) if front else _moved(f, x))(lambda x: forward.apply({"up": w}, x))


def _moved(function, x):
    import jax.numpy as jnp

    return jnp.moveaxis(function(jnp.moveaxis(x, 1, -1)), -1, 1)


def code(job):
    text, names, layout = job
    names = dict(names)
    backend = os.environ.get("KERAS_BACKEND")
    if layout == "last":
        names["x"] = last(names["x"])
    if "keras" in text:
        import keras as k

        names["x"] = k.ops.convert_to_tensor(names["x"])
    elif "tensorflow" in text and "lite" not in text:
        import tensorflow as tf

        names["x"] = tf.constant(names["x"])
    exec(compile(text, "<code>", "exec"), names)
    y = names["y"]
    y = y.detach().numpy() if "keras" in text and backend == "torch" else np.asarray(y)
    return first(y) if layout == "last" else y


def in_jax(found):
    """Many functions compiled as one program: compiling them one by one takes ten times as long."""
    import jax as j

    xs = [x for _, x in found]
    try:
        program = j.jit(lambda xs: [f(x) for (f, _), x in zip(found, xs, strict=True)])
        return list(map(np.asarray, program.lower(xs).compile(compiler_options=FAST)(xs)))
    except Exception as error:
        if len(found) == 1:
            return [f"{type(error).__name__}: {error}"]
        return [y for one in found for y in in_jax([one])]  # one wrong job must not hide the others


def evaluate(requests):
    outputs = [None] * len(requests)
    later = []
    for i, (system, job) in enumerate(requests):
        try:
            if system in ("tensorflow", "tflite", "code", "old_torch_padding"):
                outputs[i] = globals()[system](job)
                continue
            function, x = globals()[system](job), job[2]
            if os.environ.get("KERAS_BACKEND") == "jax":
                later.append((i, function, x))
            else:
                import keras as k

                outputs[i] = k.ops.convert_to_numpy(k.ops.stop_gradient(function(k.ops.convert_to_tensor(x))))
        except Exception as error:
            outputs[i] = f"{type(error).__name__}: {error}"
    for start in range(0, len(later), BATCH):
        part = later[start : start + BATCH]
        for (i, _, _), y in zip(part, in_jax([(f, x) for _, f, x in part]), strict=True):
            outputs[i] = y
    return outputs


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print must not get between the answers
    for line in sys.stdin:
        path = line.strip()
        with open(path, "rb") as file:
            requests = pickle.load(file)
        outputs = evaluate(requests)
        with open(path + ".out", "wb") as file:
            pickle.dump(outputs, file)
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
