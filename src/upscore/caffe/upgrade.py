"""Old nets in today's form: V0 and V1 layers, ``input_dim``, transformations inside data layers.

Source: what BVLC Caffe does when it loads such a file (src/caffe/util/upgrade_proto.cpp).
"""

from __future__ import annotations

from typing import Any

from upscore.caffe import schema
from upscore.errors import FileFormatError

__all__ = ["V0_TYPES", "upgrade", "upgrade_solver", "v1_type"]

V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
_V0_PARAMS = {
    "conv": "convolution_param",
    "innerproduct": "inner_product_param",
    "pool": "pooling_param",
    "dropout": "dropout_param",
    "lrn": "lrn_param",
    "concat": "concat_param",
    "data": "data_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "window_data": "window_data_param",
    "infogain_loss": "infogain_loss_param",
}
# Where V0 has another word than the message its field moved to.
_V0_FIELDS = {
    "biasterm": "bias_term",
    "kernelsize": "kernel_size",
    "batchsize": "batch_size",
    "shuffle_images": "shuffle",
    "det_fg_threshold": "fg_threshold",
    "det_bg_threshold": "bg_threshold",
    "det_fg_fraction": "fg_fraction",
    "det_context_pad": "context_pad",
    "det_crop_mode": "crop_mode",
}
_V0_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}

# V1's names in capitals become today's by joining their words, but for these.
_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BN": "BN",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "IM2COL": "Im2col",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
    "NONE": "",
}
_DATA_PARAMS = ("data_param", "image_data_param", "window_data_param")


def upgrade(net: Any) -> Any:
    """The same net with today's ``layer``s only: a new message, ``net`` itself is left as it was.

    V0 and V1 ``layers`` become ``layer``s (padding layers are folded into the convolution after them),
    ``input``, ``input_dim`` and ``input_shape`` become Input layers, a data layer's ``scale``, ``mean_file``,
    ``crop_size`` and ``mirror`` move to its ``transform_param``.

    Raises:
        FileFormatError: when ``layer`` and ``layers`` are mixed, or inputs and their shapes do not match.
    """
    new = schema.NetParameter()
    new.CopyFrom(net)
    if new.layers:
        if new.layer:
            raise FileFormatError(
                "net: expected either layer { } or the older layers { }, got both; write all of them as layer"
            )
        old = [_v0_to_v1(layer) if layer.HasField("layer") else layer for layer in _fold_padding(new.layers)]
        new.ClearField("layers")
        for layer in old:
            _v1_to_v2(layer, new.layer.add())
    for layer in new.layer:
        _move_transformations(layer)
        if layer.type == "BatchNorm" and len(layer.param) == 3:
            for spec in layer.param:  # statistics, never learned
                spec.lr_mult = spec.decay_mult = 0.0
    if new.input:
        _inputs_to_layers(new)
    return new


def v1_type(name: str) -> str:
    """Today's name of a V1 layer type.

    >>> v1_type("EUCLIDEAN_LOSS"), v1_type("SOFTMAX_LOSS")
    ('EuclideanLoss', 'SoftmaxWithLoss')
    """
    return _V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))


def upgrade_solver(solver: Any) -> Any:
    """The solver with ``solver_type: ADAGRAD`` said as ``type: "AdaGrad"``: a new message."""
    new = schema.SolverParameter()
    new.CopyFrom(solver)
    if new.HasField("solver_type"):
        if new.HasField("type"):
            raise FileFormatError("solver: expected type or the older solver_type, got both; drop solver_type")
        new.type = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")[new.solver_type]
        new.ClearField("solver_type")
    return new


def _fold_padding(layers: Any) -> list[Any]:
    """Without V0's padding layers: their pad moves into the convolution or pooling that they feed."""
    made_by: dict[str, Any] = {}
    kept = []
    for old in layers:
        layer = schema.V1LayerParameter()
        layer.CopyFrom(old)
        for i, name in enumerate(layer.bottom):
            source = made_by.get(name)
            if source is not None and source.layer.type == "padding":
                if layer.layer.type not in ("conv", "pool") or len(source.bottom) != 1:
                    raise FileFormatError(
                        f"layer {layer.layer.name!r}: expected conv or pool after the padding layer "
                        f"{source.layer.name!r}, got {layer.layer.type!r}"
                    )
                layer.layer.pad = source.layer.pad
                layer.bottom[i] = source.bottom[0]
        made_by.update(dict.fromkeys(layer.top, layer))
        if layer.layer.type != "padding":
            kept.append(layer)
    return kept


