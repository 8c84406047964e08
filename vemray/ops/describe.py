"""Operators described from the registry: `vemray ops` and the table in the docs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing

from vemray.ops.base import OPERATORS, Analysis, Approximate, Artefact, Composite, Filter, Labeller, Measure, Operator, find, load_plugins

KINDS = {Filter: "filter", Labeller: "labeller", Measure: "measure", Artefact: "artefact", Analysis: "analysis", Composite: "composite"}


def kind(cls: type[Operator]) -> str:
    return next((name for base, name in KINDS.items() if issubclass(cls, base)), "operator")


def first_sentence(cls: type[Operator]) -> str:
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".") + "."


def parameter_rows(cls: type[Operator]) -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of each parameter."""
    hints, plain = typing.get_type_hints(cls, include_extras=True), typing.get_type_hints(cls)
    rows = []
    for f in dataclasses.fields(cls):
        about = next((m.description for m in getattr(hints[f.name], "__metadata__", ()) if getattr(m, "description", None)), "")
        t = plain[f.name]
        default = (
            "required"
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            else repr(f.default if f.default is not dataclasses.MISSING else f.default_factory())
        )
        shown = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", str(t).replace("typing.", "")) if typing.get_origin(t) else getattr(t, "__name__", str(t))
        rows.append((f.name, shown, default, about))
    return rows


def visible() -> dict[str, type[Operator]]:
    load_plugins()
    return {n: c for n, c in sorted(OPERATORS.items()) if not c.hidden}


def table(width: int = 120) -> str:
    """Each operator: what it does, its kind, inputs and parameters, wrapped at `width` columns."""
    classes = visible()
    left = max(map(len, classes)) + 2
    out = []
    for n, c in classes.items():
        inputs = ", ".join(p.name + ("?" if p.optional else "") for p in c.ports)
        parameters = ", ".join(r[0] for r in parameter_rows(c))
        facts = f"{kind(c)}{' of ' + inputs if inputs else ''}{'; parameters: ' + parameters if parameters else ''}"
        out += [_wrapped(n.ljust(left) + first_sentence(c), width, left), _wrapped(" " * left + facts, width, left + 2)]
    return "\n".join([*out, "", "`vemray ops NAME` shows one in full; ? marks an input that may be left out."])


def _wrapped(text: str, width: int, indent: int) -> str:
    """One line of text at `width` columns, what follows the first indented."""
    return textwrap.fill(
        text, max(width, indent + 30), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def describe(name: str, width: int = 120) -> str:
    """One operator in full."""
    cls = find(name)
    contract = f"approximate: {cls.contract.why}" if isinstance(cls.contract, Approximate) else "exact: blockwise equals whole"
    paragraphs = [" ".join(p.split()) for p in (inspect.getdoc(cls) or "").split("\n\n")]
    out = [f"{name} ({kind(cls)}; {contract})", *(line for p in paragraphs for line in ("", p)), "", "inputs"]
    for p in cls.ports:
        out.append(
            f"  {p.name}: {' or '.join(p.kinds)}{', several by name' if p.many else ''}{', optional' if p.optional else ''}{'. ' + p.doc if p.doc else ''}"
        )
    out += ["  none"] if not cls.ports else []
    out.append("parameters")
    out += [f"  {n}: {t} = {d}  {about}".rstrip() for n, t, d, about in parameter_rows(cls)] or ["  none"]
    if cls.serves:
        out += ["", f"serves: {cls.serves}"]
    return "\n".join(_wrapped(line, width, 6 if line.startswith("  ") else 0) for line in out)


def markdown() -> str:
    """The table of docs/operators.md."""
    out = []
    for n, c in visible().items():
        out += [
            f"### `{n}`",
            "",
            f"{first_sentence(c)} *{kind(c)}*; inputs: "
            + (", ".join(f"`{p.name}` ({'/'.join(p.kinds)}{', optional' if p.optional else ''})" for p in c.ports) or "none")
            + ".",
            "",
        ]
        rows = parameter_rows(c)
        if rows:
            out += [
                "| parameter | type | default | |",
                "|---|---|---|---|",
                *(f"| `{a}` | `{b.replace('|', 'or')}` | `{d}` | {about} |" for a, b, d, about in rows),
                "",
            ]
    return "\n".join(out)
