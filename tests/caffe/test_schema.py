"""The message classes against files that Caffe wrote and against facts of proto2."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import schema

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"


def test_a_model_written_by_caffe_parses_without_unknown_fields_and_serializes_to_the_same_bytes() -> None:
    data = (GOLDEN / "tiny_unet.caffemodel").read_bytes()
    net = schema.NetParameter.FromString(data)
    assert net.name == "tiny_unet"
    assert [layer.type for layer in net.layer if layer.blobs] == [
        "Convolution", "PReLU", "Convolution", "Deconvolution", "Convolution",
    ]  # fmt: skip
    net.DiscardUnknownFields()
    assert net.SerializeToString() == data


@pytest.mark.parametrize(
    ("message", "field", "default"),
    [
        ("ConvolutionParameter", "bias_term", True),
        ("ConvolutionParameter", "group", 1),
        ("PoolingParameter", "stride", 1),
        ("CropParameter", "axis", 2),
        ("LRNParameter", "beta", 0.75),
        ("BatchNormParameter", "moving_average_fraction", pytest.approx(0.999)),
        ("FillerParameter", "type", "constant"),
        ("FillerParameter", "sparse", -1),
        ("NetState", "phase", schema.TEST),
        ("SolverParameter", "clip_gradients", -1),
        ("SolverParameter", "type", "SGD"),
        ("UpsampleParameter", "scale", 2),
        ("NormalizeParameter", "eps", pytest.approx(1e-10)),
    ],
)
def test_defaults(message: str, field: str, default: object) -> None:
    assert getattr(schema.MESSAGES[message](), field) == default


def test_enumerations_are_attributes_of_their_messages() -> None:
    assert (schema.PoolingParameter.MAX, schema.PoolingParameter.AVE, schema.EltwiseParameter.PROD) == (0, 1, 0)
    assert schema.V1LayerParameter.LayerType.Value("UNPOOLING") == 42
    assert schema.Phase.values_by_name["TRAIN"].number == schema.TRAIN == 0


def test_the_classes_do_not_meet_those_of_another_caffe_pb2() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool

    other = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    other.message_type.add(name="NetParameter")
    descriptor_pool.Default().Add(other)  # raises when the name is taken
    assert schema.NetParameter(name="mine").name == "mine"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no message 'NoSuchParameter'"):
        schema.NoSuchParameter  # noqa: B018