def _v0_to_v1(old: Any) -> Any:
    v0 = old.layer
    new = schema.V1LayerParameter(name=v0.name, bottom=old.bottom, top=old.top)
    if v0.type not in V0_TYPES:
        raise FileFormatError(f"layer {v0.name!r}: {v0.type!r} is no V0 layer type; known are {', '.join(V0_TYPES)}")
    new.type = schema.V1LayerParameter.LayerType.Value(V0_TYPES[v0.type])
    new.blobs.extend(v0.blobs)
    new.blobs_lr.extend(v0.blobs_lr)
    new.weight_decay.extend(v0.weight_decay)
    for field, value in v0.ListFields():
        if field.name in _V0_TRANSFORM:
            setattr(new.transform_param, _V0_TRANSFORM[field.name], value)
        elif v0.type in _V0_PARAMS:
            param = getattr(new, _V0_PARAMS[v0.type])
            name = _V0_FIELDS.get(field.name, field.name)
            if name in param.DESCRIPTOR.fields_by_name:
                _assign(param, name, value)
    return new


def _assign(message: Any, name: str, value: Any) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None:
        getattr(message, name).CopyFrom(value)
    elif isinstance(getattr(message, name), (bool, int, float, str, bytes)):
        setattr(message, name, value)
    else:
        getattr(message, name).append(value)


def _v1_to_v2(old: Any, new: Any) -> None:
    new.type = v1_type(schema.V1LayerParameter.LayerType.Name(old.type))
    if old.HasField("name"):
        new.name = old.name
    for field, value in old.ListFields():
        if field.name.endswith("_param") or field.name == "transform_param":
            getattr(new, field.name).CopyFrom(value)
        elif field.name in ("bottom", "top", "include", "exclude", "loss_weight", "blobs"):
            getattr(new, field.name).extend(value)
    if new.type == "Crop" and not new.HasField("crop_param"):
        new.crop_param.align = True  # the CROP of the first FCN models found its offset itself
    count = max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    for i in range(count):
        spec = new.param.add()
        if i < len(old.param):
            spec.name = old.param[i]
        if i < len(old.blob_share_mode):
            spec.share_mode = old.blob_share_mode[i]
        if i < len(old.blobs_lr):
            spec.lr_mult = old.blobs_lr[i]
        if i < len(old.weight_decay):
            spec.decay_mult = old.weight_decay[i]


def _move_transformations(layer: Any) -> None:
    for name in _DATA_PARAMS:
        if layer.HasField(name):
            param = getattr(layer, name)
            for field in ("scale", "mean_file", "crop_size", "mirror"):
                if param.HasField(field):
                    setattr(layer.transform_param, field, getattr(param, field))
                    param.ClearField(field)


def _inputs_to_layers(net: Any) -> None:
    names = list(net.input)
    if net.input_shape:
        shapes = [list(shape.dim) for shape in net.input_shape]
    else:
        shapes = [list(net.input_dim[i : i + 4]) for i in range(0, len(net.input_dim), 4)]
    if (net.input_shape and net.input_dim) or (shapes and (len(shapes) != len(names) or len(net.input_dim) % 4)):
        raise FileFormatError(
            f"net: expected one input_shape, or four input_dim, for each of {len(names)} inputs, "
            f"got {len(net.input_shape)} input_shape and {len(net.input_dim)} input_dim"
        )
    layers = [schema.LayerParameter() for _ in names]
    for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
        layer.name, layer.type = name, "Input"
        layer.top.append(name)
        if shapes:
            layer.input_param.shape.add().dim.extend(shapes[i])
    layers.extend(net.layer)
    for field in ("input", "input_shape", "input_dim", "layer"):
        net.ClearField(field)
    net.layer.extend(layers)
