"""Pixel classification: features against scipy and numpy, trees against scikit-learn, and a texture that a few points tell from another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from tests.ops.blockwise import assert_same, run, spec_of
from vemray.errors import RecipeError
from vemray.geometry import Spacing
from vemray.ops import build
from vemray.ops.forest import ClassifyPixels, PixelClassifier, TrainForest, probabilities
from vemray.ops.forest_samples import clusters, drawn
from vemray.ops.pixel_features import FEATURES, PixelFeatures
from vemray.ops.pixel_kernels import eigenvalues

PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


# -- features --------------------------------------------------------------------------------------------------------------------


def eigvals(parts: np.ndarray) -> np.ndarray:
    """(3, ...) descending, of (6, ...) in the order of PAIRS, by LAPACK."""
    m = np.empty((*parts.shape[1:], 3, 3))
    for p, (i, j) in zip(parts, PAIRS):
        m[..., i, j] = m[..., j, i] = p
    return np.moveaxis(np.linalg.eigvalsh(m)[..., ::-1], -1, 0)


def expected(image: np.ndarray, sigma_nm: float, window: float, spacing) -> dict[str, np.ndarray]:
    """Every feature by its definition, on the whole array, in float64."""
    sigma = [sigma_nm / s for s in spacing]
    g = np.pad(ndimage.gaussian_filter(image.astype(float), sigma, mode="reflect", truncate=4.0), 1, mode="symmetric")

    def at(*d):
        return g[tuple(slice(1 + k, n - 1 + k) for k, n in zip(d, g.shape))]

    unit = np.eye(3, dtype=int)
    slope = [(at(*unit[i]) - at(*-unit[i])) / (2 * spacing[i]) for i in range(3)]
    second = []
    for i, j in PAIRS:
        if i == j:
            second.append((at(*unit[i]) + at(*-unit[i]) - 2 * at(0, 0, 0)) / spacing[i] ** 2)
        else:
            corners = at(*unit[i] + unit[j]) - at(*unit[i] - unit[j]) - at(*unit[j] - unit[i]) + at(*-unit[i] - unit[j])
            second.append(corners / (4 * spacing[i] * spacing[j]))
    tensor = [ndimage.gaussian_filter(slope[i] * slope[j], [window * s for s in sigma], mode="reflect", truncate=3.0) for i, j in PAIRS]
    return {
        "intensity": at(0, 0, 0)[None],
        "gradient_magnitude": np.sqrt(sum(s * s for s in slope))[None],
        "laplacian": sum(second[:3])[None],
        "hessian_eigenvalues": eigvals(np.stack(second)),
        "structure_tensor_eigenvalues": eigvals(np.stack(tensor)),
    }


@pytest.mark.parametrize(
    "shape,spacing,sigma,window",
    [((30, 33, 35), (8, 8, 8), 12, 2.0), ((9, 40, 31), (50, 6, 5), 15, 1.3), ((1, 30, 25), (8, 8, 8), 10, 1.0), ((26, 20, 3), (8, 4, 16), 16, 2.0)],
)
def test_features_are_what_they_are_defined_to_be(shape, spacing, sigma, window):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    op = PixelFeatures((sigma, sigma / 2), window=window)
    got = list(run(op, {"image": image}, {"image": spec_of(image, spacing)}).values())
    for s in op.sigmas_nm:
        for name, want in expected(image, s, window, spacing).items():
            # float32: some units in the last place of the smoothed image, divided by the distances between voxels
            order = {"intensity": 0, "gradient_magnitude": 1}.get(name, 2)
            allowed = 1e-5 * want.max() if name.startswith("structure") else 1e-6 * 255 / min(spacing) ** order * (1 + order)
            for values in want:
                assert np.abs(got.pop(0) - values).max() < allowed, f"{name} at {s} nm"
    assert not got


def test_features_are_close_to_derivatives_of_gaussians():
    """Where sigma is three voxels, differences of a smoothed image are what scikit-image computes with derivatives of Gaussians."""
    from skimage.feature import hessian_matrix, hessian_matrix_eigvals

    image = np.random.default_rng(1).random((48, 50, 52)).astype(np.float32)
    got = run(PixelFeatures((24,)), {"image": image}, {"image": spec_of(image)})
    inner = (slice(14, -14),) * 3
    want = {
        "gradient_magnitude_24nm": ndimage.gaussian_gradient_magnitude(image, 3) / 8,
        "laplacian_24nm": ndimage.gaussian_laplace(image, 3) / 64,
        **{
            f"hessian_eigenvalue_{i + 1}_24nm": e / 64
            for i, e in enumerate(hessian_matrix_eigvals(hessian_matrix(image, 3, use_gaussian_derivatives=True)))
        },
    }
    for name, values in want.items():
        assert np.corrcoef(got[name][inner].ravel(), values[inner].ravel())[0, 1] > 0.99, name
        assert 0.85 < got[name][inner].std() / values[inner].std() < 1.05, name


def test_eigenvalues_of_any_symmetric_matrix():
    rng = np.random.default_rng(2)
    m = rng.normal(size=(6, 4000)).astype(np.float32)
    m[:, :500] *= (10.0 ** rng.uniform(-12, 12, 500)).astype(np.float32)
    m[3:, 500:1000] *= 1e-5  # nearly diagonal
    m[:3, 1000:1300], m[3:, 1000:1300] = rng.normal(size=300), 0  # three times the same
    m[1, 1300:1600], m[3:, 1300:1600] = m[0, 1300:1600], 0  # twice
    m[:, 1600] = 0
    rank_one = rng.normal(size=(3, 300)).astype(np.float32)
    m[:, 1700:2000] = [rank_one[i] * rank_one[j] for i, j in PAIRS]
    got = np.empty((3, m.shape[1]), np.float32)
    eigenvalues(*m, *got)
    want = eigvals(m.astype(float))
    assert (np.abs(got - want) <= 2e-7 * np.abs(want).max(0)).all()
    assert (got[0] >= got[1]).all() and (got[1] >= got[2]).all()


def test_columns_have_names():
    op = PixelFeatures((12.5, 30), ("intensity", "hessian_eigenvalues"))
    assert op.columns() == [f"{n}_{s}nm" for s in ("12_5", "30") for n in ("intensity", *(f"hessian_eigenvalue_{i}" for i in (1, 2, 3)))]
    assert len(PixelFeatures().columns()) == 3 * sum(FEATURES.values())


# -- forest ----------------------------------------------------------------------------------------------------------------------


def textures(n=48, seed=0):
    """Two textures of the same mean grey in two regions, and the region of the second."""
    rng = np.random.default_rng(seed)
    region = ndimage.gaussian_filter(rng.normal(size=(n, n, n)), 10) > 0
    fine, coarse = rng.normal(size=region.shape), ndimage.gaussian_filter(rng.normal(size=region.shape), 1.5)
    grey = 128 + 25 * np.where(region, coarse / coarse.std(), fine)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), region


def points(region: np.ndarray, n: int, seed=0) -> np.ndarray:
    """`n` annotated voxels, the same number of each class: 1 outside the region, 2 inside."""
    rng = np.random.default_rng(seed)
    out = np.zeros(region.shape, np.uint8)
    for c, where in enumerate((~region, region)):
        out.reshape(-1)[rng.choice(np.flatnonzero(where), n // 2, replace=False)] = c + 1
    return out


def trained(op: TrainForest, image, annotations, block=None, spacing=(8, 8, 8)):
    specs = {"image": spec_of(image, spacing), "annotations": spec_of(annotations, spacing, "labels")}
    return run(op, {"image": image, "annotations": annotations}, specs, block=block, seed=3)


def test_two_textures_are_told_apart_from_30_points():
    image, region = textures()
    annotations = points(region, 30)
    op = PixelClassifier((8, 16, 24), trees=60, classes=("fine", "coarse"))
    specs = {"image": spec_of(image), "annotations": spec_of(annotations, kind="labels")}
    got = run(op, {"image": image, "annotations": annotations}, specs)
    assert list(got) == ["fine", "coarse"]
    clear = ndimage.distance_transform_edt(region) + ndimage.distance_transform_edt(~region) > 3  # not within a voxel or two of the border
    assert ((got["coarse"] > 127) == region)[clear].mean() > 0.98
    assert (np.abs(got["fine"].astype(int) + got["coarse"] - 255) <= 1).all()
    blocks = run(op, {"image": image, "annotations": annotations}, specs, block=(17, 20, 31), seed=1)
    assert_same(got, blocks)


@pytest.mark.parametrize("n,classes,more", [(60, 2, {}), (4000, 2, {"max_depth": 14}), (900, 3, {"balanced": False, "min_samples_leaf": 3})])
def test_equal_to_scikit_learn(n, classes, more):
    """Small trees and large, two classes and three; the forest has gone through JSON."""
    from sklearn.ensemble import RandomForestClassifier

    image, region = textures(40)
    annotations = points(region, n)
    if classes == 3:
        annotations[annotations > 0] += image[annotations > 0] > 150  # no class that could be learnt
    op = TrainForest((8, 20), classes=("a", "b", "c")[:classes], trees=30, seed=5, **more)
    forest = trained(op, image, annotations, block=(13, 40, 22))
    assert json.loads(json.dumps(forest)) == forest
    forest = json.loads(json.dumps(forest))
    features = run(PixelFeatures((8, 20)), {"image": image}, {"image": spec_of(image)})
    x = np.stack([f.ravel() for f in features.values()], 1)
    y = annotations.ravel()
    theirs = RandomForestClassifier(
        30, max_depth=op.max_depth, min_samples_leaf=op.min_samples_leaf, random_state=5, n_jobs=1, class_weight="balanced" if op.balanced else None
    ).fit(x[y > 0], y[y > 0])
    sizes = [len(t["probability"]) for t in forest["trees"]]
    assert (max(sizes) <= 32) == (n == 60), "small trees and large are different code"
    want = theirs.predict_proba(x)
    assert np.abs(probabilities(forest, x) - want).max() < 1e-12
    asked = np.unique([(f, t) for tree in forest["trees"] for f, t in zip(tree["feature"], tree["threshold"]) if f >= 0], axis=0)
    edge = np.repeat(x[:1], len(asked), 0)
    edge[np.arange(len(asked)), asked[:, 0].astype(int)] = asked[:, 1]  # just at a threshold
    assert np.abs(probabilities(forest, edge) - theirs.predict_proba(edge)).max() < 1e-12
    assert list(forest["importance"].values()) == pytest.approx(theirs.feature_importances_, rel=1e-12)

    given = {"image": image, "forest": forest}
    some = dict(sigmas_nm=(8, 20), classes=op.classes)
    got = run(ClassifyPixels(**some), given, {"image": spec_of(image)})
    for c, array in enumerate(got.values()):
        assert np.array_equal(array.ravel(), np.rint(want[:, c] * 255))
    likeliest = run(ClassifyPixels(**some, show="classes"), given, {"image": spec_of(image)})["classes"]
    clear = np.diff(np.sort(want, 1)[:, -2:], axis=1)[:, 0] > 1e-9
    assert np.array_equal(likeliest.ravel()[clear], want.argmax(1)[clear] + 1)
    mask = np.random.default_rng(0).random(image.shape) < 0.3
    only = run(ClassifyPixels(**some, wanted=("b",)), {**given, "mask": mask}, {"image": spec_of(image), "mask": spec_of(mask)})
    assert list(only) == ["b"] and np.array_equal(only["b"], got["b"] * mask)


def test_the_forest_says_what_it_was_made_of():
    image, region = textures(32)
    annotations = points(region, 400)
    annotations[annotations == 2] *= np.random.default_rng(0).random(200) < 0.4  # fewer of the second
    forest = trained(TrainForest((8,), trees=40, max_voxels=100), image, annotations)
    n = [int((annotations == c).sum()) for c in (1, 2)]
    assert forest["annotated"] == {"resin": n[0], "cell": n[1]} and forest["used"] == {"resin": 100, "cell": n[1]}
    assert 0.8 < forest["out_of_bag"] <= 1 and sum(forest["importance"].values()) == pytest.approx(1)
    assert forest["columns"] == PixelFeatures((8,)).columns() and len(forest["trees"]) == 40
    assert all(len(t["feature"]) <= 2 ** (12 + 1) for t in forest["trees"])
    one = trained(TrainForest((8,), trees=1), image, annotations)
    assert 0.5 < one["out_of_bag"] <= 1, "voxels that every tree has seen are not judged"
    assert trained(TrainForest((8,), trees=40, max_voxels=100, seed=2), image, annotations)["trees"] != forest["trees"]


def test_drawn_in_any_order_and_any_parts():
    rng = np.random.default_rng(4)
    index, classes = rng.permutation(5000).astype(np.uint64), rng.integers(0, 3, 5000)
    want = set(index[drawn(index, classes, 50, 7)].tolist())
    assert len(want) == 150
    parts = np.array_split(rng.permutation(5000), 7)
    kept = np.concatenate([p[drawn(index[p], classes[p], 50, 7)] for p in parts])
    assert set(index[kept][drawn(index[kept], classes[kept], 50, 7)].tolist()) == want
    assert set(index[drawn(index, classes, 50, 8)].tolist()) != want


def test_clusters_hold_every_voxel_once_and_save_work():
    rng = np.random.default_rng(5)
    where = np.concatenate([rng.integers(a, a + 6, (40, 3)) for a in (0, 100, 200)])
    groups = clusters(where, (10, 10, 10))
    assert sorted(np.concatenate(groups).tolist()) == list(range(120)) and len(groups) == 3
    assert len(clusters(where[:40], (10, 10, 10))) == 1
    assert clusters(where[:0], (1, 1, 1)) == [] and len(clusters(where[:1], (1, 1, 1))) == 1


# -- what cannot be used ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda a: a * 0, "no voxel is annotated. Annotate some of each class: 1 resin, 2 cell"),
        (lambda a: a * (a == 1), r"no voxel is annotated as 'cell' \(2\)"),
        (lambda a: a * 3, r"hold the id 6 at voxel \(.*\), but 'classes' names 2: resin, cell"),
    ],
)
def test_annotations_that_cannot_be_used(change, says):
    image, region = textures(24)
    with pytest.raises(RecipeError, match=says):
        trained(TrainForest((8,), trees=3), image, change(points(region, 20)), block=(8, 24, 24))


def test_an_image_that_is_not_finite():
    image, region = textures(24)
    image = image.astype(np.float32)
    forest = trained(TrainForest((8,), trees=3), image, points(region, 20))
    image[4, 5, 6] = np.nan
    with pytest.raises(RecipeError, match="not finite"):
        run(ClassifyPixels((8,)), {"image": image, "forest": forest}, {"image": spec_of(image)})
    annotations = np.ones(image.shape, np.uint8)
    with pytest.raises(RecipeError, match="not finite.*near annotated voxels"):
        trained(TrainForest((8,), trees=3), image, annotations)


def test_a_forest_of_something_else():
    image, region = textures(24)
    forest = trained(TrainForest((8,), trees=3), image, points(region, 20))

    def classified(op, values=forest, spacing=(8, 8, 8)):
        run(op, {"image": image, "forest": values}, {"image": spec_of(image, spacing)})

    classified(ClassifyPixels((8,)))
    with pytest.raises(RecipeError, match=r"trained with classes: \['resin', 'cell'\], and 'classify_pixels' has classes: \('cell', 'resin'\)"):
        classified(ClassifyPixels((8,), classes=("cell", "resin")))
    with pytest.raises(RecipeError, match="trained with sigmas_nm"):
        classified(ClassifyPixels((9,)))
    with pytest.raises(RecipeError, match="trained on voxels of 8 x 8 x 8 nm.*16 x 8 x 8 nm.*same level"):
        classified(ClassifyPixels((8,)), spacing=(16, 8, 8))
    with pytest.raises(RecipeError, match="is no forest"):
        classified(ClassifyPixels((8,)), {"min": 0})


@pytest.mark.parametrize(
    "parameters,says",
    [
        ({"classes": ["a", "a"]}, "names a class twice"),
        ({"classes": ["a", "b c"]}, "'b c' cannot be a class"),
        ({"sigmas_nm": [8, 8]}, "'sigmas_nm' names something twice: 8.0, 8.0"),
        ({"features": ["laplacian", "laplacian"]}, "'features' names something twice"),
        ({"sigmas_nm": [-1]}, "must be positive"),
        ({"wanted": ["nucleus"]}, "'wanted' names 'nucleus', which is none of the classes: resin, cell"),
        ({"wanted": ["cell"], "show": "classes"}, "leave it out"),
    ],
)
def test_parameters_that_cannot_be(parameters, says):
    image, region = textures(24)
    specs = {"image": spec_of(image), "annotations": spec_of(points(region, 20), kind="labels")}
    with pytest.raises(RecipeError, match=says):
        for step in build("pixel_classifier", parameters).expand({k: k for k in specs}):
            step.op.check(*(specs[k] for k in ("image", "annotations") if k in step.inputs))


@pytest.mark.parametrize("parameters", [{"classes": ["a"]}, {"features": ["texture"]}, {"sigmas_nm": []}, {"trees": 0}, {"max_depth": 31}])
def test_parameters_out_of_range(parameters):
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        build("pixel_classifier", parameters)


def test_memory_is_declared_for_blocks_of_a_plan():
    """A block of 256^3 at three scales stays far below what a task may use."""
    from vemray.geometry import ArraySpec

    spec = ArraySpec((4096,) * 3, "uint8", Spacing(16, 16, 16))
    op = ClassifyPixels()
    assert op.block_shape(spec.shape, (64, 256, 256), (64,) * 3) == (64, 256, 256) and op.block_shape(spec.shape, (32, 64, 64), (32,) * 3) == (
        64,
        64,
        64,
    )
    read = np.prod([256 + 2 * h for h in op.halo(spec.spacing)])
    assert read * op.memory(spec, None) < 1.2e9
