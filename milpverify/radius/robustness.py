"""robustness_radius() and robustness_radii(): what is handed in is checked, and the network loaded once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch

from milpverify.balls.norm import Norm
from milpverify.config import Deadline, Options, SearchMethod
from milpverify.errors import InvalidInput
from milpverify.frontends.network import Loaded, load_network
from milpverify.frontends.problem import array, label_of, parts_of
from milpverify.graph import evaluate
from milpverify.radius.neighbourhood import Neighbourhood
from milpverify.radius.question import Question
from milpverify.radius.search import find
from milpverify.run_info import settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from milpverify.config import Milp
    from milpverify.frontends.network import Network, Shapes
    from milpverify.radius.neighbourhood import Clip
    from milpverify.radius.result import Radius
    from milpverify.run import OnEvent
    from milpverify.spec import Array


def robustness_radius(
    net: Network,
    x0: Any,
    label: SupportsIndex | None = None,
    norm: str | Norm = Norm.LINF,
    clip: Clip | None = None,
    gap: float = 0.01,
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
    *,
    targets: SupportsIndex | Iterable[SupportsIndex] | None = None,
    features: Any = None,
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    options: Options | None = None,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
) -> Radius:
    """How far an input may change before another output can be the largest: a proved radius, and the distance of a counterexample.

    Args:
        net: a network, as for `Problem`; its outputs are one score per label.
        x0: the input, shaped as the module's without its batch axis; its float64 numbers are the exact centre. Where the network has
            several inputs a tuple of them: what is said of features is said of all, one after the other.
        label: the number of the output that must stay the largest, also as a tensor; None for the one that is.
        norm: how changes are measured: "linf", the largest of any feature, "l1", their sum, or "l2", the root of the sum of their squares.
        clip: the ends of the range that inputs have anyway, such as (0, 1) for pixels; numbers, or one per feature.
        gap: how close the bounds shall come, relatively to the upper one.
        timeout: seconds of wall clock; None for no limit. Both bounds hold whenever the time ends.
        method: what searches, as for `verify`.
        targets: the labels that the input must not get; None for all others.
        features: a mask of those that may change, or by how much more than others each may: changes are measured in units of these weights.
        shape: of a torch module's input, with its batch axis, where x0 does not tell.
        outputs: of an ONNX file, the names of those that hold the scores, as for `load`.
        options: the rest, as for `verify`.
        deadline: in place of `timeout`, a deadline that the caller can cancel.
        on_event: called with progress events; those of the phase "radius" have `lower_bound` and `upper_bound`.

    Raises:
        InvalidInput: an input that is NaN, lies outside the clip or has the wrong shape, no such label.
        InvalidProperty: an unknown norm.
        InvalidModel, UnsupportedOperator: as `Problem`.
        Contradiction: a proved radius reaches a counterexample.
    """
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    x0, shape = _joined(x0, shape)
    around = _neighbourhoods([x0], features, clip, norm)
    (question,) = _questions(net, around, None if label is None else [label], gap, targets, shape, outputs)
    return find(question, gap, settings_of(options or Options(), method), limit, on_event)


def robustness_radii(
    net: Network,
    inputs: Iterable[Any],
    labels: Iterable[SupportsIndex] | None = None,
    norm: str | Norm = Norm.LINF,
    clip: Clip | None = None,
    gap: float = 0.01,
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
    *,
    targets: SupportsIndex | Iterable[SupportsIndex] | None = None,
    features: Any = None,
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    options: Options | None = None,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[Radius]:
    """The radii of several inputs, one after the other, as `robustness_radius`; the network is loaded once.

    Everything is checked before the first. `timeout` holds for each; a `deadline` for all together, and none is begun once it is over.
    `targets` that are an input's own label do not count for that input.
    """
    settings = settings_of(options or Options(), method)
    overall = deadline or Deadline()
    joined = [_joined(x, shape) for x in inputs]
    shape = joined[0][1] if joined else shape
    around = _neighbourhoods([x for x, _ in joined], features, clip, norm)
    questions = _questions(net, around, labels, gap, targets, shape, outputs)

    def work() -> Iterator[Radius]:
        for question in questions:
            if overall.expired():
                return
            yield find(question, gap, settings, overall.within(math.inf if timeout is None else timeout), on_event)

    return work()


def _joined(x0: Any, shape: Shapes | None) -> tuple[Array, Shapes | None]:
    """The input, or several one after the other, and the shapes in which the network gets them."""
    if (parts := parts_of(x0)) is None:
        return array(x0), shape
    arrays = [array(part) for part in parts]
    return np.concatenate([part.reshape(-1) for part in arrays]), shape or [(1, *part.shape) for part in arrays]


def _neighbourhoods(inputs: Sequence[Array], features: Any, clip: Clip | None, norm: str | Norm) -> list[Neighbourhood]:
    """The balls around every input (nx,), checked: there is one, and all have one shape."""
    if not inputs:
        raise InvalidInput("there is no input")
    around = [Neighbourhood.around(x, features, clip, norm) for x in inputs]
    if any(other.shape != around[0].shape for other in around):
        raise InvalidInput("the inputs have different shapes")
    return around


def _questions(
    net: Network,
    neighbourhoods: list[Neighbourhood],
    labels: Iterable[SupportsIndex] | None,
    gap: float,
    targets: SupportsIndex | Iterable[SupportsIndex] | None,
    shape: Shapes | None,
    outputs: Sequence[str] | None = None,
) -> list[Question]:
    """What is asked about every input, checked."""
    if not 0.0 < gap < 1.0:
        raise InvalidInput(f"the gap must be a number between 0 and 1, not {gap}")
    first = neighbourhoods[0]
    # Compared with its runtime where inputs are, at least near the first one where they have no ends.
    network = load_network(net, first.box(first.reach if first.bounded else 1.0), shape, outputs)
    nx, ny = network.graph.nx, network.graph.ny
    if first.centre.size != nx:
        raise InvalidInput(f"the input has {first.centre.size} entries, the network takes {nx}")
    if ny < 2:
        raise InvalidInput("the network has one output, hence no labels to tell apart")
    own = [_predicted(network, around.centre) for around in neighbourhoods] if labels is None else list(labels)
    if len(own) != len(neighbourhoods):
        raise InvalidInput(f"there are {len(neighbourhoods)} inputs and {len(own)} labels")
    own = [label_of(label, ny) for label in own]
    aimed = range(ny) if targets is None else [label_of(t, ny) for t in _several(targets)]
    questions = []
    for around, label in zip(neighbourhoods, own, strict=True):
        others = tuple(sorted(set(aimed) - {label}))
        if not others:
            raise InvalidInput(f"the targets are the label {label} alone; they must be other outputs")
        questions.append(Question(network, around, label, others))
    return questions


def _several(labels: Any) -> list[Any]:
    """Labels in whatever holds them; one label alone is one."""
    return list(labels) if isinstance(labels, Iterable) and getattr(labels, "shape", None) != () else [labels]


def _predicted(network: Loaded, x: Array) -> int:
    """The largest output at x, in the network's own runtime where there is one."""
    run = getattr(network.runtime, "run", None)
    if run is not None:
        return int(np.argmax(run(x)))
    with torch.no_grad():
        return int(evaluate(network.graph, torch.from_numpy(x)[None])[0].argmax())
