"""Archives of torch.export (.pt2), run without torch.export.load, which unpickles and evaluates what a file says: the graph is read as data, and each of
its nodes is one call of a known operator on tensors or numbers."""

from __future__ import annotations

import io
import json
import math
import operator
import re
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vemray.errors import ModelError
from vemray.models.facts import Facts, parse
from vemray.models.native import BROKEN, checked, unpacked
from vemray.models.torchscript import Engine, TorchScriptModel, sidecar_facts

#: of the format that is read; torch 2.9 and later write it
SCHEMA = 8
#: operators of torch whose names begin with _ and that networks use; the others are torch's own affair
_PRIVATE = {
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_scalar", "_assert_tensor_metadata", "_log_softmax", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit", "_prelu_kernel", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_to_copy", "_unsafe_view",
    "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface",
    *(f"__{o}__" for o in ("and", "or", "xor", "lshift", "rshift")),
}  # fmt: skip
#: of torch's other operators: what takes indices, pointers or shapes on trust, changes what a tensor's memory is, or writes without saying so
_RISKY = re.compile(
    r"data|ctc_loss|embedding_bag|from_file|record_stream|segment_reduce|(re)?set\w*|unsafe_\w+|batch_norm_\w+|retain\w+|requires_grad_|infinitely\w+"
    r"|\w*(backward|resize|sparse|crow|csr|csc|bsr|bsc|mkldnn|fbgemm|quantize|fake_quant|cudnn|miopen|nested|_dense_tensors|padded_tensor)\w*"
)
#: the most weights that an archive's bytes make; some share them
_SHARED = 8
#: arithmetic of sizes
_PLAIN = {"add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_"}
_SIZES = {"sym_ite", "sym_max", "sym_min", "sym_not", "sym_float", "sym_int", "sym_sum"}
_MATH = {"floor", "ceil", "trunc", "sqrt"}
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool", 13: "bfloat16"}
_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
TRAINS = "it is a network in training, whose dropout and statistics change with each call. Export it again after module.eval()"
_NUMBERS = {"as_int", "as_float", "as_bool", "as_ints", "as_floats", "as_bools", "as_string", "as_int_lists", "as_float_lists"}
_SYMBOLS = {"as_sym_int", "as_sym_float", "as_sym_bool"}


@dataclass(frozen=True)
class Named:
    """A value that another node, an input or a weight has given."""

    name: str


@dataclass(frozen=True)
class Call:
    target: str
    args: tuple
    kwargs: dict[str, Any]
    gives: list  # Named, None, or a list of such


@dataclass(frozen=True)
class Program:
    """`weights`: name in the graph -> key of the archive's own list. `size` of the one image that goes in, None where it is free."""

    calls: list[Call]
    weights: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    size: tuple[int | None, ...]


def program(graph_module: dict) -> Program:
    """ValueError, KeyError or TypeError for what is none, ModelError without the path for what is not run."""
    graph, signature = graph_module["graph"], graph_module["signature"]
    weights, inputs, outputs = {}, [], []
    for spec in signature["input_specs"]:
        (kind, what), *_ = [(k, v) for k, v in spec.items() if v is not None]
        if kind in ("parameter", "buffer", "tensor_constant"):
            weights[what["arg"]["name"]] = what[f"{kind}_name"]
        elif kind == "user_input" and "as_tensor" in what["arg"]:
            inputs.append(what["arg"]["as_tensor"]["name"])
        elif kind != "constant_input":  # a flag, whose value is in the graph
            raise ModelError(f"it takes a '{kind}' that is no tensor, and a network is run on tensors alone")
    for spec in signature["output_specs"]:
        (kind, what), *_ = [(k, v) for k, v in spec.items() if v is not None]
        if kind == "buffer_mutation":
            raise ModelError(TRAINS)
        if kind not in ("user_output", "user_input_mutation"):
            raise ModelError(f"it gives a '{kind}', which is no result of a network")
        if kind == "user_output" and "as_tensor" in what["arg"]:  # none and numbers beside the results are let go
            outputs.append(what["arg"]["as_tensor"]["name"])
    if not inputs or not outputs:
        raise ValueError("no tensor goes in or comes out")
    calls = []
    for node in graph["nodes"]:
        args = tuple(_value(i["arg"]) for i in node["inputs"] if i["kind"] != 2)
        kwargs = {str(i["name"]): _value(i["arg"]) for i in node["inputs"] if i["kind"] == 2}
        calls.append(Call(str(node["target"]), args, kwargs, [_given(o) for o in node["outputs"]]))
    if not all(isinstance(n, str) for n in _names([(c.args, c.kwargs, c.gives) for c in calls])):
        raise TypeError("a name that is none")
    size = tuple(d.get("as_int") for d in graph["tensor_values"][inputs[0]]["sizes"])
    return Program(calls, weights, inputs, outputs, size)


