"""How bounds are asked for: what is known and needed, until when, by which method, and the numbers of passes and of what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from milpverify.propagation.relevance import EVERYTHING
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    import torch

    from milpverify.config import Deadline
    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.state import Bounds


class Method(Enum):
    """How pre-activations are bounded."""

    INTERVALS = "intervals"  # one after the other
    BACKWARD = "backward"  # a pass for every undecided one
    FORWARD = "forward"  # linear forms carried along, and inherited bounds
    BOTH = "both"  # linear forms first, then a pass for what they leave undecided


class CostTuning(Tuning):
    """What passes are estimated to cost, in multiplications of matrix products, and what is made of the estimates."""

    entry: float = 60.0
    cut: float = 400.0
    """What an entry of a row costs at a node, and one of a window that lines are cut out for."""
    share: float = 0.6
    """Of a node, what a window may hold to be worth its while."""
    cheaper: float = 1.2
    small: float = 2e7
    """So many times cheaper rows in windows must be estimated; passes of so few multiplications are made before tiles are compared."""
    backward_rate: float = 3e10
    forward_rate: float = 1e9
    """Multiplications a second of backward passes in float32 and of forward forms, on one core: rates of the kind, whatever the machine."""
    cheap: float = 3e9
    """What all backward passes may take to need nothing before them: a tenth of a second."""
    few: int = 64
    """Inputs that may vary for forward forms, which carry a column for each."""
    order: float = 3.0
    """The power of the width of a box, at most, that what forward forms lose falls with."""


class BoundTuning(Tuning):
    """How much is propagated at once, and which passes are expected to gain what they cost."""

    chunk_cpu: int = 1 << 21
    chunk_cuda: int = 1 << 28
    """Bytes that a matrix of multipliers may grow to at a node of mean size: on a CPU it should stay within the caches."""
    memory_cpu: int = 1 << 30
    memory_cuda: int = 1 << 34
    """Bytes that the multipliers of a pass may take at once."""
    copies: int = 6
    """So many matrices of multipliers are alive at once: those that wait, relaxed ones, and what operators make on the way."""
    sample: int = 32
    dear: float = 1e6
    gains: float = 0.5
    """Entries of a layer whose rows take `dear` multiplications each are tried first where forward forms have bounded them: the others
    follow if the sample gains so much of its width (an entry that is decided, all of it)."""
    gain: float = 0.005
    """Of a neuron's width, what a two-sided pass should gain after one with a slope for both sides."""
    hopeless: float = 0.75
    """Of the norm inequality's value, what a row's true reach is expected to exceed: 0.8 for Gaussian coefficients."""
    quadratic_inputs: int = 8
    """With more inputs that vary quadratic forms are dear, and boxes are not bisected to where second order counts."""
    tangent_rounds: int = 3
    """Of coordinate descent, for the point where the plane below a quadratic form touches."""
    lookup: int = 2**12
    """Entries of the matrix of a lookup table that is bounded as one function."""

    def chunk(self, device: torch.device) -> int:
        """Bytes of a matrix of multipliers on a device."""
        return self.chunk_cuda if device.type == "cuda" else self.chunk_cpu

    def memory(self, device: torch.device) -> int:
        """Bytes of all multipliers of a pass on a device."""
        return self.memory_cuda if device.type == "cuda" else self.memory_cpu


@dataclass(frozen=True, eq=False)
class BoundRequest:
    """What bounds of a batch of boxes are asked for, beside the network and the boxes.

    Attributes:
        known: bounds of nodes that are known to hold on these boxes (from a parent subproblem, say), met with the new ones.
        needed: the entries that matter; the others keep their interval bounds.
        deadline: past it the remaining neurons keep their interval bounds.
        inner: the precision of the two-sided passes behind the first nonlinear nodes (`Graph.to`), where it is not that of the others.
        method: how the pre-activations are bounded.
        second_order: whether rows are bounded to second order as well, where products and few inputs allow that.
        screened_before: what is known comes from passes like these: what it leaves undecided, parallel slopes rarely decide.
    """

    known: dict[int, Bounds] | None = None
    needed: Needed = field(default_factory=lambda: EVERYTHING)
    deadline: Deadline | None = None
    inner: torch.dtype | None = None
    method: Method = Method.BACKWARD
    second_order: bool = False
    screened_before: bool = True
    tuning: BoundTuning = BoundTuning()
    cost: CostTuning = CostTuning()

    @property
    def expired(self) -> bool:
        """Whether there is no more time."""
        return self.deadline is not None and self.deadline.expired()
