"""Parts of objects: equal to the components of each label (or pair of labels) by itself, however blocks are cut and merged."""

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import run, spec_of
from vemray.ops.components import LabelParts

IDS = np.array([0, 5, 2**40 + 3, 2**63 + 11], np.uint64)


def by_definition(codes, connectivity):
    """Components of each value, numbered by first voxels."""
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    out, n = np.zeros(codes.shape, np.uint64), 0
    for value in np.unique(codes[codes != 0]):
        parts, count = ndimage.label(codes == value, structure)
        out[parts > 0] = parts[parts > 0] + n
        n += count
    values, first = np.unique(out, return_index=True)
    order = values[np.argsort(first)]
    lut = np.zeros(n + 1, np.uint64)
    lut[order[order > 0]] = np.arange(1, n + 1)
    return lut[out]


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_parts_of_random_labels(connectivity):
    rng = np.random.default_rng(connectivity)
    for seed in range(40):
        shape = tuple(int(n) for n in rng.integers(1, 10, 3))
        block = tuple(int(n) for n in rng.integers(1, 6, 3))
        code = rng.integers(0, 4, shape) * (rng.random(shape) < rng.uniform(0.3, 1))
        values = {"labels": IDS[code]}
        if seed % 2:
            other = rng.integers(0, 3, shape)
            values["within"] = IDS[other] if seed % 4 == 1 else other > 0
            other = other if seed % 4 == 1 else other > 0
            code = np.where(other > 0, code * 4 + other, 0) * (code > 0)
        got = run(LabelParts(connectivity), values, {k: spec_of(v) for k, v in values.items()}, block=block, seed=seed)
        np.testing.assert_array_equal(got, by_definition(code, connectivity))


def test_touching_objects_stay_apart_and_a_broken_one_is_two():
    labels = np.zeros((1, 2, 7), np.uint64)
    labels[0, 0] = [4, 4, 9, 9, 4, 4, 4]
    got = run(LabelParts(), {"labels": labels}, {"labels": spec_of(labels)}, block=(1, 1, 3))
    assert got[0, 0].tolist() == [1, 1, 2, 2, 3, 3, 3] and not got[0, 1].any()
