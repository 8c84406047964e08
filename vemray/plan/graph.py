"""The recipe resolved against real inputs: composites expanded, every input found, every kind and spec checked, and a content key
for every node: operator, version, parameters, hashes of its files, keys of its inputs. Nothing runs here."""

from __future__ import annotations

import hashlib
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import vemray.models.infer  # noqa: F401  registers `infer`
from vemray.errors import InputError, RecipeError, nearest
from vemray.ops import OPERATORS, build, find, parameters
from vemray.ops.base import Analysis, ArraySpec, Artefact, ArtefactSpec, BlockOperator, Composite, Filter, Labeller, Measure, Operator, Port
from vemray.plan.recipe import Recipe
from vemray.plan.scenes import column_of
from vemray.plan.sources import Source, TableSource


@dataclass(frozen=True)
class Node:
    """One operator with its inputs found. `inputs`: port (or 'port.key' of a many-port) -> name of a node output or an input.
    `outputs`: output name -> ArraySpec or ArtefactSpec, or the string 'table' or 'scalars'."""

    name: str
    op: Operator
    inputs: dict[str, str]
    outputs: dict[str, Any]
    key: str
    step: str  # the recipe's step it came from
    files: tuple[str, ...] = ()  # hashes of the operator's files


@dataclass(frozen=True)
class Graph:
    recipe: Recipe
    sources: dict[str, Source | TableSource]
    nodes: dict[str, Node]
    keep: tuple[str, ...]  # output names the user wants

    def producer(self, ref: str) -> Node | None:
        """The node that makes output `ref`; None for an input."""
        return self._made_by().get(ref)

    def _made_by(self) -> dict[str, Node]:
        return {out: node for node in self.nodes.values() for out in node.outputs}

    def spec(self, ref: str) -> Any:
        return self.sources[ref].spec if ref in self.sources else self.producer(ref).outputs[ref]


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: str) -> str:
    h = hashlib.sha256()
    try:
        with open(path, "rb") as f:
            while piece := f.read(1 << 20):
                h.update(piece)
    except OSError as e:
        raise InputError(f"cannot read '{path}': {e.strerror}. A path in a recipe starts from the recipe's folder.") from None
    return h.hexdigest()


def resolve(recipe: Recipe, sources: Mapping[str, Source | TableSource]) -> Graph:
    """Bind `recipe` to its inputs. RecipeError names the step and what is wrong with it."""
    missing = [n for n in (*recipe.given_inputs, *recipe.inputs) if n not in sources]
    if missing:
        what = "FILE.csv" if recipe.inputs[missing[0]].kind == "table" else "URL"
        raise RecipeError(f"the recipe '{recipe.name}' needs the input '{missing[0]}'. Give it with --volume {missing[0]}={what}.")
    for name, s in sources.items():
        if name not in recipe.inputs:
            raise RecipeError(f"the recipe '{recipe.name}' has no input '{name}'.{nearest(name, recipe.inputs)} It has: {', '.join(recipe.inputs)}.")
        want, has = recipe.inputs[name].kind, s.spec if isinstance(s.spec, str) else s.spec.kind
        if want != has and {want, has} & {"labels", "mask", "table"}:
            raise RecipeError(f"input '{name}' of the recipe '{recipe.name}' is {want}, but {s.url} holds {has}.")
    nodes: dict[str, Node] = {}
    specs: dict[str, Any] = {n: s.spec for n, s in sources.items()}
    keys: dict[str, str] = {n: s.key for n, s in sources.items()}

    def place(name: str, op: Operator, inputs: dict[str, str], step: str) -> None:
        where = f"step '{step}': "
        if isinstance(op, Composite):
            for part in op.expand(inputs):
                full = {p: (name + r if r.startswith(".") else r) for p, r in part.inputs.items()}
                place(name + part.name, part.op, full, step)
            return
        _check_one_grid(op, inputs, specs, where)
        for port in op.ports:
            for key, ref in inputs.items():
                if key.partition(".")[0] != port.name:
                    continue
                has = specs[ref] if isinstance(specs[ref], str) else specs[ref].kind
                if not port.accepts(has):
                    raise RecipeError(f"{where}'{op.name}' takes {' or '.join(port.kinds)} at '{port.name}', but '{ref}' is {has}.")
        call_specs = _call_specs(op, inputs, specs)
        outputs: dict[str, Any] = {}
        try:
            if isinstance(op, BlockOperator):
                op.check(*call_specs)
            if isinstance(op, Filter):
                out = op.output(*call_specs)
                outputs = {f"{name}.{k}": v for k, v in out.items()} if isinstance(out, dict) else {name: out}
            elif isinstance(op, Labeller):
                first = next(iter(own_arrays(op, inputs, specs).values()))
                outputs = {name: first.like("uint64", "labels")}
            elif isinstance(op, Artefact):
                outputs = {name: op.output(*call_specs)}
            elif isinstance(op, Measure | Analysis):
                outputs = {name: op.gives}
        except RecipeError as e:
            raise RecipeError(f"{where}{e}") from None
        ports = ports_of(op, inputs)
        hashes = [file_hash(f) for f in op.files()]
        key = digest(
            op.name,
            op.version,
            parameters_for_key(op),
            hashes,
            op.facts(),
            {p: _grid_key(specs[r]) if ports[p].grid_only else [r.partition(".")[2], keys[r]] for p, r in inputs.items()},
        )
        nodes[name] = Node(name, op, dict(inputs), outputs, key, step, tuple(hashes))
        for out, spec in outputs.items():
            specs[out], keys[out] = spec, key

    for step, body in _in_order(recipe):
        op, inputs = _bind(step, body, recipe, specs)
        place(step, op, inputs, step)

    made = [o for n in nodes.values() for o in n.outputs]
    keep = []
    for want in recipe.outputs if recipe.outputs is not None else _worth_keeping(nodes):
        hits = [o for o in made if o == want or (o.startswith(want + ".") and o in nodes.get(want, _NOTHING).outputs)]
        if not hits:
            raise RecipeError(f"outputs: there is no step '{want}'.{nearest(want, made)}")
        keep += hits
    _check_report(recipe, specs, nodes)
    return Graph(recipe, dict(sources), nodes, tuple(dict.fromkeys(keep)))


