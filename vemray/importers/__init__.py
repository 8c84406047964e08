"""Foreign formats to OME-Zarr: `import_volume(src, dst, spacing)`. One file a format; convert.FORMATS lists them."""

from vemray.importers.convert import FORMATS, import_volume

__all__ = ["FORMATS", "import_volume"]
