"""The solvers: twelve runs of Caffe's own, step by step, and what surrounds an update."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import upscore.caffe as caffe
from upscore.caffe import schema
from upscore.errors import ArgumentError, FileFormatError

GOLDEN = np.load(Path(__file__).parents[1] / "golden/caffe/solvers.npz")
RUNS = sorted({name.split("/")[0] for name in GOLDEN.files if name.endswith("/loss")})

NET = """
force_backward: true
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 2 dim: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" param { lr_mult: 1 } param { lr_mult: 0.5 decay_mult: 0 }
  inner_product_param { num_output: 1 weight_filler { type: "constant" value: 0.5 } } }
layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" include { stage: "noisy" } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
layer { name: "twice" type: "Power" bottom: "ip" top: "twice" power_param { scale: 2 } include { phase: TEST } }
"""


@pytest.fixture
def write(tmp_path):
    """Writes the net and a solver of these fields; returns the solver's path."""
    (tmp_path / "net.prototxt").write_text(NET)

    def solver(fields, net='net: "net.prototxt"'):
        path = tmp_path / "solver.prototxt"
        policy = "" if "lr_policy" in fields else "lr_policy: 'fixed'"
        path.write_text(f"{net}\nbase_lr: 0.1 {policy}\n{fields}")
        return path

    return solver


def feed(net, seed=0):
    rng = np.random.default_rng(seed)
    net.blobs["x"].data[...] = rng.standard_normal((2, 3))
    net.blobs["t"].data[...] = rng.standard_normal((2, 1))


def values(net):
    return {f"{name}/{i}": b.data.copy() for name, blobs in net.params.items() for i, b in enumerate(blobs)}


@pytest.mark.parametrize("run", RUNS)
def test_runs_of_caffe(run, tmp_path):
    """Loss, rate, weights and updates of 20 iterations, within 1e-5 of Caffe's.

    An update is compared on the scale of the largest of its run: where momentum and gradient cancel, what is left
    is the rounding of both.
    """
    (tmp_path / "net.prototxt").write_text(str(GOLDEN["net"]))
    (tmp_path / "solver.prototxt").write_text(f'net: "net.prototxt"\n{GOLDEN[f"{run}/solver"]}')
    solver = caffe.get_solver(tmp_path / "solver.prototxt")
    names = [name.removeprefix(f"{run}/weights/") for name in GOLDEN.files if name.startswith(f"{run}/weights/")]
    blobs = {name: solver.net.params[name[:-2]][int(name[-1])] for name in names}
    for name, blob in blobs.items():
        blob.data[...] = GOLDEN[f"{run}/weights/{name}"][0]
    solver.net.blobs["data"].data[...] = GOLDEN["data"]
    solver.net.blobs["target"].data[...] = GOLDEN["target"]
    assert len(names) == 5
    for t in range(20):
        assert solver.iter == t
        assert solver.lr == pytest.approx(GOLDEN[f"{run}/lr"][t], rel=1e-6)
        solver.step(1)
        assert solver.net.blobs["loss"].data == pytest.approx(GOLDEN[f"{run}/loss"][t], rel=1e-5)
        for name, blob in blobs.items():
            weights, updates = GOLDEN[f"{run}/weights/{name}"], GOLDEN[f"{run}/update/{name}"]
            np.testing.assert_allclose(blob.data, weights[t + 1], rtol=0, atol=1e-5 * np.abs(weights[t + 1]).max())
            np.testing.assert_allclose(blob.diff, updates[t], rtol=0, atol=1e-5 * np.abs(updates).max())


def test_the_runs_are_all_there():
    assert len(RUNS) == 12


