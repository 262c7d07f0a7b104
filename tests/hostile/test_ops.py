"""Arguments that cannot work, and numbers at the edge: an error that says what to do, or the right result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import upscore as up
from upscore.errors import ArgumentError, ArgumentTypeError

X = np.random.default_rng(0).random((1, 2, 3, 4), np.float32)
W = np.random.default_rng(1).random((2, 3, 2, 5), np.float32)
Y = np.random.default_rng(2).random((1, 3, 4, 8), np.float32)


def transposed(x=X, w=W, bias=None, **options):
    return lambda: up.conv_transpose(x, w, bias, **options)


def conv(y=Y, w=W, bias=None, **options):
    return lambda: up.conv(y, w, bias, **options)


def backward(grad_y=Y, x=X, w=W, **options):
    return lambda: up.conv_transpose_backward(grad_y, x, w, **options)


REFUSED = {
    "a mask of two": (
        backward(output_mask=(True, False)),
        "output_mask: expected three booleans, for input, weights and bias, got (True, False)",
    ),
    "a mask of numbers": (backward(output_mask=(1, 1, 0)), "output_mask: expected three booleans"),
    "a mask in words": (backward(output_mask="all"), "output_mask: expected three booleans"),
    "rank of x": (transposed(X[0, 0]), "x: expected at least 3 dimensions (N, C, *spatial), got shape (3, 4)"),
    "no rank": (transposed(np.array(1.0)), "x: expected at least 3 dimensions (N, C, *spatial), got shape ()"),
    "rank of w": (
        transposed(w=W[0]),
        "w: expected 4 dimensions (C_in, C_out/groups, *kernel), as x, got shape (3, 2, 5)",
    ),
    "no rank of w": (transposed(w=np.array(1, "f")), "w: expected 4 dimensions (C_in, C_out/groups, *kernel), as x"),
    "conv, rank": (conv(Y[0]), "w: expected 3 dimensions (C_in, C_out/groups, *kernel), as x, got shape (2, 3, 2, 5)"),
    "conv, vector": (conv(w=np.ones(1, "f")), "w: expected 4 dimensions"),
    "channels": (
        transposed(X[:, :1]),
        "x: expected 2 channels, as the first axis of w (2, 3, 2, 5) with groups=1, got 1",
    ),
    "conv, channels": (
        conv(X),
        "x: expected 3 channels, as the second axis times groups of w (2, 3, 2, 5) with groups=1",
    ),
    "groups": (transposed(groups=3), "groups: expected a divisor of the 2 channels of w's first axis, got 3"),
    "no group": (transposed(groups=0), "groups: expected an integer of at least 1, got 0; for example groups=1"),
    "half a group": (transposed(groups=0.5), "groups: expected an integer of at least 1, got 0.5"),
    "stride 0": (transposed(stride=0), "stride: expected an integer of at least 1, got 0; for example stride=1"),
    "negative stride": (transposed(stride=(2, -1)), "stride: expected an integer of at least 1, got -1"),
    "three strides": (
        transposed(stride=(1, 2, 3)),
        "stride: expected one integer, or 2 of them (one per axis), got (1, 2, 3)",
    ),
    "true stride": (transposed(stride=True), "stride: expected an integer of at least 1, got True"),
    "stride in words": (transposed(stride="two"), "stride: expected an integer of at least 1, got 'two'"),
    "negative padding": (transposed(padding=-1), "padding: expected an integer of at least 0, got -1"),
    "triples": (transposed(padding=((1, 2, 3), (1, 1, 1))), "padding: expected pairs (before, after), got (1, 2, 3)"),
    "all cut away": (
        transposed(padding=3),
        "padding: expected a crop that leaves an output of at least 1 from an input of 3",
    ),
    "output_padding": (
        transposed(stride=2, output_padding=(1, 2)),
        "output_padding: expected less than the larger of stride 2 and dilation 1, got 2; for example output_padding=1",
    ),
    "negative output_padding": (
        transposed(output_padding=-1),
        "output_padding: expected an integer of at least 0, got -1",
    ),
    "dilation 0": (transposed(dilation=(1, 0)), "dilation: expected an integer of at least 1, got 0"),
    "output_size 0": (transposed(output_size=(0, 4)), "output_size: expected an integer of at least 1, got 0"),
    "negative output_size": (transposed(output_size=-3), "output_size: expected an integer of at least 1, got -3"),
    "shape of bias": (
        transposed(bias=np.ones((3, 1), np.float32)),
        "bias: expected shape (3,), one number per output channel, got shape (3, 1); for example bias=None",
    ),
    "dtype of bias": (transposed(bias=np.ones(3)), "bias: expected the dtype of w, float32, got float64"),
    "conv, bias": (conv(bias=np.ones(3, np.float32)), "bias: expected shape (2,), one number per output channel"),
    "dtype of w": (
        transposed(w=W.astype(float)),
        "w: expected the dtype of x, float32, got float64; for example w.astype",
    ),
    "integers": (
        transposed(X.astype(np.int64)),
        "x: expected float32, float64, float16 or bfloat16 numbers, got int64",
    ),
    "integer w": (
        transposed(w=W.astype(np.int8)),
        "w: expected float32, float64, float16 or bfloat16 numbers, got int8",
    ),
    "booleans": (transposed(X > 0), "x: expected float32, float64, float16 or bfloat16 numbers, got bool"),
    "complex": (
        transposed(X.astype(complex)),
        "x: expected float32, float64, float16 or bfloat16 numbers, got complex128",
    ),
    "objects": (transposed(X.astype(object)), "x: expected float32, float64, float16 or bfloat16 numbers, got object"),
    "longdouble": (transposed(X.astype(np.longdouble)), "x: expected float32, float64, float16 or bfloat16 numbers"),
    "a list": (transposed(X.tolist()), "x: expected a NumPy or DLPack array, got list; for example numpy.asarray(x)"),
    "nothing": (transposed(w=None), "w: expected a NumPy or DLPack array, got NoneType"),
    "torch integers": (transposed(torch.ones(1, 2, 3, 4, dtype=torch.int32)), "float16 or bfloat16 numbers, got int32"),
    "requires grad": (
        transposed(torch.ones(1, 2, 3, 4, requires_grad=True)),
        "x: expected an array that DLPack can share on the CPU, got one that cannot be shared",
    ),
    "bfloat16 that requires grad": (
        transposed(torch.ones(1, 2, 3, 4, dtype=torch.bfloat16, requires_grad=True)),
        "for example x.detach().cpu()",
    ),
    "another device": (transposed(torch.ones(1, 2, 3, 4, device="meta")), "for example x.detach().cpu()"),
    "sparse": (transposed(torch.ones(1, 2, 3, 4).to_sparse()), "x: expected an array that DLPack can share on the CPU"),
    "no positions": (transposed(X[:, :, :0]), "x: expected spatial axes of at least 1, got shape (1, 2, 0, 4)"),
    "no taps": (transposed(w=W[:, :, :, :0]), "w: expected no axis of size 0, got shape (2, 3, 2, 0)"),
    "no output channels": (transposed(w=W[:, :0]), "w: expected no axis of size 0, got shape (2, 0, 2, 5)"),
    "no input channels": (transposed(X[:, :0], W[:0]), "w: expected no axis of size 0, got shape (0, 3, 2, 5)"),
    "conv, too small": (
        conv(Y[:, :, :, :4]),
        "x: expected a padded size of at least the kernel's extent 5, got 4 + 0 + 0 = 4",
    ),
    "gradient's shape": (
        backward(Y[:, :, :3]),
        "grad_y: expected the forward output's shape (1, 3, 4, 8) and dtype float32, got (1, 3, 3, 8) float32",
    ),
    "gradient's dtype": (backward(Y.astype(float)), "and dtype float32, got (1, 3, 4, 8) float64"),
    "gradient's kind": (backward([1.0]), "grad_y: expected a NumPy or DLPack array, got list"),
    "plan, rank": (
        lambda: up.plan(W[0, 0]),
        "w: expected at least 3 dimensions (C_in, C_out/groups, *kernel), got shape (2, 5)",
    ),
    "plan, size": (lambda: up.plan(W[:0]), "w: expected no axis of size 0, got shape (0, 3, 2, 5)"),
    "plan, groups": (
        lambda: up.plan(W, groups=5),
        "groups: expected a divisor of the 2 channels of w's first axis, got 5",
    ),
    "plan, bias": (
        lambda: up.plan(W, W[0, 0, 0]),
        "bias: expected shape (3,), one number per output channel, got shape (5,)",
    ),
    "plan, rank of x": (lambda: up.plan(W)(X[0]), "x: expected 4 dimensions (N, 2, *spatial), got shape (2, 3, 4)"),
    "plan, channels": (lambda: up.plan(W)(Y), "x: expected 2 channels, as the first axis of w (2, 3, 2, 5)"),
    "plan, dtype": (
        lambda: up.plan(W)(X.astype(float)),
        "x: expected the dtype of the plan's weights, float32, got float64; for example x.astype('float32')",
    ),
    "plan, no positions": (
        lambda: up.plan(W)(X[:, :, :0]),
        "x: expected spatial axes of at least 1, got shape (1, 2, 0, 4)",
    ),
    "output of 2^63": (
        transposed(output_size=2**63),
        "output_size: expected coordinates below 2^62, got 92233720368547758",
    ),
    "output of 2^80": (
        transposed(output_size=2**40),
        "output: expected a size that fits into memory, got shape (1, 3, 1099",
    ),
    "stride of 2^62": (transposed(stride=2**62), "stride: expected coordinates below 2^62, got 4611686018427387904"),
    "stride of 10^30": (
        transposed(X[:, :, :1, :1], stride=10**30, output_size=5),
        "stride: expected coordinates below 2^62",
    ),
    "dilation of 2^62": (
        transposed(dilation=2**62),
        "dilation: expected coordinates below 2^62, got 4611686018427387905",
    ),
    "padding of 2^62": (conv(padding=2**62), "padding: expected coordinates below 2^62, got 4611686018427387904"),
    "padding of 2^80": (
        conv(padding=2**40),
        "output: expected a size that fits into memory, got shape (1, 2, 2199023255",
    ),
    "backward, 2^63": (
        backward(stride=2**63, output_size=(4, 8)),
        "stride: expected coordinates below 2^62, got ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(case):
    call, words = REFUSED[case]
    with pytest.raises(ArgumentError) as error:
        call()
    assert words in str(error.value)
    assert "; for example " in str(error.value)


@pytest.mark.parametrize("case", ["integers", "a list", "requires grad", "dtype of w", "plan, dtype", "true stride"])
def test_wrong_types_are_type_errors(case):
    with pytest.raises(ArgumentTypeError):
        REFUSED[case][0]()


@pytest.mark.parametrize(
    "call",
    [transposed(output_size=(2**20, 2**19)), transposed(stride=10**6), transposed(dilation=10**6), conv(padding=10**6)],
    ids=["output_size", "stride", "dilation", "padding"],
)
def test_what_this_machine_cannot_hold_is_a_memory_error_with_the_size(call):
    """Terabytes: less than 2^62 bytes, and more than any machine that runs these tests gives to a process."""
    with pytest.raises(MemoryError, match=r"no room for an output of shape \(1, [23], \d+, \d+\), \d+\.\d GiB"):
        call()


@pytest.mark.parametrize("stride", [(127, 130), 10**4, 10**6, (1, 10**12), 2**50])
def test_enormous_strides_keep_the_stamp_in_its_place(stride):
    """One input stamps the kernel once whatever the stride; of several, the first stays inside the output."""
    sy = stride if isinstance(stride, int) else stride[0]
    bias = np.array([1, 2, 3], np.float32)
    stamp = np.einsum("nc,cohw->nohw", X[:, :, 0, 0], W) + bias.reshape(3, 1, 1)
    np.testing.assert_allclose(up.conv_transpose(X[:, :, :1, :1], W, bias, stride=stride), stamp, rtol=1e-6)
    if sy > 1:
        y = up.conv_transpose(X, W, bias, stride=stride, output_size=(2, 6))
        np.testing.assert_allclose(y[:, :, :, :5], stamp, rtol=1e-6)
        np.testing.assert_array_equal(y[0, :, :, 5], np.repeat(bias[:, None], 2, axis=1))
    rows = W.reshape(2, 3, 10)
    grad_x, grad_w, grad_bias = up.conv_transpose_backward(Y, X, W, stride=stride, output_size=(4, 8))
    first = np.einsum("ohw,cohw->c", Y[0, :, :2, :5], W)
    np.testing.assert_allclose(grad_x[0, :, 0, 0], first, rtol=1e-6)
    if sy > 1:
        assert np.count_nonzero(grad_x) == 2
        expected = np.einsum("c,ohw->cohw", X[0, :, 0, 0], Y[0, :, :2, :5])
        np.testing.assert_allclose(grad_w, expected, rtol=1e-6)
    assert rows.size == grad_w.size
    np.testing.assert_allclose(grad_bias, Y.sum((0, 2, 3)), rtol=1e-6)
    once = up.conv(Y[:, :, :2, :5], W, stride=stride)
    np.testing.assert_allclose(once[0, :, 0, 0], first, rtol=1e-6)


@pytest.mark.parametrize("dilation", [1000, (3, 5000), (10**5, 1)])
def test_enormous_dilations(dilation):
    dy, dx = (dilation, dilation) if isinstance(dilation, int) else dilation
    y = up.conv_transpose(X, W, dilation=dilation, stride=(2, 3), padding=((1, 0), (0, 2)), output_size=(30, 50))
    expected = np.zeros((1, 3, 2 * 2 + dy + 40, 3 * 3 + 4 * dx + 60), np.float64)
    for i, j in np.ndindex(3, 4):
        for s, t in np.ndindex(2, 5):
            expected[0, :, 2 * i + s * dy, 3 * j + t * dx] += X[0, :, i, j].astype(float) @ W[:, :, s, t]
    np.testing.assert_allclose(y, expected[:, :, 1:31, :50], rtol=1e-6)


@pytest.mark.parametrize("dilation", [(10**9, 1), (1, 10**9), 10**9, 2**50])
@pytest.mark.parametrize("stride", [(2, 3), (1, 2), 1])
def test_taps_out_of_sight_cost_nothing(dilation, stride):
    """Only the first row or column of taps lands in the output; no table may grow with the dilation."""
    dy, dx = (dilation, dilation) if isinstance(dilation, int) else dilation
    seen = W[:, :, : 2 if dy == 1 else 1, : 5 if dx == 1 else 1]
    y = up.conv_transpose(X, W, dilation=dilation, stride=stride, output_size=(9, 13))
    np.testing.assert_allclose(y, up.conv_transpose(X, seen, stride=stride, output_size=(9, 13)), rtol=1e-6)
    ours = up.conv_transpose_backward(y, X, W, dilation=dilation, stride=stride, output_size=(9, 13))
    theirs = up.conv_transpose_backward(y, X, seen, stride=stride, output_size=(9, 13))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    rest = np.zeros_like(W)
    rest[:, :, : seen.shape[2], : seen.shape[3]] = theirs[1]
    np.testing.assert_allclose(ours[1], rest, rtol=1e-6)


@pytest.mark.parametrize("step", [10**6, 10**9])
def test_steps_and_taps_far_apart_that_meet(step):
    """Output 0 is reached by input i through tap 2 - i alone, all others lie far outside."""
    x, w, grad = X[:, :, :1, :3], W[:, :, :1, :3], Y[:, :, :1, :2]
    options = {"stride": (1, step), "dilation": (1, step), "padding": ((0, 0), (2 * step, 0)), "output_size": (1, 2)}
    y = up.conv_transpose(x, w, **options)
    np.testing.assert_allclose(y[0, :, 0, 0], np.einsum("ci,coi->o", x[0, :, 0], w[:, :, 0, ::-1]), rtol=1e-6)
    grad_x, grad_w, _ = up.conv_transpose_backward(grad, x, w, **options)
    first = grad[0, :, 0, 0]
    np.testing.assert_allclose(grad_x[0, :, 0], np.einsum("o,coi->ci", first, w[:, :, 0, ::-1]), rtol=1e-6)
    np.testing.assert_allclose(grad_w[:, :, 0], np.einsum("o,ci->coi", first, x[0, :, 0, ::-1]), rtol=1e-6)


def test_enormous_padding_of_a_strided_convolution():
    """The window at position p begins at p*stride - padding: of these, one meets the input, at its first tap."""
    y = up.conv(Y, W, padding=((3 * 10**9, 0), (0, 10**9)), stride=10**9)
    assert y.shape == (1, 2, 4, 2)
    np.testing.assert_allclose(y[0, :, 3, 0], np.einsum("ohw,cohw->c", Y[0, :, :2, :5], W), rtol=1e-6)
    assert np.count_nonzero(y) == 2


def test_batch_zero():
    assert up.conv_transpose(X[:0], W, stride=(2, 3)).shape == (0, 3, 6, 14)
    assert up.conv(Y[:0], W, stride=(2, 3)).shape == (0, 2, 2, 2)
    grad_x, grad_w, grad_bias = up.conv_transpose_backward(Y[:0], X[:0], W)
    assert grad_x.shape == (0, 2, 3, 4)
    assert grad_w.shape == W.shape
    assert not grad_w.any()
    assert grad_bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_input_that_is_not_finite_stays_near_its_stamp(bad):
    """All of its stamp is not finite either; phases that share a window may carry it on to the next whole stride."""
    rng = np.random.default_rng(4)
    for kernel, stride in [((2, 2), 2), ((3, 3), 2), ((4, 3), (2, 3)), ((5, 5), 3), ((1, 2), (3, 2)), ((9, 9), 4)]:
        x, w = rng.random((1, 2, 8, 9), np.float32), rng.random((2, 3, *kernel), np.float32)
        clean = up.conv_transpose(x, w, stride=stride)
        x[0, 1, 3, 4] = bad
        y = up.conv_transpose(x, w, stride=stride)
        sy, sx = (stride, stride) if isinstance(stride, int) else stride
        stamp, near = np.zeros((2, *y.shape), bool)
        stamp[:, :, 3 * sy : 3 * sy + kernel[0], 4 * sx : 4 * sx + kernel[1]] = True
        near[:, :, 3 * sy : (3 + -(-kernel[0] // sy)) * sy, 4 * sx : (4 + -(-kernel[1] // sx)) * sx] = True
        assert not np.isfinite(y[stamp]).any()
        np.testing.assert_array_equal(y[~near], clean[~near])
