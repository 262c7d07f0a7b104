"""Caffe's solvers: a train net, its test nets, an update rule and a learning rate policy.

The interface is pycaffe's; what happens in an iteration, and in which order, is BVLC Caffe's
(src/caffe/solver.cpp, src/caffe/solvers/sgd_solver.cpp). Progress (``display``, tests, snapshots) is logged under the
name ``upscore.caffe``: ``logging.basicConfig(level="INFO")`` shows it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from upscore.caffe import caffemodel, hdf5, mode, prototxt, schema
from upscore.caffe.learning_rate import LearningRate
from upscore.caffe.net import Net
from upscore.caffe.update_rules import (
    SGD,
    AdaDelta,
    AdaGrad,
    Adam,
    Nesterov,
    RMSProp,
    UpdateRule,
    clip_gradients,
    regularize,
)
from upscore.caffe.upgrade import upgrade_solver
from upscore.errors import ArgumentError, FileFormatError

__all__ = [
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "NesterovSolver",
    "RMSPropSolver",
    "SGDSolver",
    "Solver",
    "get_solver",
]

_log = logging.getLogger("upscore.caffe")


class Solver:
    """Trains a net as a solver prototxt says; use one of the subclasses, or :func:`get_solver`.

    Args:
        solver_file: the solver prototxt, a path or the text itself. Nets that it names are looked for from the
            working directory, then beside the file.
        input_shapes: as in :class:`upscore.caffe.Net`, for train and test nets alike.

    Attributes:
        net: the train net (:class:`upscore.caffe.Net`).
        test_nets: the test nets; they take over the weights of ``net`` when they are tested.
        iter: iterations done.

    Raises:
        FileFormatError: when the solver does not say what it trains.
        ArgumentError: naming a field that does not suit the solver.
    """

    type: ClassVar[str]

    def __init__(
        self, solver_file: str | os.PathLike[str], *, input_shapes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self._input_shapes = input_shapes
        self.param = upgrade_solver(prototxt.read(solver_file, schema.SolverParameter()))
        self._folder = Path(solver_file).parent if Path(solver_file).is_file() else Path()
        if self.param.snapshot_diff:
            warnings.warn("snapshot_diff: snapshots hold weights, and no gradients", RuntimeWarning, stacklevel=2)
        self._rule = self._make_rule(self.param)
        self._rate = _learning_rate(self.param)
        if self.param.random_seed >= 0:
            mode.set_random_seed(self.param.random_seed)
        self.net = self._train_net()
        self.test_nets = self._test_nets()
        for weights in self.param.weights:
            for name in weights.split(","):
                for net in (self.net, *self.test_nets):
                    net.copy_from(self._find(name.strip()))
        self.iter = 0
        self._history = [
            torch.zeros_like(blob.tensor) for _ in range(self._rule.slots) for blob, _, _ in self.net.learnable
        ]
        self._losses: deque[float] = deque(maxlen=max(1, self.param.average_loss))
        self._callbacks: list[tuple[Callable[[], object], Callable[[], object]]] = []

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        raise ArgumentError("Solver", "a solver with an update rule", "Solver itself", "caffe.SGDSolver(path)")

    # The nets.

    def _find(self, name: str) -> str:
        beside = self._folder / name
        return str(beside) if not Path(name).exists() and beside.exists() else name

    def _train_net(self) -> Net:
        p = self.param
        given = [f for f in ("net", "net_param", "train_net", "train_net_param") if p.HasField(f)]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise FileFormatError(f"solver: expected one of net, net_param, train_net, train_net_param, got {got}")
        value = getattr(p, given[0])
        return self._net(value, schema.TRAIN, p.train_state)

    def _test_nets(self) -> list[Net]:
        p = self.param
        sources: list[Any] = [*p.test_net_param, *p.test_net]
        general = [getattr(p, f) for f in ("net", "net_param") if p.HasField(f)]
        if general:
            sources += general * (len(p.test_iter) - len(sources))
        if len(sources) != len(p.test_iter):
            got = f"{len(p.test_iter)} test_iter for {len(sources)} test nets"
            raise FileFormatError(f"solver: expected one test_iter for each test net, got {got}")
        if len(p.test_state) not in (0, len(sources)):
            got = f"{len(p.test_state)} test_state for {len(sources)} test nets"
            raise FileFormatError(f"solver: expected one test_state for each test net, or none, got {got}")
        if sources and p.test_interval < 1:
            raise FileFormatError("solver: expected a test_interval of at least 1 beside test nets, got 0")
        states = list(p.test_state) or [schema.NetState()] * len(sources)
        return [self._net(source, schema.TEST, state) for source, state in zip(sources, states, strict=True)]

    def _net(self, source: Any, phase: int, wanted: Any) -> Net:
        """The net in the state that is the phase, then the net's own, then the solver's."""
        param = prototxt.read(self._find(source), schema.NetParameter()) if isinstance(source, str) else source
        state = schema.NetState(phase=phase)
        state.MergeFrom(param.state)
        state.MergeFrom(wanted)
        stages = list(state.stage)
        return Net(param, state.phase, level=state.level, stages=stages, input_shapes=self._input_shapes)

    # Training.

    @property
    def lr(self) -> float:
        """The learning rate of the coming iteration."""
        return self._rate(self.iter)

    def add_callback(self, on_start: Callable[[], object], on_gradients_ready: Callable[[], object]) -> None:
        """Call ``on_start`` before each iteration's first pass, ``on_gradients_ready`` before each update."""
        self._callbacks.append((on_start, on_gradients_ready))

    def solve(self, resume_file: str | os.PathLike[str] | None = None) -> None:
        """Train up to ``max_iter``, from a solverstate where one is given, and snapshot at the end."""
        if resume_file is not None:
            self.restore(resume_file)
        p = self.param
        self.step(p.max_iter - self.iter)
        if p.snapshot_after_train and not (p.snapshot and self.iter % p.snapshot == 0):
            self.snapshot()
        if p.display and self.iter % p.display == 0:
            _log.info("Iteration %d, loss = %g", self.iter, self.net.forward_loss())
        if p.test_interval and self.iter % p.test_interval == 0:
            self._test_all()

    def step(self, iters: int) -> None:
        """Train this many iterations."""
        p = self.param
        for _ in range(iters):
            self.net.clear_param_diffs()
            if p.test_interval and self.iter % p.test_interval == 0 and (self.iter or p.test_initialization):
                self._test_all()
            for on_start, _ in self._callbacks:
                on_start()
            loss = 0.0
            for _ in range(p.iter_size):
                loss += self.net.forward_loss()
                self.net.backward_all()
            self._losses.append(loss / p.iter_size)
            if p.display and self.iter % p.display == 0:
                self._display()
            for _, on_gradients_ready in self._callbacks:
                on_gradients_ready()
            self.apply_update()
            self.iter += 1
            if p.snapshot and self.iter % p.snapshot == 0:
                self.snapshot()

    @torch.no_grad()
    def apply_update(self) -> None:
        """Turn the gradients into updates and subtract them; a parameter's ``diff`` then holds its update.

        In Caffe's order: clipping, the mean over ``iter_size``, weight decay, the update rule.
        """
        p, learnable = self.param, self.net.learnable
        if p.clip_gradients >= 0:
            clip_gradients([blob.gradient for blob, _, _ in learnable], p.clip_gradients)
        rate = self.lr
        for i, (blob, lr_mult, decay_mult) in enumerate(learnable):
            gradient, weights = blob.gradient, blob.tensor
            if p.iter_size > 1:
                gradient.div_(p.iter_size)
            regularize(gradient, weights, p.weight_decay * decay_mult, p.regularization_type)
            self._rule(gradient, self._history[i :: len(learnable)], rate * lr_mult, self.iter)
            weights.sub_(gradient)

    def _display(self) -> None:
        loss = sum(self._losses) / len(self._losses)
        _log.info("Iteration %d, loss = %g, lr = %g", self.iter, loss, self.lr)
        for name in self.net.outputs:
            _log.info("    Train net output %s = %s", name, self.net.blobs[name].data.ravel()[:8].tolist())

    def _test_all(self) -> None:
        for index, (net, iterations) in enumerate(zip(self.test_nets, self.param.test_iter, strict=True)):
            net.share_with(self.net)
            totals: dict[str, Any] = {}
            loss = 0.0
            for _ in range(iterations):
                loss += net.forward_loss()
                for name in net.outputs:
                    totals[name] = totals.get(name, 0) + net.blobs[name].data
            _log.info("Iteration %d, testing net %d", self.iter, index)
            if self.param.test_compute_loss:
                _log.info("    Test loss = %g", loss / iterations)
            for name, total in totals.items():
                _log.info("    Test net output %s = %s", name, (total / iterations).ravel()[:8].tolist())

    # Snapshots.

    def snapshot(self) -> None:
        """Write ``<prefix>_iter_<n>.caffemodel`` and ``.solverstate`` (with ``.h5`` for ``snapshot_format: HDF5``)."""
        p = self.param
        prefix = p.snapshot_prefix or "snapshot"
        stem = f"{prefix}_iter_{self.iter}"
        suffix = ".h5" if p.snapshot_format == schema.SolverParameter.HDF5 else ""
        model, state = f"{stem}.caffemodel{suffix}", f"{stem}.solverstate{suffix}"
        self.net.save(model)
        history = [h.numpy() for h in self._history]
        snapshot = caffemodel.Snapshot(self.iter, model, self._rate.steps_taken(self.iter), history)
        (hdf5.write_state if suffix else caffemodel.write_state)(state, snapshot)
        _log.info("Snapshotting to %s and %s", model, state)

    def restore(self, state_file: str | os.PathLike[str]) -> None:
        """Go on from a solverstate (binary or HDF5) and the weights that it names.

        Raises:
            FileFormatError: when it was written for another net or another kind of solver.
        """
        state = (hdf5 if hdf5.is_hdf5(state_file) else caffemodel).read_state(state_file)
        # Sizes, not shapes: before 2014 a bias of C was written as (1, 1, 1, C).
        if [h.size for h in state.history] != [h.numel() for h in self._history]:
            wanted, got = [tuple(h.shape) for h in self._history], [h.shape for h in state.history]
            raise FileFormatError(f"{state_file}: expected a history of shapes {wanted} for this solver, got {got}")
        if state.learned_net:
            beside = Path(state_file).parent / Path(state.learned_net).name
            learned = state.learned_net if Path(state.learned_net).exists() else str(beside)
            self.net.copy_from(learned)
        self.iter = state.iteration
        for mine, saved in zip(self._history, state.history, strict=True):
            np.copyto(mine.numpy(), saved.reshape(mine.shape))


