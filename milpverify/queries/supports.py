"""What is supported of ONNX and VNN-LIB 2.0, in the standard's words: the content of `milpverify supports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def _opsets() -> Iterable[str]:
    from milpverify.frontends.onnx.lowering import NEWEST_OPSET, OLDEST_OPSET

    return str(OLDEST_OPSET), str(NEWEST_OPSET)


def _element_types() -> Iterable[str]:
    from milpverify.frontends.vnnlib.query import NUMBERS, REAL

    return REAL, *NUMBERS


def _operators() -> Iterable[str]:
    """Those of the standard; what is computed from constants alone is folded, whatever operator it is of."""
    import milpverify.frontends.onnx.lowering  # noqa: F401  (register the rules)
    from milpverify.frontends.onnx.node import RULES
    from milpverify.functions.catalogue import catalogue

    named = (
        RULES.keys() | {name for entry in catalogue().values() for name in entry.onnx} | {"Constant", "ConstantOfShape", "Shape", "Size"}
    )
    return sorted(name for name in named if "." not in name)


CAPABILITIES: dict[str, Callable[[], Iterable[str]]] = {
    "onnx-opset-versions": _opsets,
    "onnx-element-types": _element_types,
    "onnx-operators": _operators,
    "vnnlib-versions": lambda: ("2.0", "2.0"),
    "hidden-node-theories": lambda: ("NH",),
    "multiple-input-output-theories": lambda: ("SIO", "MIO"),
    "multiple-network-theories": lambda: ("SNET", "MENET", "MINET", "MNET"),
    "multiple-node-comparison-theories": lambda: ("SNC", "MNC"),
    "arithmetic-complexity-theories": lambda: ("BND", "OUTC", "LIN"),
    "optimised-disjunctive-reasoning": lambda: ("false",),
    "serialise-assignments": lambda: ("true",),
    "unsat-proofs": lambda: ("false",),
}
"""By the name of a capability, the lines that answer it."""
_SPELT = {
    "multiple-inputs-output-theories": "multiple-input-output-theories",
    "multiple-inputs-outputs-theories": "multiple-input-output-theories",
}
"""How the standard spells one in an example."""


def supported(capability: str) -> str:
    """The lines that answer a capability, which is written as an option.

    Raises:
        InvalidInput: there is no such one.
    """
    name = capability.removeprefix("--")
    name = _SPELT.get(name, name)
    if not capability.startswith("--") or name not in CAPABILITIES:
        raise InvalidInput(f"supports takes one of {', '.join(f'--{known}' for known in CAPABILITIES)}; {capability!r} is none of them")
    return "\n".join(CAPABILITIES[name]())
