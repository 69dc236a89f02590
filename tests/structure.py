"""Counts of the package's structure: `python tests/structure.py` prints them, `test_structure.py` fails when they grow.

Files are read as text, so that modules which cannot be imported here are counted, too; only how many calls lie between `verify` and a
bound is measured on runs.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
from call_paths import PACKAGE, SPACES, Space, longest_path

LIMITS = {
    "import circles": 0,
    "files in import circles": 0,
    "files in the fullest folder": 20,
    "lines of the longest file": 400,
    "most attributes of a class": 16,
    "calls from verify to a bound": 6,
    "lines of code of search/": 4924,
    "functions of many parameters": 0,
    "tuning numbers": 0,
    "faults of tuning dataclasses": 0,
    "tensors without shapes": 0,
}
"""What the counts may be. Lines of code are those without docstrings, comments and blank lines; there were 4510 in search/ once, then 4074;
linear programs of nearly closed subproblems, their pace, roots from what a solver swept, balls, estimated costs and attacks between batches
came after, then half-spaces of inputs, differences of copies, neurons tried beside bisection, heuristics as classes (a hundred lines), and
numbers that are handed in, whose dataclasses count (as many)."""

MANY = 8
"""Parameters that a function may have, `self` not counted."""

EXEMPT = {"SearchOptions", "Checked", "Dispatched", "Predicted"}
"""Frozen dataclasses that only hold options, tuning numbers or results: their attributes do not count."""


@dataclass(frozen=True)
class Part:
    """A part of the package with its size in some count, and what to know of it."""

    name: str
    size: int
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.size}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Count:
    """A count and the parts that it is made of, the largest first; `total` says whether it is their sum, not the largest of them."""

    title: str
    parts: tuple[Part, ...]
    total: bool = False

    @property
    def value(self) -> int:
        sizes = [part.size for part in self.parts]
        return sum(sizes) if self.total else max(sizes, default=0)

    def offenders(self, limit: int) -> tuple[Part, ...]:
        """The parts that make it exceed a limit."""
        if self.value <= limit:
            return ()
        return self.parts if self.total else tuple(part for part in self.parts if part.size > limit)


def _ranked(title: str, parts: Sequence[Part], total: bool = False) -> Count:
    return Count(title, tuple(sorted(parts, key=lambda part: (-part.size, part.name))), total)


# -- the package as text --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """A module that a module imports, and the name it takes from there, if any; `how` is empty where it is imported with the module."""

    module: str
    name: str | None
    known_as: str
    line: int
    how: str


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    name: str
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All of them, wherever they stand."""
        return tuple(self._imports(self.tree, ""))

    def _imports(self, node: ast.AST, how: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    top = alias.name.partition(".")[0]
                    yield Import(alias.name, None, alias.asname or top, child.lineno, how)
            elif isinstance(child, ast.ImportFrom):
                package = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
                source = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(source, alias.name, alias.asname or alias.name, child.lineno, how)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from self._imports(child, how or "type-checking")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from self._imports(child, "in a function")
            else:
                yield from self._imports(child, how)


class Code:
    """The files of a package by the names of their modules; a package's own is its `__init__`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, path, path.read_text(encoding="utf-8"))

    def short(self, path: Path) -> str:
        """A path within the package."""
        return path.relative_to(self.root.parent).as_posix()

    def target(self, found: Import) -> str | None:
        """The module of the package that is imported: of a name from a package, the submodule, if there is one."""
        inner = f"{found.module}.{found.name}"
        return inner if inner in self.modules else found.module if found.module in self.modules else None


# -- counts of files ------------------------------------------------------------------------------------------------------------


def circles(code: Code) -> tuple[Count, Count]:
    """Sets of files each of which imports every other, over some files, by any import; and how many files are in one."""
    graph = nx.DiGraph()
    for module in code.modules.values():
        for found in module.imports:
            target = code.target(found)
            told = graph.get_edge_data(module.name, target)
            # An import that comes with the module says more than one in a function.
            if target not in (None, module.name) and (told is None or told["how"]):
                graph.add_edge(module.name, target, how=found.how, line=found.line)
    parts, files = [], []
    for members in nx.strongly_connected_components(graph):
        if len(members) > 1:
            edges = sorted(graph.subgraph(members).edges(data=True), key=lambda edge: edge[:2])
            listed = "; ".join(f"{a}:{of['line']} imports {b} {of['how']}".rstrip() for a, b, of in edges)
            parts.append(Part(", ".join(sorted(members)), 1, listed))
            files += [Part(name, 1) for name in members]
    return _ranked("import circles", parts, True), _ranked("files in import circles", files, True)


def folders(code: Code) -> Count:
    """Files of a folder, without `__init__.py`."""
    full = Counter(code.short(m.path.parent) + "/" for m in code.modules.values() if m.path.name != "__init__.py")
    return _ranked("files in the fullest folder", [Part(name, size) for name, size in full.items()])


def lengths(code: Code) -> Count:
    """Lines of a file."""
    return _ranked("lines of the longest file", [Part(code.short(m.path), len(m.text.splitlines())) for m in code.modules.values()])


def lines_of_code(code: Code, folder: str = "search") -> Count:
    """Lines of the files in and below a folder that hold more than a docstring or a comment."""
    inside = [m for m in code.modules.values() if m.path.is_relative_to(code.root / folder)]
    return _ranked(f"lines of code of {folder}/", [Part(code.short(m.path), len(_lines_of_code(m))) for m in inside], True)


def _lines_of_code(module: Module) -> set[int]:
    lines: set[int] = set()
    alone = [n for n in ast.walk(module.tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    docstrings = {line for n in alone if isinstance(n.value.value, str) for line in range(n.lineno, n.end_lineno + 1)}
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in empty and not (token.type == tokenize.STRING and token.start[0] in docstrings):
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


# -- parameters and tuning numbers ----------------------------------------------------------------------------------------------


def parameters(code: Code) -> Count:
    """Functions of more than MANY parameters, but for those that repeat what a user or a framework writes.

    These are what the package exports (`__all__`), commands (of `typer`), and rules that lower a framework's operation by its own
    signature: each is known by its decorator.
    """
    public = {name for module in code.modules.values() for name in _exported(module.tree)}
    parts = []
    for module in code.modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (names := _parameters(node))[MANY:]:
                decorators = {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}
                if node.name not in public and not decorators & {"command", "rule", "overload"}:
                    parts.append(Part(f"{code.short(module.path)}:{node.name}", 1, f"{len(names)} parameters"))
    return _ranked("functions of many parameters", parts, True)


def _exported(tree: ast.Module) -> Iterator[str]:
    """What `__all__` names, written as a list, or as a table of names by what they are imported from."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                yield from (c.value for c in ast.walk(value) if isinstance(c, ast.Constant) and isinstance(c.value, str))


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if a]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def tuning_numbers(code: Code) -> Count:
    """Constants of modules that are numbers, or tuples and tables of numbers, however they are computed of others.

    Facts, annotated `Final`, do not count: they are no one's choice. Choices stand in dataclasses, and are handed in.
    """
    parts = []
    for module in code.modules.values():
        if names := [name for node in module.tree.body for name in _numbers(node)]:
            parts.append(Part(code.short(module.path), len(names), " ".join(names)))
    return _ranked("tuning numbers", parts, True)


