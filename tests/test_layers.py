"""Who may import whom: the table of docs/architecture.md, held by reading every import of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pixfit

SOURCE = Path(pixfit.__file__).parent

ROWS: dict[str, int] = {
    "canonical": 1, "files": 1,
    "images": 2, "operators": 2, "noise": 2, "noise_estimate": 2, "held_out": 2, "losses": 2, "metrics": 2,
    "kernels": 2, "augmentation": 2,
    "models": 3,
    "starts": 4, "optim": 4, "schedules": 4, "stopping": 4,
    "problem": 5, "plots": 5,
    "spec": 6, "result": 6, "classical": 6, "pieces": 6,
    "job": 7, "stack": 7, "lowered": 7, "engine": 7, "modelfile": 7, "tasks": 7,
    "render": 8, "store": 8, "embedding": 8,
    "recipes": 9, "similarity": 9, "paths": 9,
    "run": 10,
    "studies": 11, "workers": 11, "restore": 11, "memorize": 11,
    "report": 12, "export": 12,
    "cli": 13,
}  # fmt: skip
"""Module or folder, and its row: it may import only from lower rows."""

SIDEWAYS = {
    ("optim", "schedules"), ("result", "spec"), ("engine", "stack"), ("engine", "lowered"), ("engine", "job"),
    ("lowered", "stack"),
}  # fmt: skip
"""Who may import a module of its own row."""

ENTRIES = {"__init__", "__main__"}  # these hand everything out


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).as_posix() != "__init__.py")


def top(path: Path) -> str:
    """The module or folder that a file belongs to, by its name in the table."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """All (module, name) of pixfit that a file imports, at any depth: in functions and for type checking too.

    ``import pixfit`` with ``pixfit.x`` in the text counts as an import of x.
    """
    package = ["pixfit", *path.relative_to(SOURCE).with_suffix("").parts][:-1]
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if full == "pixfit":
                    yield pixfit._NAMES.get(alias.name, alias.name), alias.name
                elif full.startswith("pixfit."):
                    yield full.split(".")[1], alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("pixfit."):
                    yield alias.name.split(".")[1], ""
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pixfit":
            name = pixfit._NAMES.get(node.attr, node.attr)
            if name in ROWS:
                yield name, node.attr


def outside(path: Path) -> set[str]:
    """Top-level names of all that a file imports from elsewhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found - {"pixfit", "__future__"}


each = pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(SOURCE).as_posix())


def test_every_module_has_a_row() -> None:
    assert {top(path) for path in modules()} - ENTRIES <= set(ROWS)


def test_every_row_has_its_module() -> None:
    """A module of the table that is renamed or removed must leave the table; these are not written yet."""
    assert set(ROWS) - {top(path) for path in modules()} <= {"report", "export", "cli"}


@each
def test_imports_go_down(path: Path) -> None:
    own = top(path)
    if own in ENTRIES:
        return
    for other, name in imported(path):
        if other == own or other.startswith("__"):
            continue
        assert other in ROWS, f"{own} imports {other}, which has no row"
        down = ROWS[other] < ROWS[own] or (own, other) in SIDEWAYS
        assert down, f"{own} (row {ROWS[own]}) imports {name or other} from {other} (row {ROWS[other]})"


def test_losses_and_metrics_do_not_know_each_other() -> None:
    assert "metrics" not in {module for module, _ in imported(SOURCE / "losses.py")}
    assert "losses" not in {module for module, _ in imported(SOURCE / "metrics.py")}


@pytest.mark.parametrize("name", ["engine", "stack"])
def test_the_loop_cannot_reach_the_truth(name: str) -> None:
    found = set(imported(SOURCE / f"{name}.py"))
    assert not {module for module, _ in found} & {"images", "metrics", "files", "store", "run"}
    assert {text for module, text in found if module == "problem"} <= {"View", "stream"}
    assert not outside(SOURCE / f"{name}.py") & {"os", "pathlib", "sqlite3", "skimage", "safetensors"}


def test_the_canonical_form_needs_the_standard_library_alone() -> None:
    for name in ("canonical", "files"):
        assert not outside(SOURCE / f"{name}.py") & {"torch", "numpy", "scipy", "PIL", "safetensors"}
        assert not set(imported(SOURCE / f"{name}.py"))


def test_the_check_sees_imports_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import pixfit.run\nfrom pixfit import engine as e, Problem\nfrom pixfit.models.base import Model\n"
        "from ..optim import Adam\nfrom .near import x\n"
        "if TYPE_CHECKING:\n    from pixfit import store\n"
        "def f():\n    from pixfit.metrics import psnr\n    import pixfit\n    return pixfit.plots.png, pixfit.Start\n"
    )
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text(text)
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    found = {module for module, _ in imported(tmp_path / "kernels" / "a.py")}
    assert found == {"run", "engine", "problem", "models", "optim", "kernels", "store", "metrics", "plots", "starts"}


# --- exports


def public_names(tree: ast.Module) -> set[str]:
    """Names that a module defines at its top: functions, classes and values, without imports."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {item.id for target in node.targets for item in ast.walk(target) if isinstance(item, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


@each
def test_exports_are_the_public_names(path: Path) -> None:
    """``__all__`` of a module is what it defines without an underscore; of a folder's ``__init__``, what it imports."""
    if path.name == "__main__.py":
        return
    tree = ast.parse(path.read_text("utf-8"))
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert listed, "no __all__"
    if path == SOURCE / "cli" / "__init__.py":
        assert listed[0] == ["app", "main"]  # the commands are reached through the program
        return
    public = public_names(tree)
    if path.name == "__init__.py":
        public |= {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
        public -= {"annotations"}
    assert set(listed[0]) == public
    assert len(listed[0]) == len(set(listed[0]))


def test_the_package_hands_out_what_it_lists() -> None:
    for name in pixfit.__all__:
        assert getattr(pixfit, name) is not None
    assert set(pixfit.__all__) == {*pixfit._MODULES, *pixfit._NAMES}
    assert not hasattr(pixfit, "nothing_of_the_kind")