def _value(arg: dict) -> Any:
    (kind, v), *_ = arg.items()
    if kind in _NUMBERS:
        return float(v) if kind == "as_float" else v  # infinity is written as a word
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Named(v["name"])
    if kind == "as_tensors":
        return [Named(t["name"]) for t in v]
    if kind in ("as_optional_tensor", *_SYMBOLS):
        (inner, w), *_ = v.items()
        return Named(w) if inner == "as_name" else _value(v)
    if kind in ("as_optional_tensors", *(f"{s}s" for s in _SYMBOLS)):
        return [_value({kind[:-1]: one}) for one in v]
    if kind == "as_scalar_type":
        return _Torch(_DTYPES[v])
    if kind == "as_memory_format":
        return _Torch(_FORMATS[v])
    if kind == "as_layout" and v == 7:
        return _Torch("strided")
    if kind == "as_device":
        return _Torch("device")
    help = ". run_decompositions() before torch.export.save puts those of no_grad and autocast into one" if kind == "as_graph" else ""
    raise ModelError(f"it uses a '{kind.removeprefix('as_')}', which is not run here{help}")


@dataclass(frozen=True)
class _Torch:
    """What torch calls so; its device is the one that the model was opened for."""

    name: str


def _given(out: dict) -> Any:
    (kind, v), *_ = out.items()
    if kind == "as_tensors":
        return [Named(t["name"]) for t in v]
    return None if kind == "as_none" else Named(v["as_name"] if kind in _SYMBOLS else v["name"])


def _function(call: Call):
    """The operator of that name. ModelError for one that could reach beyond tensors, that torch does not have, or that gives other results each time."""
    import torch

    if m := re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", call.target):
        name = m[1]
        if (not name.startswith("_") or name in _PRIVATE) and not _RISKY.fullmatch(name) and hasattr(torch.ops.aten, name):
            found = getattr(getattr(torch.ops.aten, name), m[2], None)
            # torch crashes at the batch sizes of a packed sequence and, for whole numbers, at the quotient that is one too large
            crashes = m[2] == "data" or call.kwargs.get("rounding_mode") == "trunc"
            # TorchScript has operators of the same names beside those on tensors: save writes files, mul repeats lists
            if isinstance(found, torch._ops.OpOverload) and torch._C._dispatch_has_kernel(found.name()) and not crashes:
                _same_each_time(found, call)
                return partial(_zeroed, found) if re.match("(new_)?empty", name) else found
    for prefix, names, module in (("_operator", _PLAIN, operator), ("torch", _SIZES, torch), ("math", _MATH, math)):
        if call.target in {f"{prefix}.{n}" for n in names}:
            return partial(_number, getattr(module, call.target.rpartition(".")[2]))
    raise ModelError(f"it calls '{call.target}', which is none of the operators on tensors that are run here")


def _zeroed(function, *args, **kwargs):
    """Memory as it was found is another each time."""
    return function(*args, **kwargs).zero_()