def _numbers(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.AnnAssign(annotation=kind) if ast.unparse(kind).partition("[")[0] == "Final":
            return
        case ast.Assign(targets=[target], value=ast.expr() as value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            left, right = (list(t.elts) if isinstance(t, ast.Tuple) else [t] for t in (target, value))
            for name, one in zip(left, right if len(right) == len(left) else [value] * len(left), strict=True):
                if isinstance(name, ast.Name) and name.id.isupper() and _is_number(one):
                    yield name.id


def _is_number(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=number):
            return type(number) in (int, float)
        case ast.UnaryOp(operand=operand):
            return _is_number(operand)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) or _is_number(right)
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Dict(values=elements):
            return bool(elements) and all(map(_is_number, elements))
    return False


MOST_FIELDS = 15
"""Numbers that a theme may have."""


def tuning_faults(code: Code) -> Count:
    """What is wrong with the dataclasses of tuning numbers: each is frozen and small, has defaults and a name for what it is, every number
    or run of numbers is documented by the string after it, and none is made for a module, which would not be handed in.
    """
    parts = []
    for module in code.modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Tuning" for base in node.bases):
                parts += [Part(f"{code.short(module.path)}:{node.name}", 1, fault) for fault in _faults(node)]
        for node in module.tree.body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("Tuning"):
                parts.append(Part(f"{code.short(module.path)}:{node.lineno}", 1, "made for a module"))
    return _ranked("faults of tuning dataclasses", parts, True)


def _faults(node: ast.ClassDef) -> Iterator[str]:
    fields = [s for s in node.body if isinstance(s, ast.AnnAssign)]
    if not node.name.endswith("Tuning"):
        yield "its name does not end in Tuning"
    if node.decorator_list:
        yield "a decorator, for what its base makes of it"
    if len(fields) > MOST_FIELDS:
        yield f"{len(fields)} numbers, more than {MOST_FIELDS}"
    if any(field.value is None for field in fields):
        yield "a number has no default"
    after = [node.body[node.body.index(field) + 1 : node.body.index(field) + 2] for field in fields[-1:]]
    documented = all(isinstance(statement, ast.Expr) for found in after for statement in found or [None]) and bool(fields)
    if not (ast.get_docstring(node) and documented):
        yield "numbers without a word about them"


# -- docstrings -----------------------------------------------------------------------------------------------------------------

_LENGTH = r"(?:\.\.\.|\*?(?:\d )?[\w.]{1,12}(?: ?[-+*/] ?\w{1,12})*)"
SHAPE = re.compile(rf"\((?!lower, upper)(?:{_LENGTH}(?:, {_LENGTH})+|{_LENGTH},)\)|\bscalar\b|\bshaped?s?\b|\bbroadcast|\belementwise\b")
"""A shape in parentheses, `(N, *shape)`, `(n,)`, or a word that says which one it is: a scalar, the same shape, elementwise."""


def shapeless(code: Code) -> Count:
    """Public functions that take or return tensors and do not say of which shapes, nor does the method that one overrides."""
    known = classes(code)
    parts = []
    scopes = [(m, "", m.tree) for m in code.modules.values()] + [(code.modules[one.module], one.path, one.node) for one in known.values()]
    for module, path, scope in scopes:
        if not _is_public(f"{module.name}.{path}".rstrip(".")):
            continue
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef) or not _is_public(node.name) or not _of_tensors(node):
                continue
            if "overload" in map(ast.unparse, node.decorator_list):
                continue
            if not any(SHAPE.search(text) for text in _docstrings(code, known, module.name, path, node)):
                where = ".".join(filter(None, (path, node.name)))
                parts.append(Part(f"{code.short(module.path)}:{where}", 1, f"line {node.lineno}"))
    return _ranked("tensors without shapes", parts, True)