def test_adam_on_a_net(write):
    """The first two steps from Kingma and Ba's algorithm 1, in float64, with Caffe's place for delta."""
    solver = caffe.AdamSolver(write("momentum: 0.9 momentum2: 0.99 delta: 0.001"))
    feed(solver.net)
    w, m, v = np.full((1, 3), 0.5), 0.0, 0.0
    x, t = solver.net.blobs["x"].data.astype(float), solver.net.blobs["t"].data.astype(float)
    bias, bm, bv = np.zeros(1), 0.0, 0.0
    for i in (1, 2):
        error = (x @ w.T + bias - t) / 2
        g, gb = error.T @ x, error.sum(0)
        m, v, bm, bv = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2, 0.9 * bm + 0.1 * gb, 0.99 * bv + 0.01 * gb**2
        scale = 0.1 * np.sqrt(1 - 0.99**i) / (1 - 0.9**i)
        w, bias = w - scale * m / (np.sqrt(v) + 0.001), bias - 0.5 * scale * bm / (np.sqrt(bv) + 0.001)
        solver.step(1)
        np.testing.assert_allclose(solver.net.params["ip"][0].data, w, rtol=1e-5)
        np.testing.assert_allclose(solver.net.params["ip"][1].data, bias, rtol=1e-5)


def test_clipping_comes_before_the_mean_and_the_decay(write):
    solver = caffe.SGDSolver(write("clip_gradients: 0.5 iter_size: 4 weight_decay: 0.2"))
    feed(solver.net)
    solver.net.forward()
    solver.net.backward()
    gradients = [b.diff.copy() for b in solver.net.params["ip"]]
    norm = np.sqrt(sum((g**2).sum() for g in gradients)) * 4  # four passes over the same batch
    assert norm > 0.5
    solver.step(1)
    expected = 0.1 * (gradients[0] * 4 * (0.5 / norm) / 4 + 0.2 * 0.5)
    np.testing.assert_allclose(solver.net.params["ip"][0].diff, expected, rtol=1e-5)
    np.testing.assert_allclose(solver.net.params["ip"][1].diff, 0.05 * gradients[1] * (0.5 / norm), rtol=1e-5)


def test_a_rate_of_zero_changes_nothing(write):
    solver = caffe.SGDSolver(write("momentum: 0.9 weight_decay: 0.1"))
    solver.net.params["ip"][1].data[...] = 3
    solver.net.learnable[1] = (*solver.net.learnable[1][:1], 0.0, 0.0)
    feed(solver.net)
    solver.step(5)
    assert solver.net.params["ip"][1].data == 3
    assert (solver.net.params["ip"][0].data != 0.5).all()