def _same_each_time(function, call: Call) -> None:
    import torch

    given = dict(zip((a.name for a in function._schema.arguments), call.args)) | call.kwargs
    # without statistics of its own, 'training' means those of the image, as instance norm has them
    if function._overloadname != "no_stats" and any(given.get(k) for k in ("training", "train", "dropout_p")):
        raise ModelError(TRAINS)
    if torch.Tag.nondeterministic_seeded in function.tags and not {"training", "train", "dropout_p"} & {a.name for a in function._schema.arguments}:
        raise ModelError(f"it calls '{call.target}', which draws random numbers, so that the same image gives other results")


def _number(function, *args):
    """Of sizes: no text or list, which grow without bounds, and neither do the numbers."""
    for a in args:
        for one in a if isinstance(a, list) else [a]:
            if not isinstance(one, int | float) or (isinstance(one, int) and one.bit_length() > 64):
                raise TypeError("it takes numbers of 64 bits alone")
    if isinstance(args[0], list) is not (function.__name__ == "sym_sum") or (function is operator.pow and abs(args[1]) > 64):
        raise TypeError("it takes numbers of 64 bits alone")
    return function(*args)


class Archive:
    """The members of a .pt2 that are read: the graph and raw weights."""

    def __init__(self, data: bytes, path: str | Path):
        self.path = path
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as z:
                entries = {i.filename.partition("/")[2]: i for i in checked(z, path)}
                models = [n for n in entries if re.fullmatch(r"models/\w+\.json", n)]
                if len(models) != 1:
                    old = any("serialized_exported_program" in n for n in z.namelist())
                    help = " It is of an older torch: save it again with torch 2.9 or later." if old else ""
                    raise ModelError(f"{path} is no archive of torch.export with one network.{help}")
                name = models[0].removeprefix("models/").removesuffix(".json")
                self.members = {n: unpacked(z, i, path) for n, i in entries.items() if n.startswith(("models/", "data/weights/", "data/constants/"))}
            found = json.loads(self.members[models[0]])
            if found["schema_version"]["major"] != SCHEMA:
                raise ModelError(
                    f"{path} is of version {found['schema_version']['major']} of torch.export's format; {SCHEMA} is read (torch 2.9 and later)."
                )
            self.program = program(found["graph_module"])
            self.config = {}
            for kind in ("weights", "constants"):
                listed = self.members.get(f"data/{kind}/{name}_{kind}_config.json")
                tensors = json.loads(listed)["config"] if listed else {}
                self.config |= {k: (f"data/{kind}/{v['path_name']}", v) for k, v in tensors.items()}
        except ModelError as e:
            raise e if str(path) in str(e) else ModelError(f"{path}: {e}: refused.") from None
        except BROKEN as e:
            raise ModelError(f"{path} cannot be read as an archive of torch.export: {e}. The file may be truncated.") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ModelError(f"{path} cannot be read as an archive of torch.export: {type(e).__name__} {e}.") from None

    def weight(self, key: str):
        """A tensor that shares no memory with another. ModelError."""
        import torch

        try:
            member, entry = self.config[key]
            meta = entry["tensor_meta"]
            if entry["use_pickle"]:
                raise ModelError(f"{self.path}: its weight '{key}' is pickled, which is code and is not opened: refused.")
            whole = torch.frombuffer(bytearray(self.members[member]), dtype=getattr(torch, _DTYPES[meta["dtype"]]))
            sizes, strides = ([int(d["as_int"]) for d in meta[k]] for k in ("sizes", "strides"))
            if math.prod(sizes) > whole.numel():  # strides of 0 make anything of a few bytes
                raise ValueError(f"{sizes} are more values than there are")
            return whole.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()
        except (KeyError, ValueError, TypeError, RuntimeError) as e:
            raise ModelError(f"{self.path}: its weight '{key}' cannot be read: {(str(e).splitlines() or [''])[0]}") from None


