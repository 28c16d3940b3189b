"""Every public function, class and method has a docstring, which says what it raises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / "fastgen").rglob("*.py"), *(ROOT / "kernels" / "fastgen_kernels").rglob("*.py")]
TREES = {path: ast.parse(path.read_text()) for path in FILES}
CLASSES = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
NO_ERRORS = {"NotImplementedError", "SystemExit"}
CHECKS = {"expect", "lookup", "expect_package"}


def room(path):
    """ "models" of fastgen/models/unet.py, "fastgen" of what lies at its top, "fastgen_kernels" of every op."""
    package, *folders = path.relative_to(ROOT / "kernels" if "kernels" in path.parts else ROOT).parts[:-1]
    return folders[0] if package == "fastgen" and folders else package


def public(path):
    """(name, node, its class or None) of what is public in a file, and of constructors."""
    for node in TREES[path].body:
        if isinstance(node, FUNCTIONS | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, None
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, FUNCTIONS) and (inner.name == "__init__" or not inner.name.startswith("_")):
                    yield f"{node.name}.{inner.name}", inner, node


def names(nodes):
    """The last parts of the names that expressions are made of: {"jit"} of triton.jit and of triton.jit(…)."""
    nodes = [node.func if isinstance(node, ast.Call) else node for node in nodes]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}


def documented(node, owner):
    """In itself or, what is __init__, forward or inherited, in a class's docstring."""
    if ast.get_docstring(node) or names(node.decorator_list) & {"overload", "jit"}:
        return True
    if owner is None:
        return False
    if node.name in ("__init__", "forward") and ast.get_docstring(owner):
        return True
    return any(documented_in(parent, node.name) for parent in parents(owner))


def parents(owner):
    """Our own classes of the names that a class derives from."""
    return [node for node in CLASSES if node.name in names(owner.bases) and node is not owner]


def documented_in(owner, method):
    own = [node for node in owner.body if isinstance(node, FUNCTIONS) and node.name == method]
    return any(ast.get_docstring(node) for node in own) or any(documented_in(parent, method) for parent in parents(owner))


def raises(node):
    """Whether a function itself, not one that it defines, raises an error or calls what only does that."""
    todo = list(node.body)
    while todo:
        inner = todo.pop()
        if isinstance(inner, ast.Raise) and inner.exc is not None and not names([inner.exc]) & NO_ERRORS:
            return True
        if isinstance(inner, ast.Call) and names([inner]) & CHECKS:
            return True
        if not isinstance(inner, FUNCTIONS | ast.ClassDef | ast.Lambda):
            todo += ast.iter_child_nodes(inner)
    return False


def says_so(node, owner):
    texts = [ast.get_docstring(each) or "" for each in (node, owner) if each is not None]
    return any(re.search(r"\braises?\b", text, re.IGNORECASE) for text in texts)


ROOMS = sorted({room(path) for path in FILES})


@pytest.mark.parametrize("name", ROOMS)
def test_what_is_public_is_documented(name):
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {what}"
        for path in FILES
        if room(path) == name
        for what, node, owner in public(path)
        if not documented(node, owner)
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", ROOMS)
def test_what_raises_says_so(name):
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {what}"
        for path in FILES
        if room(path) == name
        for what, node, owner in public(path)
        if isinstance(node, FUNCTIONS) and raises(node) and not says_so(node, owner)
    ]
    assert not silent, "\n".join(silent)
