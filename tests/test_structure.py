"""The structure of the package: its counts do not grow, and they count what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import structure
from structure import LIMITS, Code, Count, Part

CODE = Code(structure.PACKAGE)


def kept(count: Count) -> None:
    limit = LIMITS[count.title]
    told = "".join(f"\n    {part}" for part in count.offenders(limit))
    assert count.value <= limit, f"{count.title}: {count.value}, at most {limit} are allowed{told}"


def test_files_do_not_import_each_other_in_more_circles() -> None:
    for count in structure.circles(CODE):
        kept(count)


SIZES = (structure.folders, structure.lengths, structure.attributes, structure.lines_of_code)
ORDER = (structure.parameters, structure.tuning_numbers, structure.tuning_faults, structure.shapeless)


@pytest.mark.parametrize("count", SIZES)
def test_the_code_does_not_grow_beyond_its_limits(count: Callable[[Code], Count]) -> None:
    assert count(CODE).value
    kept(count(CODE))


@pytest.mark.parametrize("count", ORDER)
def test_numbers_are_handed_in_parameters_are_few_and_shapes_are_told(count: Callable[[Code], Count]) -> None:
    kept(count(CODE))


def test_a_bound_is_not_further_from_verify() -> None:
    count = structure.calls()
    assert {part.name for part in count.parts} == {"inputs", "inputs or neurons", "neurons"}
    for part in count.parts:  # both ends of a path, and the search between them
        assert part.detail.startswith("verify -> ") and part.size >= 2
    kept(count)


def test_the_map_is_true() -> None:
    """Files and folders that it names are there, and the calls to a bound are those that are measured."""
    text = (structure.PACKAGE / "README.md").read_text()
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", text)
    outside = ("tests/", "encodings/")
    assert len(named) > 20
    assert [name for name in named if not name.startswith(outside) and not (structure.PACKAGE / name).exists()] == []
    for part in structure.calls().parts:
        assert part.detail in text


def test_limits_are_for_what_is_counted() -> None:
    found = [*structure.circles(CODE), *(count(CODE) for count in (*SIZES, *ORDER))]
    assert {count.title for count in found} | {"calls from verify to a bound"} == LIMITS.keys()


def test_tests_lie_where_what_they_test_lies() -> None:
    """But for those of all of it, and what they share."""
    tests = structure.PACKAGE.parent / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("*.py")}
    named = [folder for folder in folders if folder.parts[:1] not in (("contract",), ("soundness",), ("benchmarks",), ("support",))]
    assert len(named) > 20
    assert [str(folder) for folder in named if not (structure.PACKAGE / folder).is_dir()] == []


def test_what_grew_is_named() -> None:
    title, limit = "files in the fullest folder", LIMITS["files in the fullest folder"]
    full, fuller = (Part(f"{k}/", limit + k, "why") for k in (0, 1))
    kept(Count(title, (full,)))
    with pytest.raises(AssertionError, match=f"{title}: {limit + 1}, at most {limit} are allowed\n +1/: {limit + 1} .why.\n(?! +0/)"):
        kept(Count(title, (fuller, full)))


# -- the counting itself, on a small package ------------------------------------------------------------------------------------

FILES = {
    "__init__.py": "def __getattr__(name):\n    return import_module('small.' + {'lazy': 'pair.left'}[name])\n",
    "apart.py": "import small.pair.left\nfrom small import pair\nfrom . import chain\n",
    "chain.py": "def late():\n    import small.link\n",
    "link.py": "from . import chain as other\n",
    "pair/__init__.py": "from small.pair.left import Left\n",
    "pair/left.py": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from small.pair import right
        class Left: ...
        """,
    "pair/right.py": "from .left import Left\n",
    "own/__init__.py": "from small.own.part import PART\n",
    "own/part.py": "from small.own import PART\n",
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path / "small" / name, text)
    return tmp_path / "small"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text).lstrip("\n"))


