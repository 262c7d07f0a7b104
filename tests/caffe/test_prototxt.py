"""Prototxt: what is read, what is written, and what the errors say."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

pytest.importorskip("google.protobuf", reason="the Caffe side reads protobuf")

from upscore.caffe import prototxt, schema
from upscore.caffe.prototxt import UnknownField
from upscore.errors import FileFormatError


def net(text: str, **options: bool) -> object:
    return prototxt.read(text, schema.NetParameter(), **options)


def test_everything_the_format_allows() -> None:
    read = net(
        "# a comment\nname: 'a' \"b\"; layer < name: \"x\", type: 'Convolution' "
        "convolution_param: { stride: [2, 3] pad: 0x10 bias_term: false } >\nforce_backward: true"
    )
    assert (read.name, read.force_backward) == ("ab", True)
    p = read.layer[0].convolution_param
    assert (list(p.stride), list(p.pad), p.bias_term) == ([2, 3], [16], False)


def test_a_file_in_any_encoding_and_with_a_mark_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(b"\xef\xbb\xbfname: 'n' # \xb2\xe3 in GBK\r\n")
    assert prototxt.read(path, schema.NetParameter()).name == "n"
    assert prototxt.read(str(path), schema.NetParameter()).name == "n"


def test_what_is_written_reads_back() -> None:
    message = schema.SolverParameter(base_lr=1e-10, net='a"b\\\n', test_iter=[3, 4], random_seed=2**40)
    assert prototxt.read(prototxt.write(message) + "\n", schema.SolverParameter()) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: 'n'\nlayer {\n  convolution_parm { } }",
            r"line 3: LayerParameter has no field convolution_parm; did you",
        ),
        ("name: 'n'\nlayer { qqqq: 1 }", r"line 2: LayerParameter has no field qqqq; lenient=True \(--lenient\)"),
        ("layer {\n name: 3 }", r"line 2: Expected string but found: '3'"),
        ("input_dim: 99999999999\n", "line 1: Value out of range: 99999999999"),
        ("layer { pooling_param { pool: MEAN } }", 'PoolMethod" has no value named MEAN'),
        ("name: 'a'\nname: 'b'\n", 'line 2: message type "NetParameter" should not have multiple "name" fields'),
        ("layer {\n", 'line 1: Expected "}"'),
        ("layer { type: 'x\n' }", "line 1"),
    ],
)
def test_errors_name_line_and_cause(text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        net(text)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text("\n\nfoo: 1")
    with pytest.raises(FileFormatError, match=rf"{path}, line 3: NetParameter has no field foo"):
        prototxt.read(path, schema.NetParameter())


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prototxt.read(tmp_path / "none.prototxt", schema.NetParameter())


def test_lenient_warns_of_every_unknown_field_once_and_keeps_the_rest() -> None:
    text = 'foo: 1\nlayer { bar { baz: [1, 2] < > } name: "k"\n zz: "q" "r" qq: -1.5\n top: "t" }'
    text = text.replace("< >", "")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read = net(text, lenient=True)
    assert [str(w.message) for w in said] == [
        "prototxt, line 1: passing over NetParameter.foo, which is unknown",
        "prototxt, line 2: passing over LayerParameter.bar, which is unknown",
        "prototxt, line 3: passing over LayerParameter.zz, which is unknown",
        "prototxt, line 3: passing over LayerParameter.qq, which is unknown",
    ]
    assert (read.layer[0].name, list(read.layer[0].top)) == ("k", ["t"])


def test_unknown_fields_of_known_messages_are_found_at_any_depth() -> None:
    text = "layer { convolution_param { pad: 1 weight_filler { type: 'x' tpye: 'y' } } }"
    assert prototxt.unknown_fields(text, schema.NetParameter.DESCRIPTOR) == [UnknownField("tpye", "FillerParameter", 1)]


def test_braces_nested_a_hundred_thousand_deep_are_an_error() -> None:
    with pytest.raises(FileFormatError, match=r"nested deeper|has no field"):
        net("layer { x {" + "y {" * 100_000, lenient=True)