def _learning_rate(p: Any) -> LearningRate:
    return LearningRate(p.lr_policy, p.base_lr, p.gamma, p.power, p.stepsize, tuple(p.stepvalue), p.max_iter)


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    type = "SGD"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        return SGD(param.momentum)


class NesterovSolver(Solver):
    """Nesterov's accelerated gradient."""

    type = "Nesterov"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        return Nesterov(param.momentum)


class AdaGradSolver(Solver):
    """AdaGrad, without momentum."""

    type = "AdaGrad"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        _refuse_momentum(param, "AdaGrad")
        return AdaGrad(param.delta)


class RMSPropSolver(Solver):
    """RMSProp, without momentum."""

    type = "RMSProp"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        _refuse_momentum(param, "RMSProp")
        if not 0 <= param.rms_decay < 1:
            raise ArgumentError("rms_decay", "at least 0 and less than 1", param.rms_decay, "rms_decay: 0.98")
        return RMSProp(param.rms_decay, param.delta)


class AdaDeltaSolver(Solver):
    """AdaDelta; ``momentum`` is its decay."""

    type = "AdaDelta"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        return AdaDelta(param.momentum, param.delta)


class AdamSolver(Solver):
    """Adam; ``momentum`` and ``momentum2`` are its betas."""

    type = "Adam"

    @staticmethod
    def _make_rule(param: Any) -> UpdateRule:
        return Adam(param.momentum, param.momentum2, param.delta)


def _refuse_momentum(param: Any, name: str) -> None:
    if param.momentum:
        raise ArgumentError("momentum", f"0 for {name}", param.momentum, f"no momentum in the solver of type {name}")


_SOLVERS = {s.type: s for s in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)}


def get_solver(
    solver_file: str | os.PathLike[str], *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> Solver:
    """The solver of the ``type`` that the prototxt names; arguments as for :class:`Solver`.

    Raises:
        ArgumentError: for a type that does not exist.
    """
    kind = upgrade_solver(prototxt.read(solver_file, schema.SolverParameter())).type
    if kind not in _SOLVERS:
        raise ArgumentError("type", f"one of {', '.join(_SOLVERS)}", repr(kind), 'type: "SGD"')
    return _SOLVERS[kind](solver_file, input_shapes=input_shapes)