def test_circles_through_any_import_are_found(small: Path) -> None:
    found, files = structure.circles(Code(small))
    assert [part.name for part in found.parts] == [
        "small.chain, small.link",
        "small.own, small.own.part",
        "small.pair.left, small.pair.right",
    ]
    assert found.value == 3 and files.value == 6
    told = {part.name.partition(",")[0]: part.detail for part in found.parts}
    assert "small.pair.left:3 imports small.pair.right type-checking" in told["small.pair.left"]
    assert "small.chain:2 imports small.link in a function" in told["small.chain"]
    assert found.offenders(3) == () and len(found.offenders(2)) == 3


def test_a_name_from_a_package_is_its_own(small: Path) -> None:
    """That `left` is imported by the package that it lies in makes a circle only where it takes a name from the package in turn."""
    write(small / "pair/left.py", "def late():\n    from small.pair import Left\n")
    found, _ = structure.circles(Code(small))
    assert "small.pair, small.pair.left" in [part.name for part in found.parts]


LINES = '''
    """One.

    Two."""

    # three
    x = (
        1,  # four
    )
    """of x"""


    def f():
        """Five."""
        return """six

    seven"""
    '''


def test_files_and_lines_are_counted(small: Path) -> None:
    write(small / "search/deep/a.py", LINES)
    code = Code(small)
    folders, lengths, lines = structure.folders(code), structure.lengths(code), structure.lines_of_code(code)
    assert [(p.name, p.size) for p in folders.parts][:2] == [("small/", 3), ("small/pair/", 2)]
    assert (lengths.parts[0].name, lengths.value) == ("small/search/deep/a.py", 16)
    assert lines.value == 3 + 1 + 3
    assert [p.name for p in lengths.offenders(15)] == ["small/search/deep/a.py"]


CLASSES = """
    import dataclasses
    from abc import ABC
    from dataclasses import dataclass
    from typing import ClassVar
    import small.bases as b
    from small.bases import Base as Other, Generic

    class Plain:
        constant = 1
        kind: str = "plain"
        declared: int
        def __init__(self):
            self.a, (self.b, *self.c) = self.d = 1, (2, 3)
            self.e: int = 1
            self.f += 1
            for self.g in ():
                def inner(): self.h = 1
            other.no = self.a.no = self.x[0] = 1
        @property
        def also_no(self): return self.no
        @classmethod
        def make(cls): cls.no = 1
        class _Inner:
            def set(this): this.i = 1

    class Below(Plain, b.Base): z: int
    class Further(Other[int], Generic, ABC): ...

    @dataclass(frozen=True)
    class Options:
        one: int
        two: list = dataclasses.field(default_factory=list)
        no: ClassVar[int] = 1
        also_no: "ClassVar[int]" = 1

    @dataclasses.dataclass
    class State(Options):
        three: int = 3
        def __post_init__(self):
            object.__setattr__(self, "four", 4)
            setattr(self, "five", 5)
    """


def test_attributes_are_counted(small: Path) -> None:
    write(small / "bases.py", "from small.far import Base\nclass Generic:\n    def f(self, /):\n        with open() as self.u: pass\n")
    write(small / "far.py", "def hidden():\n    class Local:\n        def f(self): self.w = 1\nclass Base:\n    def f(self): self.v = 1\n")
    write(small / "classes.py", CLASSES)
    found = {part.name.partition(":")[2]: part.detail for part in structure.attributes(Code(small), set()).parts}
    assert found == {
        "Plain": "a b c d declared e f g h",
        "Plain._Inner": "i",
        "Below": "a b c d declared e f g h v z",
        "Further": "u v",
        "Options": "one two",
        "State": "five four one three two",
        "Base": "v",
        "Generic": "u",
        "Left": "",
        "hidden.Local": "w",
    }
    assert structure.attributes(Code(small), {"Options"}).value == 11


@pytest.mark.parametrize("name", ["State", "Plain", "Missing"])
def test_only_frozen_data_is_exempt(small: Path, name: str) -> None:
    write(small / "classes.py", CLASSES)
    with pytest.raises(ValueError, match=f"{name} is exempt"):
        structure.attributes(Code(small), {"Options", name})


def test_frozen_data_that_assigns_is_not_exempt(small: Path) -> None:
    write(small / "classes.py", CLASSES.replace("@dataclasses.dataclass\n", "@dataclasses.dataclass(frozen=True)\n"))
    with pytest.raises(ValueError, match="State is exempt"):
        structure.attributes(Code(small), {"State"})


