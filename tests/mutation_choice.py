"""The mutants of a source file: one small change each (cosmic-ray's operators), a few a file, chosen by a seed."""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from typing import Any

# One replacement for each operator or two: others (`a << b` of floats, `is` of numbers) fail at once or change nothing.
SWAPS = {
    "Binary": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd",
    "Comparison": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is",
    "Unary": "Delete_Not Delete_USub Delete_Invert",
}
OPERATORS = [
    *(f"Replace{kind}Operator_{swap}" for kind, swaps in SWAPS.items() for swap in swaps.split()),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer"),
    *("RemoveDecorator", "ZeroIterationForLoop"),
]
TEXTS = {"warn", "warning", "debug", "info", "error", "print"}  # calls whose arguments are what somebody reads
Place = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """One change of a file: its `name` (where: what -> what), its text, and the lines that a test must reach.

    `scopes` are ranges of lines from narrow to wide: the statement, its function, its class; a test of the first that
    any test reaches is a test of the mutant. `names` are those of the constant, or of the class and the function, where
    the mutant changes what is declared (a default, a decorator): a test may look at it without reaching any statement.
    """

    name: str
    source: str
    scopes: tuple[Place, ...]
    names: tuple[str, ...] = ()


def key(*parts: object) -> str:
    """A place in a random order that other parts of the file have no influence on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _left_alone(tree: ast.AST) -> Iterator[tuple[Place, Place]]:
    """Where no mutant is made: annotations, __all__, imports for type checkers, texts of errors and of logs."""
    for node in ast.walk(tree):
        parts: list[ast.expr | ast.stmt | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns]
        elif isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            parts = [node.value]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            parts = [node]
        elif isinstance(node, ast.Raise):
            parts = [node.exc]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in TEXTS:
            parts = [node]
        for p in parts:
            if p is not None:
                yield (p.lineno, p.col_offset), (p.end_lineno or 0, p.end_col_offset or 0)


def _scopes(tree: ast.AST, line: int) -> tuple[str, tuple[Place, ...]]:
    """The name of the function or class around a line, and the lines of its statement, function and class."""
    names, found = [], []
    node: ast.AST | None = tree
    while node is not None:
        inside = (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler | ast.match_case))
        node = next((n for n in inside if _first(n) <= line <= _last(n)), None)
        if node is not None:
            name = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            names += name
            found += [(bool(name), (_first(node), _last(node)), _header(node))]
    if not found:
        return "", ((line, line),)
    wider = [span for named, span, _ in reversed(found) if named]
    return ".".join(names), (found[-1][2], *wider)


def _declared(tree: ast.Module, line: int, function: str) -> tuple[str, ...]:
    """The names under which others find what this line declares; none inside the body of a function."""
    bodies = [(d.body[0].lineno, _last(d)) for d in ast.walk(tree) if isinstance(d, ast.FunctionDef)]
    if any(first <= line <= last for first, last in bodies):
        return ()
    stored = (n for top in tree.body if _first(top) <= line <= _last(top) for n in ast.walk(top))
    constants = (n.id for n in stored if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return tuple(n for n in function.split(".") if n != "__init__") if function else tuple(constants)


def _first(node: Any) -> int:
    decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
    return int(min([getattr(node, "pattern", node).lineno, *decorators]))


def _last(node: Any) -> int:
    last: Any = node.body[-1] if isinstance(node, ast.match_case) else node
    return int(last.end_lineno)


def _header(node: ast.AST) -> Place:
    """The lines of a statement without the statements that it holds."""
    body = getattr(node, "body", None)
    return _first(node), max(_first(node), _first(body[0]) - 1) if body else _last(node)


def _candidates(source: str, path: str, seed: int) -> Iterator[tuple[str, str, int, Place]]:
    """Function, operator and occurrence of the possible mutants: functions take turns, in each a random place."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.operators.provider import OperatorProvider

    tree, lines = ast.parse(source), source.splitlines()
    left_alone = list(_left_alone(tree))
    places: dict[Place, list[tuple[str, int]]] = {}
    nodes, provider = list(ast_nodes(get_ast(source))), OperatorProvider()
    for name in OPERATORS:
        found = (place for node in nodes for place, _ in provider[name]().mutation_positions(node))
        for occurrence, (line, column) in enumerate(found):
            here = line, len(lines[line - 1][:column].encode())  # ast counts bytes
            keyword_only = lines[line - 1][column:].startswith("*,")
            if not keyword_only and not any(start <= here < end for start, end in left_alone):
                places.setdefault((line, column), []).append((name, occurrence))
    functions: dict[str, list[tuple[str, str, str, int, Place]]] = {}
    seen = Counter[tuple[str, str, int]]()
    for place, operators in sorted(places.items()):
        text = _scopes(tree, place[0])[0], lines[place[0] - 1].strip(), place[1]
        seen[text] += 1  # the same line again in this function
        order = key(seed, path, text, seen[text])
        operator, occurrence = min(operators, key=lambda o: key(order, o[0]))
        functions.setdefault(text[0], []).append((order, text[0], operator, occurrence, place))
    for turn in zip_longest(*(sorted(functions[f]) for f in sorted(functions, key=lambda f: key(seed, path, f)))):
        yield from map(itemgetter(1, 2, 3, 4), filter(None, turn))


def _changed(before: str, after: str) -> str:
    """The lines that differ, as `old -> new`."""
    old, new = before.splitlines(), after.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    texts = (
        re.sub(r"(?<=[(\[]) +|(?<=\w=) +", "", " ".join(line.strip() for line in lines).strip()) for lines in (old, new)
    )
    return " -> ".join(text or "(nothing)" for text in texts)


def mutants(source: str, path: str, number: int = 8, seed: int = 0) -> list[Mutant]:
    """`number` mutants of the file at `path`, or all that there are; the same for the same text, path and seed."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    tree, found = ast.parse(source), dict[str, Mutant]()
    for function, operator, occurrence, (line, _) in _candidates(source, path, seed):
        text = mutate_code(source, OperatorProvider()[operator](), occurrence)
        try:
            if text is None or ast.dump(ast.parse(text)) == ast.dump(tree):
                continue
        except SyntaxError:
            continue
        name = f"{function or 'module'}: {_changed(source, text)}"
        name += f" #{sum(n.startswith(name) for n in found) + 1}" if name in found else ""
        names = _declared(tree, line, function)
        found[name] = Mutant(name, text, _scopes(tree, line)[1], names)
        if len(found) == number:
            break
    return list(found.values())