@pytest.mark.parametrize("format_", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdaDelta"])
def test_a_restored_solver_goes_on_as_if_never_stopped(write, tmp_path, monkeypatch, kind, format_):
    monkeypatch.chdir(tmp_path)
    fields = f"""type: '{kind}' momentum: 0.9 snapshot_prefix: 'run' snapshot_format: {format_}
                 lr_policy: 'multistep' gamma: 0.5 stepvalue: 2 stepvalue: 6 random_seed: 1"""
    first = caffe.get_solver(write(fields))
    feed(first.net)
    first.step(4)
    first.snapshot()
    suffix = ".h5" if format_ == "HDF5" else ""
    assert sorted(p.name for p in tmp_path.glob("run*")) == [
        f"run_iter_4.caffemodel{suffix}",
        f"run_iter_4.solverstate{suffix}",
    ]
    second = caffe.get_solver(write(fields))
    feed(second.net)
    second.restore(f"run_iter_4.solverstate{suffix}")
    assert second.iter == 4
    first.step(4)
    second.step(4)
    for name, value in values(first.net).items():
        np.testing.assert_array_equal(values(second.net)[name], value)


def test_weights_that_moved_with_their_state_are_found(write, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    solver = caffe.get_solver(write("snapshot_prefix: 'run/a'"))
    feed(solver.net)
    solver.step(1)
    solver.snapshot()
    trained = values(solver.net)
    (tmp_path / "run").rename(tmp_path / "kept")
    fresh = caffe.get_solver(write(""))
    fresh.restore("kept/a_iter_1.solverstate")
    np.testing.assert_array_equal(values(fresh.net)["ip/0"], trained["ip/0"])


def test_the_state_of_another_solver_is_refused(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.get_solver(write("snapshot_prefix: 'run'")).snapshot()
    with pytest.raises(FileFormatError, match=r"run_iter_0.solverstate: expected a history of shapes"):
        caffe.AdamSolver(write("")).restore("run_iter_0.solverstate")


def test_states_with_shapes_of_old_are_restored(write, tmp_path):
    solver = caffe.get_solver(write("momentum: 0.5"))
    state = schema.SolverState(iter=7)
    state.history.add(num=1, channels=1, height=1, width=3, data=[1, 2, 3])
    state.history.add(num=1, channels=1, height=1, width=1, data=[4])
    (tmp_path / "old.solverstate").write_bytes(state.SerializeToString())
    solver.restore(tmp_path / "old.solverstate")
    solver.apply_update()  # no gradient: the update is the decayed momentum
    assert solver.iter == 7
    assert solver.net.params["ip"][0].diff.tolist() == [[0.5, 1, 1.5]]
    assert solver.net.params["ip"][1].diff.tolist() == [2]


def test_snapshots_without_the_gradients_that_were_asked_for(write):
    with pytest.warns(RuntimeWarning, match="snapshot_diff: snapshots hold weights, and no gradients"):
        caffe.get_solver(write("snapshot_diff: true"))


def test_solve_trains_tests_displays_and_snapshots(write, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    solver = caffe.get_solver(
        write("max_iter: 4 display: 2 test_iter: 3 test_interval: 2 snapshot: 3 snapshot_prefix: 'run' average_loss: 2")
    )
    feed(solver.net)
    feed(solver.test_nets[0])
    with caplog.at_level(logging.INFO, logger="upscore.caffe"):
        solver.solve()
    assert solver.iter == 4
    assert sorted(p.name for p in tmp_path.glob("*.caffemodel")) == ["run_iter_3.caffemodel", "run_iter_4.caffemodel"]
    tested = [record.getMessage() for record in caplog.records if "testing net 0" in record.getMessage()]
    assert tested == [f"Iteration {i}, testing net 0" for i in (0, 2, 4)]
    shown = [record.getMessage().split(",")[0] for record in caplog.records if ", loss = " in record.getMessage()]
    assert shown == ["Iteration 0", "Iteration 2", "Iteration 4"]
    # the last test ran with the weights as they now are
    out = solver.test_nets[0].blobs["twice"].data
    x = solver.test_nets[0].blobs["x"].data
    np.testing.assert_allclose(
        out, 2 * (x @ solver.net.params["ip"][0].data.T + solver.net.params["ip"][1].data), rtol=1e-5
    )


def test_solving_resumes(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = "max_iter: 3 snapshot_prefix: 'run' momentum: 0.9"
    whole = caffe.get_solver(write(fields))
    feed(whole.net)
    whole.step(1)
    whole.snapshot()
    whole.solve()
    rest = caffe.get_solver(write(fields))
    feed(rest.net)
    rest.solve("run_iter_1.solverstate")
    assert rest.iter == 3
    np.testing.assert_array_equal(values(rest.net)["ip/0"], values(whole.net)["ip/0"])


def test_states_choose_the_layers_of_each_net(write):
    solver = caffe.get_solver(
        write("""train_state { stage: 'noisy' } test_iter: 1 test_iter: 1 test_interval: 5
                 test_state {} test_state { stage: 'noisy' }""")
    )
    assert "drop" in solver.net.layer_dict
    assert "twice" not in solver.net.layer_dict
    assert ["drop" in net.layer_dict for net in solver.test_nets] == [False, True]
    assert all("twice" in net.layer_dict for net in solver.test_nets)


def test_nets_inside_the_solver(write):
    solver = caffe.get_solver(write("test_iter: 1 test_interval: 1", net=f"net_param {{ {NET} }}"))
    assert list(solver.net.params) == list(solver.test_nets[0].params) == ["ip"]


def test_callbacks_surround_the_gradients(write):
    solver, seen = caffe.get_solver(write("")), []
    feed(solver.net)
    solver.add_callback(
        lambda: seen.append(float(np.abs(solver.net.params["ip"][0].diff).sum())),
        lambda: seen.append(float(np.abs(solver.net.params["ip"][0].diff).sum())),
    )
    solver.step(2)
    assert len(seen) == 4
    assert seen[0] == seen[2] == 0
    assert seen[1] > 0 < seen[3]


def test_initial_weights(write, tmp_path):
    source = caffe.get_solver(write(""))
    source.net.params["ip"][0].data[...] = [1, 2, 3]
    source.net.save(tmp_path / "w.caffemodel")
    solver = caffe.get_solver(write("weights: 'w.caffemodel' test_iter: 1 test_interval: 1"))
    assert solver.net.params["ip"][0].data.tolist() == [[1, 2, 3]]
    assert solver.test_nets[0].params["ip"][0].data.tolist() == [[1, 2, 3]]


def test_input_shapes_that_the_nets_do_not_say(write, tmp_path):
    text = NET.replace('type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } }', 'type: "Data" top: "x"')
    (tmp_path / "net.prototxt").write_text(text)
    with pytest.raises(ArgumentError, match="input_shapes: expected a shape for 'x'"):
        caffe.get_solver(write(""))
    solver = caffe.get_solver(write("test_iter: 1 test_interval: 1"), input_shapes={"x": (2, 5)})
    assert [net.blobs["x"].shape for net in (solver.net, *solver.test_nets)] == [(2, 5)] * 2


def test_every_type_has_its_class(write):
    for kind in ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"):
        path = write(f"type: '{kind}'")
        solver = caffe.get_solver(path)
        assert type(solver) is getattr(caffe, f"{kind}Solver")
        assert solver.type == kind
        assert type(getattr(caffe, f"{kind}Solver")(path)) is type(solver)
    assert caffe.get_solver(write("solver_type: ADAGRAD")).type == "AdaGrad"


def test_the_seed_repeats_the_fillers(write, tmp_path):
    (tmp_path / "net.prototxt").write_text(NET.replace('type: "constant" value: 0.5', 'type: "xavier"'))
    one, two, other = (caffe.get_solver(write(f"random_seed: {seed}")) for seed in (3, 3, 4))
    np.testing.assert_array_equal(values(one.net)["ip/0"], values(two.net)["ip/0"])
    assert (values(one.net)["ip/0"] != values(other.net)["ip/0"]).all()


@pytest.mark.parametrize(
    ("fields", "net", "error", "message"),
    [
        ("", "", FileFormatError, "expected one of net, net_param, train_net, train_net_param, got none"),
        ("train_net: 'net.prototxt'", None, FileFormatError, "got net and train_net"),
        ("test_iter: 1 test_net: 'a' test_net: 'b'", None, FileFormatError, "got 1 test_iter for 2 test nets"),
        ("test_iter: 1", None, FileFormatError, "expected a test_interval of at least 1"),
        ("test_iter: 1 test_iter: 2 test_interval: 1 test_state {}", None, FileFormatError, "got 1 test_state for 2"),
        ("type: 'Rprop'", None, ArgumentError, "type: expected one of SGD, Nesterov, .*, got 'Rprop'"),
        ("type: 'AdaGrad' momentum: 0.5", None, ArgumentError, "momentum: expected 0 for AdaGrad, got 0.5"),
        (
            "type: 'RMSProp' rms_decay: 1.5",
            None,
            ArgumentError,
            "rms_decay: expected at least 0 and less than 1, got 1.5",
        ),
        ("lr_policy: 'cosine'", None, ArgumentError, "lr_policy: expected one of fixed"),
    ],
)
def test_mistakes_are_named(write, fields, net, error, message):
    path = write(fields) if net is None else write(fields, net=net)
    with pytest.raises(error, match=message):
        caffe.get_solver(path)


def test_the_solver_itself_has_no_rule(write):
    with pytest.raises(ArgumentError, match="a solver with an update rule"):
        caffe.Solver(write(""))


def test_snapshots_are_readable_as_messages(write, tmp_path, monkeypatch):
    """Protobuf's own parser reads what was written, field by field."""
    monkeypatch.chdir(tmp_path)
    solver = caffe.get_solver(write("snapshot_prefix: 'run' momentum: 0.5"))
    feed(solver.net)
    solver.step(2)
    solver.snapshot()
    state = schema.SolverState.FromString((tmp_path / "run_iter_2.solverstate").read_bytes())
    assert (state.iter, state.learned_net, state.current_step) == (2, "run_iter_2.caffemodel", 0)
    history = [caffe.io.blobproto_to_array(blob) for blob in state.history]
    for mine, blob in zip(history, solver.net.params["ip"], strict=True):
        np.testing.assert_array_equal(mine, blob.diff)  # SGD's history is its last update


def test_training_leaves_no_graph_behind(write):
    solver = caffe.get_solver(write(""))
    feed(solver.net)
    solver.step(1)
    assert not torch.is_grad_enabled() or all(b.tensor.grad_fn is None for b in solver.net.blobs.values())
