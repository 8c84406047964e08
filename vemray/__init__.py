"""vemray: volume electron microscopy at scale.

volume = vemray.open_volume("cell.zarr")                      # xarray, dims z, y, x, coordinates in nm, lazy
results = vemray.run("configs/hela.yaml", "cell.zarr", "out")  # .labels[name], .tables[name]
"""

import vemray.run  # noqa: F401  bound here first, so that loading the package `vemray.run` later does not hide the function of that name

__all__ = ["Results", "VemrayError", "load_recipe", "open_volume", "register", "run"]

_WHERE = {"Results": "vemray.run.results", "VemrayError": "vemray.errors", "load_recipe": "vemray.plan.recipe", "register": "vemray.ops.base"}


def open_volume(url, level: int = 0, spacing=None):
    """An OME-Zarr image or label volume (folder or s3://) as a lazy xarray.DataArray with dims z, y, x and coordinates in nm.

    `spacing`: (z, y, x) in nm, required when the volume does not carry its voxel size. Raises VolumeError."""
    from vemray.geometry import Spacing
    from vemray.store.volume import open

    return open(str(url), level=level, spacing=Spacing(*spacing) if spacing is not None else None).to_xarray()


def run(recipe, volumes, out, **options):
    """Run a recipe: see vemray.run.api.run."""
    from vemray.run.api import run

    return run(recipe, volumes, out, **options)


def __getattr__(name: str):
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'vemray' has no attribute '{name}'")
