"""Nets written as Python: tops are attributes of a :class:`NetSpec`, layers are functions of tops.

The interface is pycaffe's (``caffe.net_spec``; https://caffe.berkeleyvision.org/tutorial/net_layer_blob.html)::

    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 500, 500]))
    n.conv = L.Convolution(n.data, num_output=64, kernel_size=3, pad=1)
    n.relu = L.ReLU(n.conv, in_place=True)
    n.pool, n.mask = L.Pooling(n.relu, kernel_size=2, stride=2, ntop=2)
    print(n.to_proto())

Top and layer take the attribute's name; what stays unnamed is called after its type and a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from upscore.errors import ArgumentError, ArgumentTypeError

__all__ = ["Function", "NetSpec", "Top", "make_layer", "to_proto"]


class Top:
    """Output number ``n`` of the layer ``fn``."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> Any:
        """The net (``NetParameter``) that computes this top, with names made from the types."""
        return to_proto(self)

    def __repr__(self) -> str:
        return f"<top {self.n} of a {self.fn.type_name} layer>"


class Function:
    """One layer: its type, its bottoms (``inputs``), its fields (``params``) and its ``tops``."""

    def __init__(self, type_name: str, inputs: Sequence[Top], params: Mapping[str, Any]) -> None:
        for index, bottom in enumerate(inputs):
            if not isinstance(bottom, Top):
                got = f"{type(bottom).__name__} as bottom {index}"
                raise ArgumentTypeError(
                    f"bottoms of {type_name}", "tops of other layers", got, f"L.{type_name}(n.data)"
                )
        self.type_name = type_name
        self.inputs = tuple(inputs)
        self.params = dict(params)
        self.ntop = int(self.params.pop("ntop", 1))
        self.in_place = bool(self.params.pop("in_place", False))
        if self.in_place and len(self.inputs) != self.ntop:
            got = f"{self.ntop} tops for {len(self.inputs)} bottoms"
            raise ArgumentError("in_place", "as many tops as bottoms", got, "in_place=False")
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def to_layer(self, name: str, bottoms: Sequence[str], tops: Sequence[str]) -> Any:
        """The ``LayerParameter`` of this layer under these names."""
        from upscore.caffe import schema

        layer = schema.LayerParameter(name=name, type=self.type_name, bottom=bottoms, top=tops)
        for field, value in self.params.items():
            _assign(_owner(layer, field), field, value)
        return layer


def make_layer(type_name: str, bottoms: Sequence[Top], fields: Mapping[str, Any]) -> Function | Top | tuple[Top, ...]:
    """What ``L.<type_name>(*bottoms, **fields)`` returns: the top, the tops when not one, the layer when none.

    ``ntop`` is the number of tops (1), ``in_place=True`` gives them the names of the bottoms.
    """
    function = Function(type_name, bottoms, fields)
    if function.ntop == 0:
        return function
    return function.tops[0] if function.ntop == 1 else function.tops


_SHARED_PARAMETERS = {"Deconvolution": ("convolution_param",), "SoftmaxWithLoss": ("loss_param", "softmax_param")}
"""Layer types whose fields live in messages that do not carry the type's name."""


@lru_cache(maxsize=1)
def _parameter_fields() -> dict[str, str]:
    """Layer type -> the field of LayerParameter for it: ``Pooling`` -> ``pooling_param``."""
    from upscore.caffe import schema

    fields = schema.LayerParameter.DESCRIPTOR.fields
    return {f.message_type.name[: -len("Parameter")]: f.name for f in fields if f.name.endswith("_param")}


def _owner(layer: Any, field: str) -> Any:
    """The message in ``layer`` that ``field`` belongs to: the type's own one, else the layer itself.

    ``num_output`` of a Convolution is a field of ``convolution_param``; ``loss_weight`` is one of the layer.
    """
    own = _parameter_fields().get(layer.type)
    places = _SHARED_PARAMETERS.get(layer.type, () if own is None else (own,))
    if layer.type.endswith("Loss") and "loss_param" not in places:
        places = (*places, "loss_param")
    if not field.endswith("param"):
        for place in places:
            if field in getattr(layer, place).DESCRIPTOR.fields_by_name:
                return getattr(layer, place)
    if field in layer.DESCRIPTOR.fields_by_name:
        return layer
    expected = f"a field of LayerParameter{''.join(f' or of {place}' for place in places)}"
    raise ArgumentError(f"L.{layer.type}", expected, repr(field), f"{places[0] if places else 'input'}_param=dict(...)")


def _assign(message: Any, field: str, value: Any) -> None:
    """Set a field from Python values: dicts are messages, one value for a repeated field is a list of one."""
    described = message.DESCRIPTOR.fields_by_name.get(field)
    if described is None:
        known = ", ".join(sorted(message.DESCRIPTOR.fields_by_name))
        raise ArgumentError(
            message.DESCRIPTOR.name, f"one of its fields ({known})", repr(field), "fields with these names"
        )
    target = getattr(message, field)
    if hasattr(target, "extend"):
        values = list(value) if isinstance(value, Iterable) and not isinstance(value, (str, Mapping)) else [value]
        for item in values:
            if isinstance(item, Mapping):
                _assign_all(target.add(), item)
            elif described.message_type is not None:
                target.add().CopyFrom(item)
            else:
                target.append(_plain(item))
    elif isinstance(value, Mapping):
        target.SetInParent()
        _assign_all(target, value)
    elif described.message_type is not None:
        target.CopyFrom(value)
    else:
        try:
            setattr(message, field, _plain(value))
        except (TypeError, ValueError) as error:
            example = f"a value of its type in {message.DESCRIPTOR.name}"
            raise ArgumentTypeError(field, "a value that the field can hold", f"{value!r} ({error})", example) from None