def _is_public(path: str) -> bool:
    return not any(part.startswith("_") for part in path.split("."))


def _of_tensors(node: ast.FunctionDef) -> bool:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
    annotations = [a.annotation for a in arguments if a is not None] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(annotation)) for annotation in annotations if annotation is not None)


def _docstrings(code: Code, known: dict[tuple[str, str], Class], module: str, path: str, node: ast.FunctionDef) -> Iterator[str]:
    """That of a function, and, of a method, those of the methods of its class's bases that bear its name."""
    yield ast.get_docstring(node) or ""
    if (one := known.get((module, path))) is None:
        return
    for base in one.node.bases:
        bare = base.value if isinstance(base, ast.Subscript) else base
        if (above := _meant(code, known, module, ast.unparse(bare), path)) is not None:
            for method in above.node.body:
                if isinstance(method, ast.FunctionDef) and method.name == node.name:
                    yield from _docstrings(code, known, above.module, above.path, method)


# -- attributes of classes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Class:
    """A class of the package, wherever it is defined, with the attributes that its own fields and methods give its instances."""

    module: str
    path: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return f"{self.module}:{self.path}"

    @cached_property
    def decorators(self) -> tuple[str, ...]:
        return tuple(ast.unparse(d).removeprefix("dataclasses.") for d in self.node.decorator_list)

    @property
    def frozen(self) -> bool:
        """Whether it is a frozen dataclass."""
        return any(d.startswith("dataclass(") and "frozen=True" in d for d in self.decorators)

    @cached_property
    def fields(self) -> frozenset[str]:
        """The annotated names of the class, but for those of the class alone."""
        own = [s for s in _statements(self.node) if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
        data = any(d.startswith("dataclass") for d in self.decorators) or any("NamedTuple" in ast.unparse(b) for b in self.node.bases)
        instance = [s for s in own if not {"ClassVar", "InitVar"} & set(_names(s.annotation)) and (data or s.value is None)]
        return frozenset(s.target.id for s in instance if isinstance(s.target, ast.Name))

    @cached_property
    def assigned(self) -> frozenset[str]:
        """What methods assign to `self`, whatever they call it."""
        found: set[str] = set()
        for method in _statements(self.node):
            if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = [*method.args.posonlyargs, *method.args.args][:1]
            if first and not {"staticmethod", "classmethod"} & {ast.unparse(d) for d in method.decorator_list}:
                found |= set(_assigned(method, first[0].arg))
        return frozenset(found)


def _names(annotation: ast.expr) -> Iterator[str]:
    for node in ast.walk(ast.parse(annotation.value, mode="eval") if isinstance(annotation, ast.Constant) else annotation):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a class's body, under conditions, too, but not those of its methods and inner classes."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _statements(child)


def _assigned(node: ast.AST, me: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and ast.unparse(child.value) == me:
            yield child.attr
        if isinstance(child, ast.Call) and ast.unparse(child.func) in ("setattr", "object.__setattr__", "super().__setattr__"):
            match [a for a in child.args if not (isinstance(a, ast.Name) and a.id == me)]:
                case [ast.Constant(value=str(name)), _]:
                    yield name
        yield from _assigned(child, me)


def classes(code: Code) -> dict[tuple[str, str], Class]:
    """All classes by module and path within it."""
    found: dict[tuple[str, str], Class] = {}

    def walk(module: str, node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{path}.{child.name}".lstrip(".")
            if isinstance(child, ast.ClassDef):
                found[module, inner] = Class(module, inner, child)
            walk(module, child, inner)

    for module in code.modules.values():
        walk(module.name, module.tree, "")
    return found


def attributes(code: Code, exempt: set[str] = EXEMPT) -> Count:
    """Distinct attributes of a class's instances, its bases' in the package included; properties do not count.

    Raises:
        ValueError: an exempt name is not that of one frozen dataclass whose methods assign nothing.
    """
    known = classes(code)

    def all_of(one: Class, below: frozenset[str] = frozenset()) -> frozenset[str]:
        below |= {one.name}
        bare = (base.value if isinstance(base, ast.Subscript) else base for base in one.node.bases)
        bases = [_meant(code, known, one.module, ast.unparse(base), one.path) for base in bare]
        return frozenset().union(one.fields, one.assigned, *(all_of(base, below) for base in bases if base and base.name not in below))

    for name in sorted(exempt):
        named = [one for one in known.values() if one.path.rpartition(".")[2] == name]
        if len(named) != 1 or not named[0].frozen or named[0].assigned:
            raise ValueError(f"{name} is exempt, but not the name of one frozen dataclass whose methods assign nothing")
    counted = {one.name: all_of(one) for one in known.values() if one.path.rpartition(".")[2] not in exempt}
    return _ranked("most attributes of a class", [Part(name, len(of), " ".join(sorted(of))) for name, of in counted.items()])


def _meant(code: Code, known: dict[tuple[str, str], Class], module: str, name: str, scope: str = "", steps: int = 9) -> Class | None:
    """The class that a dotted name means within a class or function of a module, through the imports of modules."""
    around = scope.split(".") if scope else []
    for depth in range(len(around), -1, -1):
        if (inside := known.get((module, ".".join([*around[:depth], name])))) is not None:
            return inside
    head, _, rest = name.partition(".")
    for found in code.modules[module].imports if steps else ():
        if found.known_as == head:
            of = head if found.name is None and found.module.startswith(f"{head}.") else found.module
            parts = [p for p in (*of.split("."), found.name, *rest.split(".")) if p]
            for cut in range(len(parts) - 1, 0, -1):
                if (home := ".".join(parts[:cut])) in code.modules:
                    return _meant(code, known, home, ".".join(parts[cut:]), "", steps - 1)
    return None


def calls(spaces: Sequence[Space] = SPACES) -> Count:
    """The most calls from `verify` to a bound, on a run in each space."""
    paths = {space.name: longest_path(space) for space in spaces}
    return _ranked("calls from verify to a bound", [Part(name, len(path) - 1, " -> ".join(path)) for name, path in paths.items()])


# -- the table ------------------------------------------------------------------------------------------------------------------


def counts(code: Code | None = None) -> list[Count]:
    """All counts of the package."""
    code = code or Code(PACKAGE)
    return [
        *circles(code),
        folders(code),
        lengths(code),
        attributes(code),
        calls(),
        lines_of_code(code),
        parameters(code),
        tuning_numbers(code),
        tuning_faults(code),
        shapeless(code),
    ]


def main() -> None:
    """Print the counts, and what exceeds the limits."""
    found = counts()
    print(f"{'':30}{'today':>7}{'limit':>7}")
    for count in found:
        print(f"{count.title:30}{count.value:7}{LIMITS[count.title]:7}")
    for count in found:
        if offenders := count.offenders(LIMITS[count.title]):
            print(f"\n{count.title}, above {LIMITS[count.title]}:", *offenders, sep="\n    ")


if __name__ == "__main__":
    main()
