"""The rooms of the package know only what they may know."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lcot_plugin"
COMMON = {"types", "errors", "vlm", "head", "user_functions", "protocols", "whole_weights"}
ROOMS: dict[str, set[str]] = {
    "data": COMMON | {"rewards"},
    "render": COMMON,
    "packing": COMMON | {"survival"},
    "rewards": COMMON,
    "rollout": COMMON | {"packing"},
    "policy": COMMON | {"packing", "arguments", "survival"},
    "evaluate": COMMON,
    "report": COMMON,
    "survival": COMMON,
}
"""Room -> what else of lcot_plugin it may import. integration, demo and the command line see everything."""

LLAMAFACTORY_ROOMS = {"integration", "demo"}
STANDARD_LIBRARY_ONLY = ("__init__.py", "activation.py", "types.py", "errors.py", "cli.py", "recipes.py", "doctor.py")
NO_TORCH_ROOMS = {"rewards"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(tree: ast.AST, *, package: str) -> set[str]:
    """Dotted names of everything that `tree` imports, relative imports resolved against `package`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def at_import_time(tree: ast.Module) -> ast.Module:
    """The tree without function bodies and `if TYPE_CHECKING` blocks."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Prune().visit(tree)


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def parse(path: Path) -> tuple[ast.Module, str]:
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    return ast.parse(path.read_text(encoding="utf-8")), package


def neighbours(path: Path) -> set[str]:
    """The other rooms that a module imports."""
    tree, package = parse(path)
    own = {name for name in imported_modules(tree, package=package) if name.startswith("lcot_plugin.")}
    return {name.split(".")[1] for name in own} - {room_of(path)}


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in ROOMS], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_its_neighbours(path: Path) -> None:
    forbidden = neighbours(path) - ROOMS[room_of(path)]
    assert not forbidden, f"{path.relative_to(PACKAGE)} imports lcot_plugin.{', '.join(sorted(forbidden))}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_integration_imports_llamafactory(path: Path) -> None:
    tree, package = parse(path)
    uses = sorted(name for name in imported_modules(tree, package=package) if name.split(".")[0] == "llamafactory")
    allowed = room_of(path) in LLAMAFACTORY_ROOMS or path.name == "cli.py"
    assert not uses or allowed, f"{path.relative_to(PACKAGE)} imports {uses}: that belongs to integration/"


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_importing_the_package_is_light(name: str) -> None:
    tree, package = parse(PACKAGE / name)
    imported = {module.split(".")[0] for module in imported_modules(at_import_time(tree), package=package)}
    assert imported <= sys.stdlib_module_names | {"lcot_plugin"}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room_of(p) in NO_TORCH_ROOMS], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_rewards_do_without_torch(path: Path) -> None:
    tree, package = parse(path)
    imported = {module.split(".")[0] for module in imported_modules(at_import_time(tree), package=package)}
    assert not imported & {"torch", "transformers", "trl"}


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {path.relative_to(PACKAGE): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 500}


def test_the_import_parser_sees_each_form() -> None:
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    import i\n"
    tree = ast.parse(source)
    assert imported_modules(tree, package="p.q") == {"a.b", "c.d", "p.q.e", "p.f.g", "i"}
    assert "i" not in imported_modules(at_import_time(tree), package="p.q")
