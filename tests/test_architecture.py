"""The house rules: imports point down, files stay short, JAX's inner parts have one door."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import jaxpipe

ROOT = Path(jaxpipe.__file__).parent

# Each line may import the lines above it, and itself where it is a folder.
HOUSE = """
errors spec devices sections
schedules
partition
batch
losses mesh simulate_devices zero loss_scale processes
tensor feed gather cache sampling replicas
layers
model jaxpr watch signals
costs liveness
storage
slicing
backward
executor
stages pieces
fresh spread
step auto norms
optimizer
memory
state timeline structure compiler_options limits
decoding
machine
engine
exhaustion
nn
models checkpoint data metrics crashes summary
config
learning_rate
optimizers
build convert prepare
pretrained
trainer planner trained generate
evaluation
measurement
demo doctor profiling
cli
__main__
"""
FLOORS = [line.split() for line in HOUSE.split("\n") if line]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
NO_JAX = ("schedules", "partition", "errors", "config", "data", "summary")
SEMI_PUBLIC = ("jax.extend", "jax.interpreters")


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The file or folder right under the package that it belongs to."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def imports(self) -> set[str]:
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.name}: relative import"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        return found

    def imports_any(self, *packages: str) -> list[str]:
        inside = lambda name: any(name == p or name.startswith(p + ".") for p in packages)
        return sorted(filter(inside, self.imports()))


def modules() -> list[Module]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append(Module(".".join(parts), path, ast.parse(path.read_text())))
    return found


MODULES = modules()
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.name)
ROOMS = {module.room for module in MODULES if module.room}


def test_the_house_has_a_place_for_every_file():
    assert set(FLOOR) == ROOMS
    assert len(FLOOR) == sum(map(len, FLOORS))


@every_module
def test_imports_point_down(module: Module):
    if not module.room:
        return  # the front door re-exports what it likes
    for name in module.imports_any("jaxpipe"):
        if name == "jaxpipe.__version__" and module.room == "cli":
            continue
        parts = name.split(".")
        assert len(parts) > 1, f"{module.name} imports the front door"
        room = parts[1]
        assert room in FLOOR, f"{module.name} imports {name} through the front door"
        below = FLOOR[room] < FLOOR[module.room]
        assert below or room == module.room, f"{module.name} imports {name}, which is not below it"


@every_module
def test_jaxs_inner_parts_have_one_door(module: Module):
    assert not module.imports_any("jax._src")
    if module.name != "jaxpipe.jaxpr":
        assert not module.imports_any(*SEMI_PUBLIC)
    assert "jax._src" not in module.path.read_text()
    assert not module.imports_any("chex"), "chex is for tests"


@pytest.mark.parametrize("room", NO_JAX)
def test_plans_need_no_jax(room: str):
    inside = [module for module in MODULES if module.room == room]
    assert inside
    for module in inside:
        assert not module.imports_any("jax", "jaxlib", "flax", "optax"), module.name


def test_plans_import_nothing_that_loads_jax():
    inner = {m.name: m.imports_any("jaxpipe") for m in MODULES if m.room in NO_JAX}
    for name, imports in inner.items():
        assert {x.split(".")[1] for x in imports} <= set(NO_JAX), name


TOLD = (
    "layers",
    "batch",
    "compiler_options",
    "devices",
    "mesh",
    "processes",
    "feed",
    "engine",
    "structure",
    "auto",
    "schedules",
    "config",
    "cli",
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


@every_module
def test_files_and_functions_are_short(module: Module):
    assert len(module.path.read_text().splitlines()) <= MOST_LINES
    for node in ast.walk(module.tree):
        if isinstance(node, FUNCTIONS):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{module.name}.{node.name}: {lines} lines"


@every_module
def test_what_is_public_says_what_it_is(module: Module):
    assert ast.get_docstring(module.tree), module.name
    if module.room == "machine":
        return  # its methods are described in the engine, under the same names
    scopes: list[ast.Module | ast.ClassDef] = [module.tree]
    while scopes:
        for node in scopes.pop().body:
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            assert ast.get_docstring(node), f"{module.name}.{node.name} has no docstring"
            scopes += [node] if isinstance(node, ast.ClassDef) else []


def _opens_rooms(node: ast.stmt) -> bool:
    """What the package's own front door has to import a room when it is asked for."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"


@every_module
def test_front_doors_hold_no_logic(module: Module):
    if module.path.name != "__init__.py":
        return
    for node in module.tree.body:
        if not module.room and _opens_rooms(node):
            continue
        is_import = isinstance(node, ast.ImportFrom | ast.Import)
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        assert is_import or is_text or is_constant, f"{module.name}: line {node.lineno}"


def test_files_are_named_for_what_they_are():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base", "tools"}
    assert not vague & {part for module in MODULES for part in module.name.split(".")}


def test_errors_are_raised_not_asserted_in_what_users_call():
    told = [module for module in MODULES if module.room in TOLD]
    for module in told:
        asserts = [node for node in ast.walk(module.tree) if isinstance(node, ast.Assert)]
        assert not asserts, module.name