def _check_report(recipe: Recipe, specs: Mapping[str, Any], nodes: Mapping[str, Node]) -> None:
    """Pictures and plots are of what they can show. The columns of a table are known beforehand where it is measured; else the report says it."""
    scenes = recipe.report.scenes
    volumes = [(f"report.scenes.{n}", v, ("labels", "mask")) for n, s in scenes.items() for v in s.volumes]
    for where, ref, kinds in [*volumes, *((where, t, ("table",)) for where, t in recipe.report.used_tables)]:
        fitting = [n for n, s in specs.items() if (s if isinstance(s, str) else s.kind) in kinds]
        if ref not in fitting:
            has = (specs[ref] if isinstance(specs[ref], str) else specs[ref].kind) if ref in specs else "a step of several outputs"
            raise RecipeError(f"{where} names '{ref}', which is {has}, not {' or '.join(kinds)}.{nearest(ref, fitting)}")
    colours = [(f"report.scenes.{n}", s.colour) for n, s in scenes.items() if s.colour]
    for where, text in [*colours, *(("report.distributions", d) for d in recipe.report.distributions)]:
        table, column = column_of(text)
        node = nodes.get(table)
        if hasattr(node and node.op, "column_names") and column not in (known := node.op.column_names("image" in node.inputs)):
            raise RecipeError(f"{where} names '{text}', but '{table}' has no column '{column}'.{nearest(column, known)}")


def _worth_keeping(nodes: Mapping[str, Node]) -> list[str]:
    """What is kept where the recipe does not say: every table, every volume that no other volume is made from, every surface that is not used."""
    made_from = {r for n in nodes.values() if any(isinstance(s, ArraySpec) for s in n.outputs.values()) for r in n.inputs.values()}
    used = {r for n in nodes.values() for r in n.inputs.values()}
    own = [n for n in nodes.values() if n.name == n.step]  # not the parts of composites
    no_more = {ArraySpec: made_from, ArtefactSpec: used}
    return [o for n in own for o, spec in n.outputs.items() if o not in no_more.get(type(spec), ())]


_NOTHING = Node("", Operator(), {}, {}, "", "")


def parameters_for_key(op: Operator) -> dict[str, Any]:
    """Parameters without paths of files, whose content is hashed instead: a moved model is the same model."""
    files = op.files()
    paths = {*files, *(os.path.dirname(f) for f in files)}  # a model may be a folder
    own = _paths(type(op))
    return {k: v for k, v in parameters(op).items() if not (k in own and paths.issuperset(v if isinstance(v, list) else [v]))}


def ports_of(op: Operator, inputs: Mapping[str, str]) -> dict[str, Port]:
    """Input ('port' or 'port.key') -> its port."""
    ports = {p.name: p for p in op.ports}
    return {key: ports[key.partition(".")[0]] for key in inputs}