class Exported(Engine):
    """A program that runs node by node; a value is let go after its last use."""

    def __init__(self, archive: Archive, device: str):
        path = archive.path
        super().__init__(device, path)
        self.program = p = archive.program
        try:
            self.functions = [_function(c) for c in p.calls]
        except ModelError as e:
            raise ModelError(f"{path}: {e}: refused.") from None
        self.weights, left = {}, _SHARED * sum(len(m) for n, m in archive.members.items() if n.startswith("data/") and not n.endswith(".json"))
        for name, key in p.weights.items():
            self.weights[name] = w = archive.weight(key).to(device)
            if (left := left - w.nbytes) < 0:
                raise ModelError(f"{path}: its weights are more than {_SHARED} times its bytes: refused.")
        #: in place, which a weight is not to be for the next image
        self.writes = any(getattr(getattr(f, "_schema", None), "is_mutable", False) for f in self.functions)
        self.last: list[set[str]] = [set() for _ in p.calls]
        seen = set(p.outputs) | set(self.weights)
        for used, call in zip(reversed(self.last), reversed(p.calls)):
            used |= {n for n in _names([call.args, call.kwargs, call.gives]) if n not in seen}
            seen |= used

    def forward(self, *xs):
        p = self.program
        if len(xs) != len(p.inputs):
            raise RuntimeError(f"it takes {len(p.inputs)} images")
        if any(n is not None and n != m for n, m in zip(p.size, xs[0].shape)) or len(p.size) != xs[0].ndim:
            raise RuntimeError(
                f"it was exported for {' x '.join('any' if n is None else str(n) for n in p.size)} alone; dynamic_shapes of torch.export.export free it"
            )
        env = {n: w.clone() for n, w in self.weights.items()} if self.writes else dict(self.weights)
        env |= dict(zip(p.inputs, xs))
        for call, function, done in zip(p.calls, self.functions, self.last):
            try:
                out = function(*[self._found(a, env) for a in call.args], **{k: self._found(a, env) for k, a in call.kwargs.items()})
                if call.gives:
                    _bind(env, call.gives, [out] if len(call.gives) == 1 else out)
            except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError) as e:
                raise RuntimeError(f"{call.target}: {(str(e).splitlines() or [type(e).__name__])[0]}") from None
            for name in done:
                env.pop(name, None)
        return [self._found(Named(o), env) for o in p.outputs]

    def _found(self, a: Any, env: dict) -> Any:
        import torch

        if isinstance(a, Named):
            if a.name not in env:
                raise RuntimeError(f"'{a.name}' is used before it is made")
            return env[a.name]
        if isinstance(a, _Torch):
            return torch.device(self.device) if a.name == "device" else getattr(torch, a.name)
        return [self._found(one, env) for one in a] if isinstance(a, list) else a


def _names(what: Any) -> set[str]:
    if isinstance(what, Named):
        return {what.name}
    if isinstance(what, dict | list | tuple):
        return set().union(*map(_names, what.values() if isinstance(what, dict) else what))
    return set()


def _bind(env: dict, gives: list, values: Any) -> None:
    for given, value in zip(gives, values):
        if isinstance(given, list):
            _bind(env, given, value)
        elif given is not None:
            env[given.name] = value


def read_facts(path: Path) -> Facts:
    """The sidecar's; the size and the batch that the archive is made for where that does not say."""
    return _facts(Archive(path.read_bytes(), path), path)


def _facts(archive: Archive, path: Path) -> Facts:
    facts, size = sidecar_facts(path), archive.program.size
    fixed = {"batch": size[0]} if size[0] is not None else {}
    if all(n is not None for n in size[2:]):
        fixed["window"] = list(size[2:])
    fixed = {k: v for k, v in fixed.items() if getattr(facts, k) is None}
    return parse(facts.model_copy(update=fixed).model_dump_json().encode(), path)


def read(path: Path, device: str) -> TorchScriptModel:
    archive = Archive(path.read_bytes(), path)
    return TorchScriptModel(_facts(archive, path), Exported(archive, device), path)
