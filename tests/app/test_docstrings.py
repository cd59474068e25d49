"""Everything public says in its first line what it does (STYLE 3), and the types are shipped with the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import packhorse

SOURCE = Path(packhorse.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
#: Classes of others whose methods are described there.
OUTSIDE = {"click.Group", "click.Command", "click.ParamType", "logging.Formatter", "asyncio.BaseEventLoop"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


CLASSES = _classes()


def _bases(node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    for base in node.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        for found in CLASSES.get(name, []):
            yield found
            yield from _bases(found)


def _protocols(node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """Protocols of this package that the class fulfils without naming them."""
    own = set(_methods(node))
    for candidates in CLASSES.values():
        for candidate in candidates:
            if any(getattr(base, "id", "") == "Protocol" for base in candidate.bases):
                asked = set(_methods(candidate))
                if asked and asked <= own:
                    yield candidate


def _methods(node: ast.ClassDef) -> dict[str, Function]:
    return {item.name: item for item in node.body if isinstance(item, Function)}


def _is_told_elsewhere(owner: ast.ClassDef, function: Function) -> bool:
    """Whether a class or protocol that this method belongs to describes it already; or it is one of several forms."""
    if any(getattr(item, "id", getattr(item, "attr", "")) == "overload" for item in function.decorator_list):
        return True
    if any(isinstance(item, ast.Attribute) and item.attr == "setter" for item in function.decorator_list):
        return True
    for other in (*_bases(owner), *_protocols(owner)):
        told = _methods(other).get(function.name)
        if told is not None and ast.get_docstring(told):
            return True
    return any(ast.unparse(base) in OUTSIDE for node in (owner, *_bases(owner)) for base in node.bases)


def _undocumented() -> Iterator[str]:
    for path, tree in TREES.items():
        where = path.relative_to(SOURCE)
        if not ast.get_docstring(tree):
            yield f"{where}: the module"
        for node in tree.body:
            if isinstance(node, Function) and where.is_relative_to("testing/conformance") and "_" in node.name:
                continue  # a rule of the contract: its name is the sentence
            if isinstance(node, Function) and not node.name.startswith("_"):
                yield from _check(f"{where}: {node.name}", node)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from _check(f"{where}: {node.name}", node)
                for function in _methods(node).values():
                    if not function.name.startswith("_") and not _is_told_elsewhere(node, function):
                        yield from _check(f"{where}: {node.name}.{function.name}", function)


def _check(what: str, node: Function | ast.ClassDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    if not text:
        yield f"{what} has no docstring"
    elif not text.strip().partition("\n")[0].rstrip().endswith((".", ":", "?", "`", "!")):
        yield f"{what}: its first line is no sentence: {text.strip().partition(chr(10))[0]!r}"


def test_everything_public_has_a_docstring_whose_first_line_is_a_sentence():
    assert list(_undocumented()) == []


def test_every_public_name_of_the_package_has_a_docstring():
    for name in packhorse.__all__:
        if name != "__version__":
            text = getattr(packhorse, name).__doc__
            assert text, name
            assert not text.startswith(f"{name}("), f"{name} has only the docstring that Python made up"
            assert text.strip().partition("\n")[0].rstrip().endswith("."), name


def test_the_types_are_shipped():
    assert (SOURCE / "py.typed").is_file()
    shipped = files("packhorse")
    assert shipped is not None
