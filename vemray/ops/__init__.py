"""Operators: numpy in, numpy out. One family a file; importing this package registers them all."""

from vemray.ops import base  # noqa: F401
from vemray.ops.base import OPERATORS, build, find, parameters, register  # noqa: F401
