"""Old nets in today's form."""

from __future__ import annotations

import pytest

pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema
from upscore.caffe.upgrade import upgrade, upgrade_solver
from upscore.errors import FileFormatError


def upgraded(text: str) -> object:
    return upgrade(prototxt.read(text + "\n", schema.NetParameter()))


def same(found: object, text: str) -> None:
    assert prototxt.write(found) == prototxt.write(prototxt.read(text, schema.NetParameter()))


def test_v1_layers_with_their_learning_rates_and_shared_parameters() -> None:
    found = upgraded("""
        layers { bottom: "x" top: "y" name: "up" type: DECONVOLUTION blobs_lr: 1 blobs_lr: 2 weight_decay: 1
          weight_decay: 0 param: "w" blob_share_mode: PERMISSIVE include: { phase: TRAIN } loss_weight: 0.5
          convolution_param { num_output: 3 kernel_size: 4 } }
        layers { bottom: "y" bottom: "l" top: "loss" name: "loss" type: SOFTMAX_LOSS }""")
    same(
        found,
        """
        layer { name: "up" type: "Deconvolution" bottom: "x" top: "y" loss_weight: 0.5 include { phase: TRAIN }
          param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
          convolution_param { num_output: 3 kernel_size: 4 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "l" top: "loss" }""",
    )


def test_every_v1_type_has_a_name() -> None:
    names = [value.name for value in schema.V1LayerParameter.DESCRIPTOR.enum_types_by_name["LayerType"].values]
    for name in names:
        found = upgraded(f"layers {{ type: {name} }}").layer[0].type
        assert found.upper() == {"SOFTMAX_LOSS": "SOFTMAXWITHLOSS", "NONE": ""}.get(name, name.replace("_", ""))


def test_v0_with_its_padding_layer_folded_in() -> None:
    found = upgraded("""
        input: "x" input_dim: 1 input_dim: 2 input_dim: 9 input_dim: 8
        layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" }
        layers { layer { name: "c" type: "conv" num_output: 3 kernelsize: 5 biasterm: false group: 2 stride: 3
          weight_filler { type: "xavier" } blobs_lr: 1 blobs_lr: 2 weight_decay: 3 } bottom: "p" top: "c" }
        layers { layer { name: "p" type: "pool" pool: AVE kernelsize: 3 stride: 2 } bottom: "c" top: "q" }
        layers { layer { name: "d" type: "data" source: "db" batchsize: 4 cropsize: 7 scale: 0.5 meanfile: "m" }
          top: "d" }
        layers { layer { name: "cat" type: "concat" concat_dim: 2 } bottom: "q" bottom: "d" top: "e" }""")
    same(
        found,
        """
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 9 dim: 8 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "c"
          param { lr_mult: 1 decay_mult: 3 } param { lr_mult: 2 }
          convolution_param { num_output: 3 bias_term: false pad: 2 kernel_size: 5 group: 2 stride: 3
            weight_filler { type: "xavier" } } }
        layer { name: "p" type: "Pooling" bottom: "c" top: "q" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
        layer { name: "d" type: "Data" top: "d" data_param { source: "db" batch_size: 4 }
          transform_param { scale: 0.5 crop_size: 7 mean_file: "m" } }
        layer { name: "cat" type: "Concat" bottom: "q" bottom: "d" top: "e" concat_param { concat_dim: 2 } }""",
    )


def test_inputs_of_both_old_kinds() -> None:
    same(
        upgraded('input: "a" input: "b" input_shape { dim: 2 } input_shape { dim: 3 dim: 4 }'),
        """
        layer { name: "a" type: "Input" top: "a" input_param { shape { dim: 2 } } }
        layer { name: "b" type: "Input" top: "b" input_param { shape { dim: 3 dim: 4 } } }""",
    )


def test_a_data_layers_transformation_and_batch_norms_rates() -> None:
    found = upgraded("""
        layer { name: "d" type: "ImageData" top: "d" image_data_param { source: "s" mirror: true mean_file: "m" } }
        layer { name: "b" type: "BatchNorm" bottom: "d" top: "b" param { } param { lr_mult: 3 } param { } }""")
    assert (found.layer[0].transform_param.mirror, found.layer[0].transform_param.mean_file) == (True, "m")
    assert [(p.lr_mult, p.decay_mult) for p in found.layer[1].param] == [(0, 0)] * 3


def test_the_net_given_is_left_as_it_was() -> None:
    net = prototxt.read('input: "x" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1\n', schema.NetParameter())
    before = net.SerializeToString()
    upgrade(net)
    assert net.SerializeToString() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('layer { name: "a" } layers { name: "b" }', "expected either layer .* or the older layers"),
        ('input: "a" input_dim: 1 input_dim: 2', "four input_dim, for each of 1 inputs, got 0 input_shape and 2"),
        ('layers { layer { name: "z" type: "warp" } }', "layer 'z': 'warp' is no V0 layer type; known are accuracy"),
        (
            'layers { layer { name: "p" type: "padding" pad: 1 } bottom: "x" top: "p" } '
            'layers { layer { name: "r" type: "relu" } bottom: "p" top: "r" }',
            "layer 'r': expected conv or pool after the padding layer 'p', got 'relu'",
        ),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        upgraded(text)


def test_solver_types() -> None:
    solver = prototxt.read("solver_type: ADADELTA\n", schema.SolverParameter())
    assert upgrade_solver(solver).type == "AdaDelta"
    assert upgrade_solver(schema.SolverParameter()).type == "SGD"
    with pytest.raises(FileFormatError, match="expected type or the older solver_type, got both"):
        upgrade_solver(schema.SolverParameter(type="Adam", solver_type=5))
