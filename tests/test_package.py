"""The package as people get it: light to import, public names that resolve, and data that travels with every kind of install."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import milpverify
from milpverify import acopf

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, environment: dict[str, str], cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy(environment: dict[str, str], tmp_path: Path) -> None:
    code = "import sys, milpverify, milpverify.cli, milpverify.acopf; print([m for m in sys.modules if '.' not in m])"
    loaded = python(code, environment, tmp_path)
    for heavy in (
        "torch",
        "numpy",
        "onnx",
        "onnxruntime",
        "pyscipopt",
        "highspy",
        "gurobipy",
        "z3",
        "cvc5",
        "flint",
        "networkx",
        "scipy",
        "pypower",
        "matplotlib",
    ):
        assert f"'{heavy}'" not in loaded


def test_solvers_are_loaded_when_they_first_solve(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from milpverify.solvers import registry\n"
        "from milpverify.solvers.names import SOLVERS\n"
        "before = set(sys.modules)\n"
        "assert [registry.load(name).name for name in SOLVERS] == list(SOLVERS)\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(loaded - {'milpverify'} - sys.stdlib_module_names))\n"
    )
    assert python(code, environment, tmp_path) == "[]\n"


@pytest.mark.parametrize("room", ["acopf", "compare", "radius"])
def test_the_command_line_loads_of_a_room_its_commands_alone(room: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Every start pays for what is imported, whatever the command."""
    loaded = f"print([m for m in sys.modules if m.startswith('milpverify.{room}.')])"
    code = f"import sys, typer, milpverify.cli as cli; {loaded}; typer.main.get_command(cli.app).commands['{room}']; {loaded}"
    assert python(code, environment, tmp_path) == f"[]\n['milpverify.{room}.commands']\n"


@pytest.mark.parametrize("name", milpverify.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(milpverify, name) is not None
    assert name in dir(milpverify)


@pytest.mark.parametrize("name", acopf.__all__)
def test_every_public_name_of_power_networks_resolves(name: str) -> None:
    """Also where the module of the same name was loaded first."""
    importlib.import_module(f"milpverify.acopf.{acopf._HOMES[name]}")
    assert not isinstance(getattr(acopf, name), ModuleType)
    assert name in dir(acopf)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = milpverify.no_such_thing


def test_functions_are_not_hidden_by_the_modules_of_their_name(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import milpverify.verify, milpverify.bounding, milpverify as mv\n"
        "from milpverify import bounds\n"
        "from milpverify.bounding import bounds as same\n"
        "print(callable(mv.verify), callable(mv.bounds), bounds is same)"
    )
    assert python(code, environment, tmp_path).split() == ["True"] * 3


def test_every_module_imports() -> None:
    for path in sorted((ROOT / "milpverify").rglob("*.py")):
        if path.name != "__main__.py":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def test_the_catalogue_folder_holds_no_python() -> None:
    assert not list((ROOT / "encodings").rglob("*.py"))


def test_wheel_and_editable_wheel_carry_the_catalogue(tmp_path: Path) -> None:
    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed here; the wheel is tested by .ci/run too")
    tables = {path.name for path in (ROOT / "encodings").glob("*.toml")}
    assert tables
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = tmp_path / build.build_wheel(str(tmp_path))
        (tmp_path / "editable").mkdir()
        editable = tmp_path / "editable" / build.build_editable(str(tmp_path / "editable"))
    names = zipfile.ZipFile(wheel).namelist()
    assert tables <= {name.removeprefix("milpverify/encodings/") for name in names if name.startswith("milpverify/encodings/")}
    assert "milpverify/py.typed" in names
    assert not [name for name in names if name.startswith(("encodings/", "tests/", "examples/"))]
    # An editable install points back at the checkout, where the catalogue lies beside the package.
    assert [name for name in zipfile.ZipFile(editable).namelist() if name.endswith(".pth")]


def test_bounding_smooth_functions_loads_no_algebra_system(environment: dict[str, str], tmp_path: Path) -> None:
    """Helpers of torch that look harmless load its symbolic shapes, which take half a second."""
    code = (
        "import sys, torch\n"
        "from milpverify.relaxations.registry import univariate\n"
        "from milpverify.functions.catalogue import catalogue\n"
        "one = torch.ones(1, dtype=torch.float64)\n"
        "for name in ('tanh', 'sin', 'floor'):\n"
        "    univariate(catalogue()[name].bind()).both_intercepts(-one, one, 0.5 * one, 0.5 * one)\n"
        "print('sympy' in sys.modules)\n"
    )
    assert python(code, environment, tmp_path) == "False\n"
