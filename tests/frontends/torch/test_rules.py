"""Every torch operation that is lowered is in a case of these tests, which compare it with torch, or is refused in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import ROOT
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_cases import FUNCTIONS, LAYERS, WHERE_ENTRIES_ARE, Lambda

from milpverify.errors import UnsupportedOperator
from milpverify.frontends.torch import trace
from milpverify.frontends.torch.lowering import RULES, Lowering, entry_of, name_of
from milpverify.functions.catalogue import catalogue

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
CASES = [*LAYERS.values(), *((lambda f=f, c=c: Lambda(f, *c), shape) for f, c, shape in FUNCTIONS.values())]
WITHOUT_A_GPU = {"cuda", "cudnn_batch_norm"}
"""What torch itself cannot run where these tests run."""


@contextmanager
def recorded(seen: set[str]) -> Iterator[None]:
    """Notes the names of the operations that rules and the catalogue lower."""
    rules, apply = dict(RULES), Lowering.apply

    def noting(name: str, lower: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            found = lower(*args, **kwargs)
            seen.add(name)
            return found

        return noted

    def applied(self: Lowering, call: Any, *args: Any) -> Any:
        return noting(name_of(call.target), apply)(self, call, *args)

    RULES.update({name: replace(rule, lower=noting(name, rule.lower)) for name, rule in rules.items()})
    Lowering.apply = applied  # type: ignore[method-assign]
    try:
        yield
    finally:
        RULES.update(rules)
        Lowering.apply = apply  # type: ignore[method-assign]


def lowered_in_cases() -> set[str]:
    """The operations that `torch.fx` meets in the cases of `test_trace`; where it fails, those before, which an export writes alike."""
    seen: set[str] = set()
    with recorded(seen):
        for make, shape in CASES:
            torch.manual_seed(0)
            try:
                trace._trace(make().eval(), (1, *shape), torch.float32)
            except (UnsupportedOperator, TypeError):
                continue  # `test_trace` lowers its export
    return seen


def operations() -> set[str]:
    """All that have a rule or are a function of the catalogue."""
    functions = {f.rpartition(".")[2] for entry in catalogue().values() for f in entry.torch if f.startswith("torch.")}
    return RULES.keys() | {name_of(f) for f in functions}


def test_every_operation_is_in_a_case() -> None:
    names = operations()
    seen = lowered_in_cases()
    left = names - seen - WHERE_ENTRIES_ARE.keys() - WITHOUT_A_GPU
    assert sorted(left) == [], "no case of tests/frontends/torch_cases.py lowers them"
    assert WITHOUT_A_GPU | WHERE_ENTRIES_ARE.keys() <= names - seen


ALIAS = r"Alias (?:for|of) :\w+:`~?(?:\w+\.)*(\w+)"
OTHER_DEFAULTS = {"linalg_diagonal"}


def test_what_torch_calls_by_another_name_has_the_same_rule() -> None:
    """`torch.arctan` is `torch.atan`, its documentation says."""
    names = RULES.keys() | operations()
    left = set[str]()
    for home in (torch, Tensor, torch.special, torch.linalg):
        for name in dir(home):
            found = getattr(home, name, None)
            alias = re.search(ALIAS, str(getattr(found, "__doc__", None)))
            if alias and name_of(alias[1]) in names and callable(found):
                left |= {name_of(found)} - names
    assert sorted(left - OTHER_DEFAULTS) == []


class Dispatched(TorchDispatchMode):
    """Notes the operators of aten that a module computes by."""

    def __init__(self, seen: set[Any]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


KEPT_WHOLE = {"_trilinear", "fake_quantize_per_tensor_affine_cachemask", "mkldnn_rnn_layer", "native_group_norm", "rrelu_with_noise"}
"""What an export keeps as the operation that is made of it, which has a rule."""
CONSTANTS = {"empty", "lift_fresh", "scalar_tensor"}


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated:UserWarning")
def test_what_an_export_writes_the_cases_by_has_a_rule() -> None:
    """`torch.fx` meets `F.pdist`, an export `aten._pdist_forward`: either has a rule, or torch writes it by operators that have."""
    seen: set[Any] = set()
    for make, shape in CASES:
        torch.manual_seed(0)
        module, x = make().eval(), torch.rand(1, *shape)
        with Dispatched(seen):
            module(x)  # with gradients, so that less is fused
    written = trace._decompositions()
    left = {name_of(op) for op in seen if op not in written and entry_of(op) is None} - RULES.keys()
    assert sorted(left - KEPT_WHOLE - CONSTANTS) == []


@pytest.mark.parametrize("name", WHERE_ENTRIES_ARE)
def test_where_entries_are_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedOperator, match=rf"{name} .*places that depend on the network's input have no rule"):
        trace.lower_module(nn.Sequential(Lambda(WHERE_ENTRIES_ARE[name])).eval(), (1, 4), torch.float32)


MANUAL = (ROOT / "README.md").read_text().partition("\n**torch**, by the names")[2].partition("\nOutputs that are no real numbers")[0]
INNER = r"native_\w+|cudnn_\w+|unsafe_\w+|\w+_copy|\w+_with_indices|convolution|constant_pad_nd|grid_sampler\w*"
"""Names that torch has for its own use, and does not document."""


def test_the_manual_lists_what_torch_has_names_for() -> None:
    """And nothing else: what stands alone between commas is an operation."""
    known = {name.removeprefix("linalg_") for name in operations()}
    homes = (torch, torch.linalg, torch.special, Tensor, F)
    public = {name for name in known if any(hasattr(home, name) for home in homes) and not name.startswith("_")}
    inner = {name for name in public if re.fullmatch(INNER, name)} - {"index_copy"}
    items = re.split(r"[,;()]|\n- [\w ]+:|values of|conversions", MANUAL.partition("):\n")[2])
    listed = {word for item in items if " " not in (word := item.strip())} - {""}
    assert sorted(public - inner - WHERE_ENTRIES_ARE.keys() - listed) == []
    assert sorted(listed - known) == []
