"""The recipe resolved, checked, cut into stages and costed before anything runs."""

from vemray.plan.graph import Graph, Node, resolve  # noqa: F401
from vemray.plan.recipe import Recipe, load_recipe  # noqa: F401
from vemray.plan.sources import Source, TableSource  # noqa: F401
from vemray.plan.stages import Options, Plan, Stage, fuse  # noqa: F401
