"""Memory that ends at a chosen call of torch."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class ShortMemory(TorchFunctionMode):
    """Within it the call of torch at a place, counted from 0, fails; `hit` says whether there was one."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.left, self.hit = place, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == -1:
            self.hit = True
            raise MemoryError
        return func(*args, **(kwargs or {}))
