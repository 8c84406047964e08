"""Expressions on the columns of a table, as recipes write them. Conditions: `volume_nm3 >= 1e7 and (sphericity > 0.2 or not touches_border)`;
numbers: `min(to_nucleus_nm, to_plasma_membrane_nm) / 1000`.

Only names of columns, numbers, comparisons, and, or, not, + - * /, brackets and the functions of FUNCTIONS are understood; nothing is executed."""

from __future__ import annotations

import ast
import operator

import numpy as np

from vemray.errors import RecipeError, nearest

_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
#: name -> (function, least and most number of arguments). min and max are row by row, and empty where one argument is; log is natural
FUNCTIONS = {
    "min": (lambda *v: np.minimum.reduce(np.broadcast_arrays(*v)), 2, 99),
    "max": (lambda *v: np.maximum.reduce(np.broadcast_arrays(*v)), 2, 99),
    "abs": (np.abs, 1, 1),
    "sqrt": (np.sqrt, 1, 1),
    "log": (np.log, 1, 1),
}


def parse(text: str, what: str = "condition") -> ast.expr:
    """The syntax tree of a condition or expression (`what`), checked. RecipeError says what cannot be used."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as e:
        raise RecipeError(f"the {what} '{text}' cannot be read: {e.msg} at character {e.offset}.") from None
    except (ValueError, RecursionError, MemoryError):
        raise RecipeError(f"the {what} '{text[:200]}' cannot be read.") from None
    _check(tree, text, what)
    return tree


def _check(node: ast.AST, text: str, what: str) -> None:
    logic = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Compare)
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and not part.keywords:
            _check_call(part, text, what)
            continue
        known = isinstance(part, (*logic, *_COMPARE, *_ARITHMETIC, ast.Name, ast.Load, ast.Constant))
        if not known or (isinstance(part, ast.Constant) and not isinstance(part.value, int | float)):
            said = ast.unparse(part) if isinstance(part, ast.expr) else type(part).__name__
            raise RecipeError(
                f"the {what} '{text}' may hold column names, numbers, comparisons, and, or, not, + - * /, {', '.join(FUNCTIONS)}, not '{said}'."
            )


def _check_call(call: ast.Call, text: str, what: str) -> None:
    name = call.func.id
    if name not in FUNCTIONS:
        raise RecipeError(f"the {what} '{text}' may hold the functions {', '.join(FUNCTIONS)}, not '{name}'.{nearest(name, FUNCTIONS)}")
    _, least, most = FUNCTIONS[name]
    if not least <= len(call.args) <= most:
        raise RecipeError(f"in the {what} '{text}', {name}() takes {'one value' if most == 1 else 'two values or more'}, not {len(call.args)}.")


def columns(text: str) -> set[str]:
    """Names of the columns that the condition or expression needs."""
    tree = parse(text)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called}


def require(table, names, what: str) -> None:
    """RecipeError names the first of `names` that is no column of `table`, and the nearest one; `what` says who asks."""
    for name in names:
        if name not in table.column_names:
            known = table.column_names
            raise RecipeError(f"{what} names '{name}', which is not a column.{nearest(name, known)} There are: {', '.join(known)}.")


def evaluate(where: str, table) -> np.ndarray:
    """bool (rows,) of a pyarrow.Table. RecipeError names an unknown column and the nearest one."""
    return _run(where, table, "condition", truth=True)


def value(expression: str, table) -> np.ndarray:
    """float64 (rows,) of a pyarrow.Table, NaN where a column is empty; True counts 1. RecipeError as of `evaluate`."""
    return _run(expression, table, "expression", truth=False)


def is_condition(text: str) -> bool:
    """Whether an expression gives true or false rather than a number: a comparison, and, or, not on the outside."""
    tree = parse(text, "expression")
    return isinstance(tree, ast.BoolOp | ast.Compare) or (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not))


def _run(text: str, table, what: str, truth: bool) -> np.ndarray:
    import pyarrow as pa

    tree = parse(text, what)
    require(table, sorted(columns(text)), f"the {what} '{text}'")

    def values(node):
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return _column(table, node.id, text, what)
            case ast.UnaryOp(op=ast.Not()):
                return ~_truth(values(node.operand), node)
            case ast.UnaryOp():
                return -number(node.operand)
            case ast.BinOp():
                return _ARITHMETIC[type(node.op)](number(node.left), number(node.right))
            case ast.Call():
                return FUNCTIONS[node.func.id][0](*[number(a) for a in node.args])
            case ast.BoolOp():
                parts = [_truth(values(v), v) for v in node.values]
                return np.logical_and.reduce(parts) if isinstance(node.op, ast.And) else np.logical_or.reduce(parts)
            case ast.Compare():
                terms = [values(v) for v in (node.left, *node.comparators)]
                return np.logical_and.reduce([_COMPARE[type(o)](a, b) for o, a, b in zip(node.ops, terms, terms[1:])])

    def number(node):
        """A value to calculate with: float, since differences of unsigned columns would wrap around; empty is NaN."""
        if isinstance(node, ast.Name) and pa.types.is_boolean(table.column(node.id).type):
            return table.column(node.id).cast(pa.int8()).to_numpy().astype(float)
        return np.asarray(values(node), float)

    def _truth(v, node):
        if np.asarray(v).dtype != np.bool_:
            raise RecipeError(f"in the condition '{text}', '{ast.unparse(node)}' is a number, not a comparison.")
        return np.asarray(v)

    with np.errstate(divide="ignore", invalid="ignore"):
        out = _truth(values(tree), tree) if truth else number(tree)
    return np.broadcast_to(out, (table.num_rows,)).copy()


def _column(table, name: str, text: str, what: str) -> np.ndarray:
    """A column's values; an empty one is NaN, of true and false False."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy()
    if pa.types.is_null(column.type):
        return np.full(table.num_rows, np.nan)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise RecipeError(f"the {what} '{text}' names the column '{name}', which does not hold numbers but {column.type}.")
    return column.to_numpy()
