"""Operators: numpy in, numpy out. One family a file; importing this package registers them all."""

import importlib
import pkgutil
import warnings

from vemray.ops import base  # noqa: F401
from vemray.ops.base import OPERATORS, build, find, parameters, register  # noqa: F401

for _m in pkgutil.iter_modules(__path__):
    try:
        importlib.import_module(f"vemray.ops.{_m.name}")
    except Exception as _e:
        warnings.warn(f"vemray.ops.{_m.name}: {_e!r}")