PARAMETERS = """
    import typer
    app = typer.Typer()
    __all__ = ["verb"]

    def verb(a, b, c, d, e, f, g, h, i): ...
    @app.command()
    def command(a, b, c, d, e, f, g, h, i): ...
    @rule("conv", linear=True)
    def _conv(a, b, c, d, e, f, g, h, i): ...

    def eight(a, b, c, d, e, f, *g, **h): ...
    class Some:
        def method(self, a, b, c, d, e, f, g, h): ...
        def larger(self, a, b, c, /, d, e, *, f, g, h, i=1): ...
    def outer():
        def inner(a, b, c, d, e, f, *g, h, **i): ...
    """


def test_parameters_are_counted(small: Path) -> None:
    write(small / "many.py", PARAMETERS)
    found = structure.parameters(Code(small))
    assert [(part.name, part.detail) for part in found.parts] == [
        ("small/many.py:inner", "9 parameters"),
        ("small/many.py:larger", "9 parameters"),
    ]
    assert found.value == 2


NUMBERS = """
    ONE = 1
    TWO: float = -2.5  # seconds
    THREE, _FOUR = 3, 2.0**-4
    FIVE, SIX = SEVEN = pair
    EIGHT = (1, 2)
    NINE = {"cpu": 1 << 22, "cuda": 4 * ONE}
    TEN = True
    ELEVEN = "11"
    TWELVE = (1, "12")
    THIRTEEN = f(13)
    fourteen = 14
    FACT: Final = 14
    ANOTHER: Final[float] = 0.5
    class Options:
        FIFTEEN = 15
    def g():
        SIXTEEN = 16
    """


def test_tuning_numbers_are_counted(small: Path) -> None:
    write(small / "numbers.py", NUMBERS)
    assert [part.detail for part in structure.tuning_numbers(Code(small)).parts] == ["ONE TWO THREE _FOUR EIGHT NINE"]


TUNINGS = """
    class Good(Tuning): ...
    class FineTuning(Tuning):
        '''Numbers.'''
        one: int = 1
        two: int = 2
        '''Both of them.'''
    @dataclass
    class BareTuning(Tuning):
        '''Numbers.'''
        one: int
    DEFAULT = FineTuning()
    def f(tuning=FineTuning()): ...
    """


def test_faults_of_tuning_dataclasses_are_told(small: Path) -> None:
    write(small / "numbers.py", TUNINGS)
    found = [(part.name.rpartition(":")[2], part.detail) for part in structure.tuning_faults(Code(small)).parts]
    assert found == [
        ("11", "made for a module"),
        ("BareTuning", "a decorator, for what its base makes of it"),
        ("BareTuning", "a number has no default"),
        ("BareTuning", "numbers without a word about them"),
        ("Good", "its name does not end in Tuning"),
        ("Good", "numbers without a word about them"),
    ]


TENSORS = '''
    from torch import Tensor
    from small.above import Above

    def told(x: Tensor) -> Tensor:
        """Of each row (n, nx) its sum, (n,)."""
    def alike(x: "Tensor | None") -> int:
        """Elementwise is a word, elementwise another."""
    def untold(x: list[Tensor]) -> int:
        """Not (this one), nor that (lower, upper)."""
    def _own(x: Tensor) -> None: ...
    def plain(x: int) -> int: ...
    class Below(Above):
        def inherited(self, x: Tensor) -> Tensor: ...
        def also(self) -> Tensor: ...
    class _Own:
        def method(self, x: Tensor) -> Tensor: ...
    '''


def test_tensors_without_shapes_are_counted(small: Path) -> None:
    write(small / "tensors.py", TENSORS)
    write(small / "above.py", 'class Above:\n    def inherited(self, x: Tensor) -> Tensor:\n        """In the shape of x."""\n')
    write(small / "_own.py", "def f(x: Tensor) -> Tensor: ...\n")
    found = structure.shapeless(Code(small))
    assert [part.name for part in found.parts] == ["small/tensors.py:Below.also", "small/tensors.py:untold"]
