"""A synthetic HeLa FIB-SEM volume with the truth about every object. See docs/phantom.md."""

from vemray.phantom import operators  # noqa: F401
from vemray.phantom.objects import planted, truth_table  # noqa: F401
from vemray.phantom.render import render  # noqa: F401
from vemray.phantom.scene import Scene  # noqa: F401
from vemray.phantom.truth import CLASSES, contrast_to_noise, membrane_and_cytosol, object_planes, sparse_annotation  # noqa: F401