def _assign_all(message: Any, fields: Mapping[str, Any]) -> None:
    for field, value in fields.items():
        _assign(message, field, value)


def _plain(value: Any) -> Any:
    """A NumPy number as the Python one that protobuf takes."""
    return value.item() if hasattr(value, "item") else value


class _Writer:
    """Writes functions as layers, bottoms first, giving each top and each layer its name."""

    def __init__(self, names: Mapping[Top | Function, str]) -> None:
        self._names = dict(names)
        self._counts: Counter[str] = Counter()
        self.layers: dict[Function, Any] = {}

    def _name(self, what: Top | Function, type_name: str) -> str:
        if what not in self._names:
            self._counts[type_name] += 1
            self._names[what] = f"{type_name}{self._counts[type_name]}"
        return self._names[what]

    def add(self, wanted: Function) -> None:
        # A stack instead of recursion: nets are deeper than Python's recursion limit allows.
        stack = [wanted]
        while stack:
            function = stack[-1]
            missing = [bottom.fn for bottom in function.inputs if bottom.fn not in self.layers]
            if function in self.layers:
                stack.pop()
            elif missing:
                stack.extend(reversed(missing))
            else:
                stack.pop()
                self._write(function)

    def _write(self, function: Function) -> None:
        bottoms = [self.layers[bottom.fn].top[bottom.n] for bottom in function.inputs]
        tops = bottoms if function.in_place else [self._name(top, function.type_name) for top in function.tops]
        # A layer is called as its first top is, in place too: there the top has a name of its own all the same.
        named: Top | Function = function.tops[0] if function.tops else function
        self.layers[function] = function.to_layer(self._name(named, function.type_name), bottoms, tops)


def to_proto(*tops: Top | Function) -> Any:
    """The net (``NetParameter``) that computes these tops, with names made from the types.

    >>> from upscore.caffe import layers as L
    >>> [layer.name for layer in to_proto(L.ReLU(L.Input(shape=dict(dim=[1, 2])))).layer]
    ['Input1', 'ReLU1']
    """
    return _net(_Writer({}), tops)


def _net(writer: _Writer, tops: Iterable[Top | Function]) -> Any:
    from upscore.caffe import schema

    for top in tops:
        writer.add(top.fn if isinstance(top, Top) else top)
    net = schema.NetParameter()
    net.layer.extend(writer.layers.values())
    return net


class NetSpec:
    """A net under construction: attributes (or items) are its named tops, in the order of assignment.

    >>> from upscore.caffe import layers as L
    >>> n = NetSpec()
    >>> n.data = L.Input(shape=dict(dim=[1, 1, 2, 2]))
    >>> n.up = L.Deconvolution(n.data, num_output=1, kernel_size=3, stride=2)
    >>> [layer.type for layer in n.to_proto().layer]
    ['Input', 'Deconvolution']
    """

    tops: dict[str, Top | Function]

    def __init__(self) -> None:
        object.__setattr__(self, "tops", {})

    def __setattr__(self, name: str, value: Top | Function) -> None:
        if not isinstance(value, (Top, Function)):
            example = f"n.{name} = L.ReLU(n.data), or n.a, n.b = ... for a layer of two tops"
            raise ArgumentTypeError(name, "a top of a layer", f"{value!r}", example)
        self.tops[name] = value

    def __getattr__(self, name: str) -> Top | Function:
        try:
            return self.tops[name]
        except KeyError:
            raise AttributeError(f"the NetSpec has no top {name!r}; it has: {', '.join(self.tops) or 'none'}") from None

    def __delattr__(self, name: str) -> None:
        self.__getattr__(name)
        del self.tops[name]

    def __setitem__(self, name: str, value: Top | Function) -> None:
        setattr(self, name, value)

    def __getitem__(self, name: str) -> Top | Function:
        return self.__getattr__(name)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.tops

    def __iter__(self) -> Iterator[str]:
        return iter(self.tops)

    def keys(self) -> list[str]:
        """The names of the tops."""
        return list(self.tops)

    def vals(self) -> list[Top | Function]:
        """The tops themselves."""
        return list(self.tops.values())

    def update(self, other: NetSpec) -> None:
        """Take over the tops of another specification."""
        self.tops.update(other.tops)

    def get_all_tops(self) -> Any:
        """The net of all named tops: what pycaffe calls this; the same as :meth:`to_proto`."""
        return self.to_proto()

    def to_proto(self) -> Any:
        """The net as a ``NetParameter``; ``str`` of it is the prototxt."""
        return _net(_Writer({top: name for name, top in self.tops.items()}), self.tops.values())
