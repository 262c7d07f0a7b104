"""``from upscore.caffe import params as P``: the enumerations of Caffe's messages, as ``P.Pooling.MAX``."""

from __future__ import annotations

__all__: list[str] = []


class _Enumerations:
    """The values of the enumerations in one message, such as ``PoolingParameter``."""

    def __init__(self, layer_type: str) -> None:
        self._layer_type = layer_type

    def _values(self) -> dict[str, int]:
        from upscore.caffe import schema

        message = schema.MESSAGES.get(f"{self._layer_type}Parameter")
        if message is None:
            return {}
        return {value.name: value.number for enum in message.DESCRIPTOR.enum_types for value in enum.values}

    def __getattr__(self, name: str) -> int:
        values = self._values()
        if name not in values:
            known = ", ".join(values) or "none"
            raise AttributeError(f"P.{self._layer_type} has no enumeration value {name!r}; it has: {known}")
        return values[name]

    def __dir__(self) -> list[str]:
        return sorted(self._values())


def __getattr__(name: str) -> _Enumerations:
    """The enumerations of the message ``name + "Parameter"``.

    >>> from upscore.caffe import params as P
    >>> P.Pooling.AVE, P.Eltwise.MAX
    (1, 2)
    """
    if not name[:1].isupper():  # every message is; tools probe modules for names that are not
        raise AttributeError(f"{name!r} is no message of Caffe: those begin with a capital, for example P.Pooling")
    return _Enumerations(name)
