"""A nonlinearity of the catalogue as a torch module, to build and train networks with."""

from __future__ import annotations

from torch import Tensor, nn

from milpverify.functions.catalogue import Function, catalogue


class Activation(nn.Module):
    """A function of the catalogue, elementwise: `Activation("snake", a=2.0)` computes what `snake.toml` says.

    It is differentiable, and networks with it are verified as with any other nonlinearity.

    Args:
        name: of an entry of the catalogue, such as one that `register_nonlinearity` added.
        parameters: the entry's parameters; the others have their defaults.

    Raises:
        KeyError: the catalogue has no such entry.
        InvalidModel: a parameter is not allowed.
    """

    def __init__(self, name: str, **parameters: float) -> None:
        super().__init__()
        self.function: Function = catalogue()[name].bind(**parameters)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), elementwise."""
        return self.function(x)

    def extra_repr(self) -> str:
        """The function and its parameters."""
        return str(self.function)
