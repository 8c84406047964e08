"""Conditions on the columns of a table, as recipes write them: `volume_nm3 >= 1e7 and (sphericity > 0.2 or not touches_border)`.

Only names of columns, numbers, comparisons, and, or, not, + - * / and brackets are understood; nothing is executed."""

from __future__ import annotations

import ast
import operator

import numpy as np

from vemray.errors import RecipeError, nearest

_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def parse(where: str) -> ast.expr:
    """The condition's syntax tree, checked. RecipeError says what cannot be used."""
    try:
        tree = ast.parse(where.strip(), mode="eval").body
    except SyntaxError as e:
        raise RecipeError(f"the condition '{where}' cannot be read: {e.msg} at character {e.offset}.") from None
    except (ValueError, RecursionError, MemoryError):
        raise RecipeError(f"the condition '{where[:200]}' cannot be read.") from None
    _check(tree, where)
    return tree


def _check(node: ast.AST, where: str) -> None:
    logic = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Compare)
    for part in ast.walk(node):
        known = isinstance(part, (*logic, *_COMPARE, *_ARITHMETIC, ast.Name, ast.Load, ast.Constant))
        if not known or (isinstance(part, ast.Constant) and not isinstance(part.value, int | float)):
            said = ast.unparse(part) if isinstance(part, ast.expr) else type(part).__name__
            raise RecipeError(f"the condition '{where}' may hold column names, numbers, comparisons, and, or, not, + - * /, not '{said}'.")


def columns(where: str) -> set[str]:
    """Names of the columns that the condition needs."""
    return {n.id for n in ast.walk(parse(where)) if isinstance(n, ast.Name)}


def evaluate(where: str, table) -> np.ndarray:
    """bool (rows,) of a pyarrow.Table. RecipeError names an unknown column and the nearest one."""
    tree = parse(where)
    names = table.column_names
    for name in columns(where):
        if name not in names:
            raise RecipeError(f"the condition '{where}' names '{name}', which is not a column.{nearest(name, names)} There are: {', '.join(names)}.")

    def value(node):
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return table.column(node.id).to_numpy(zero_copy_only=False)
            case ast.UnaryOp(op=ast.Not()):
                return ~_truth(value(node.operand), node)
            case ast.UnaryOp():
                return -number(node.operand)
            case ast.BinOp():
                return _ARITHMETIC[type(node.op)](number(node.left), number(node.right))
            case ast.BoolOp():
                parts = [_truth(value(v), v) for v in node.values]
                return np.logical_and.reduce(parts) if isinstance(node.op, ast.And) else np.logical_or.reduce(parts)
            case ast.Compare():
                terms = [value(v) for v in (node.left, *node.comparators)]
                return np.logical_and.reduce([_COMPARE[type(o)](a, b) for o, a, b in zip(node.ops, terms, terms[1:])])

    def number(node):
        """A value to calculate with: float, since differences of unsigned columns would wrap around."""
        return np.asarray(value(node), float)

    def _truth(v, node):
        if np.asarray(v).dtype != np.bool_:
            raise RecipeError(f"in the condition '{where}', '{ast.unparse(node)}' is a number, not a comparison.")
        return np.asarray(v)

    with np.errstate(divide="ignore", invalid="ignore"):
        out = _truth(value(tree), tree)
    return np.broadcast_to(out, (table.num_rows,)).copy()
