"""The errors that milpverify raises. Each names the cause and the next step, and is a builtin exception type as well."""


class MilpverifyError(Exception):
    """Base of every error that milpverify raises on purpose."""


class InvalidInput(MilpverifyError, ValueError):
    """What the user handed in cannot be used: the message says what, where, and what to do (command line: exit status 2)."""


class InvalidModel(InvalidInput):
    """The network is unusable: truncated file, wrong shapes, NaN or infinite weights, a difference from ONNX Runtime."""


class InvalidProperty(InvalidInput):
    """The property is unusable: a syntax error (with its line), an unknown variable, an empty input box."""


class UnsupportedOperator(InvalidInput, NotImplementedError):
    """An operator, or an attribute of it, has no rule. There is no default rule: nothing is dropped or approximated."""


class OutOfTime(MilpverifyError, TimeoutError):
    """The time limit was reached, or the run interrupted, before there was a problem to decide."""


class SolverUnavailable(MilpverifyError, RuntimeError):
    """A solver is not installed, not licensed for this model, or not able to take one of its constraints."""


class Contradiction(MilpverifyError, AssertionError):
    """Two methods contradict each other: one of them is wrong. Please report it; no verdict is given."""