def own_arrays(op: Operator, inputs: Mapping[str, str], specs: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """Specs of the arrays that lie on the operator's own grid, by input, in the order of the ports."""
    ports = ports_of(op, inputs)
    order = sorted(inputs, key=lambda key: op.ports.index(ports[key]))
    return {key: specs[inputs[key]] for key in order if not ports[key].other_grid and isinstance(specs[inputs[key]], ArraySpec)}


def _check_one_grid(op: Operator, inputs: Mapping[str, str], specs: Mapping[str, Any], where: str) -> None:
    """RecipeError where arrays that the operator combines voxel by voxel have different voxels."""
    own = own_arrays(op, inputs, specs)
    if len({s.shape for s in own.values()}) > 1 or len({tuple(round(v, 6) for v in s.spacing.zyx) for s in own.values()}) > 1:
        listed = "; ".join(f"{inputs[key]} is {s.shape} at {s.spacing}" for key, s in own.items())
        raise RecipeError(f"{where}its inputs do not lie on the same voxels: {listed}. 'upsample' brings a coarse array to the voxels of a fine one.")


def _grid_key(spec: ArraySpec) -> list[Any]:
    return [spec.shape, spec.spacing.zyx, spec.origin_nm]


def _in_order(recipe: Recipe):
    """Steps in an order in which each comes after those it names; the recipe may list them in any."""
    waiting, done = dict(recipe.steps), set()
    while waiting:
        ready = [n for n, b in waiting.items() if not any(r.partition(".")[0] in waiting and r.partition(".")[0] != n for r in _refs(n, b))]
        selfish = [n for n, b in waiting.items() if any(r.partition(".")[0] == n for r in _refs(n, b))]
        if selfish:
            raise RecipeError(f"step '{selfish[0]}' takes itself as its input.")
        if not ready:
            raise RecipeError(f"the steps {', '.join(sorted(waiting))} wait for each other: a circle.")
        for n in ready:
            yield n, waiting.pop(n)
            done.add(n)


def _refs(step: str, body: dict) -> list[str]:
    cls = OPERATORS.get(str(body.get("op")))
    if cls is None:
        return []
    out: list[str] = []
    for p in cls.ports:
        v = body.get(p.name)
        out += [str(x) for x in v.values()] if isinstance(v, dict) else [str(v)] if v is not None else []
    return out


def _bind(step: str, body: dict, recipe: Recipe, specs: dict) -> tuple[Operator, dict[str, str]]:
    where = f"step '{step}': "
    try:
        cls = find(str(body["op"]))
    except RecipeError as e:
        raise RecipeError(f"{where}{e}") from None
    if getattr(cls, "hidden", False):
        raise RecipeError(f"{where}'{cls.name}' is a part of other operators and cannot be used in a recipe.")
    inputs: dict[str, str] = {}
    rest = {k: v for k, v in body.items() if k not in ("op", "why")}
    for port in cls.ports:
        given = rest.pop(port.name, None)
        if given is None:
            if not port.optional:
                raise RecipeError(f"{where}'{cls.name}' needs the input '{port.name}' ({' or '.join(port.kinds)}).")
            continue
        if port.many != isinstance(given, dict):
            raise RecipeError(f"{where}'{port.name}' takes {'a mapping of names to steps' if port.many else 'the name of one step or input'}.")
        for key, ref in ((f"{port.name}.{k}", v) for k, v in given.items()) if port.many else [(port.name, given)]:
            if ref not in specs:
                several = [s for s in specs if s.startswith(f"{ref}.")]
                hint = f" It has several outputs: {', '.join(several)}." if several else nearest(str(ref), specs)
                raise RecipeError(f"{where}its input '{key}' names '{ref}', which is neither a step nor an input.{hint}")
            inputs[key] = ref
    for k in _paths(cls) & set(rest):
        rest[k] = [_located(v, recipe) for v in rest[k]] if isinstance(rest[k], list) else _located(rest[k], recipe)
    return build(cls.name, rest, where), inputs


def _located(path: Any, recipe: Recipe) -> Any:
    """A relative path starts from the recipe's folder; an installed network (entry:NAME) is no file."""
    if not isinstance(path, str) or "://" in path or path.startswith("entry:"):
        return path
    return os.path.normpath(os.path.join(recipe.folder or os.getcwd(), path))


def _paths(cls: type[Operator]) -> set[str]:
    """Parameters that are paths of files: their Field carries json_schema_extra={'path': True}."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {k for k, t in hints.items() if any((getattr(m, "json_schema_extra", None) or {}).get("path") for m in getattr(t, "__metadata__", ()))}


def arguments(op: Operator, inputs: Mapping[str, str], value) -> list[Any]:
    """The call's arguments in the order of the ports: `value(ref)` for each input, a dict for a many-port, None when left out."""

    def one(p: Port):
        if p.many:
            return {k.partition(".")[2]: value(r) for k, r in inputs.items() if k.partition(".")[0] == p.name}
        return value(inputs[p.name]) if p.name in inputs else None

    return [one(p) for p in op.ports]


def _call_specs(op: Operator, inputs: Mapping[str, str], specs: Mapping[str, Any]) -> list[Any]:
    """Specs for `output`, `check` and `memory`: array and surface ports in port order (None for an optional one left out); tables are left out."""
    return [s for p, s in zip(op.ports, arguments(op, inputs, lambda r: specs[r])) if not set(p.kinds) <= {"table", "scalars"}]
