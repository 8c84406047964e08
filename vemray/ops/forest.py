"""Whole cells, resin, vessels: voxels classified by a random forest on multi-scale features, from a few annotated voxels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vemray.errors import RecipeError
from vemray.geometry import Box, Int3, Spacing
from vemray.ops.base import ArraySpec, Composite, Filter, Measure, Operator, Port, Site, Step, register
from vemray.ops.forest_kernels import TOGETHER, classify, lay_out, vote
from vemray.ops.forest_samples import Samples, clusters, drawn
from vemray.ops.intensity import GREY
from vemray.ops.logic import BINARY, is_set
from vemray.ops.pixel_features import THICK, Described, part_of

#: voxel sizes that differ by more than this are not those the forest was trained on
SAME_VOXELS = 1.05
_IMAGE = Port("image", GREY)
_ANNOTATIONS = Port(
    "annotations",
    ("labels",),
    doc="0 where nothing is known, 1 for the first of `classes`, 2 for the second; sparse; `vemray annotate` makes it of points and planes",
)
_FOREST = Port("forest", ("scalars",), doc="what `train_forest` gave")
_MASK = Port("mask", BINARY, optional=True, doc="only there voxels are classified; elsewhere the result is 0")


@dataclass(frozen=True)
class Classes(Described):
    """The features, and the names of the classes."""

    classes: Annotated[tuple[str, ...], Field(min_length=2, description="names of the annotated ids 1, 2, ... in their order")] = ("resin", "cell")

    def check_classes(self) -> None:
        self.check_features()
        for name in self.classes:
            if not name.replace("_", "a").isalnum():
                raise RecipeError(f"'{name}' cannot be a class: give it a name of letters, digits and _.")
        if len(set(self.classes)) < len(self.classes):
            raise RecipeError(f"'classes' names a class twice: {', '.join(self.classes)}.")
        if len(self.classes) > 255:
            raise RecipeError(f"at most 255 classes are possible, got {len(self.classes)}.")


@dataclass(frozen=True)
class Training(Classes):
    """How the forest is trained: the parameters of `train_forest`, and of the operator that does all."""

    trees: Annotated[int, Field(gt=0, le=1000, description="trees of the forest")] = 100
    max_depth: Annotated[int, Field(gt=0, le=30, description="questions from the root of a tree to a leaf, at most")] = 12
    min_samples_leaf: Annotated[int, Field(gt=0, description="annotated voxels in a leaf, at least; more of them smooth the probabilities")] = 1
    max_voxels: Annotated[
        int,
        Field(
            gt=0, description="annotated voxels of a class that are used, at most: of more, as many are drawn by `seed`, the same whatever the blocks"
        ),
    ] = 5000
    balanced: Annotated[
        bool, Field(description="whether all classes weigh the same, however many voxels are annotated; if not, as many as were annotated")
    ] = True
    seed: Annotated[int, Field(ge=0, lt=1 << 32, description="seed of what the forest draws")] = 1


@register("train_forest")
@dataclass(frozen=True)
class TrainForest(Training, Measure):
    """A random forest (Breiman 2001; scikit-learn's, one thread) that tells classes of voxels apart, trained on the annotated voxels alone. See
    `pixel_features` for what it sees. Features are computed only around annotated voxels.

    Result: {'classes', 'features', 'sigmas_nm', 'window', 'columns', 'spacing_nm', 'annotated' and 'used' (voxels of each class),
    'out_of_bag' (share of the used voxels, each class weighing the same, that trees which did not see them name rightly; too good where annotated voxels
    are neighbours), 'importance' of each column (sums to 1), 'trees'}. A tree is lists over its nodes: 'feature' (a column; -1 in a leaf), 'threshold'
    (to the left if value <= threshold; exact float32), 'left' and 'right' (nodes; in a leaf the row of 'probability', and -1), in preorder. JSON, some 35
    bytes a node."""

    gives = "scalars"
    serves = "step 6: the whole cell by a pixel classifier"
    ports = (_IMAGE, _ANNOTATIONS)

    @classmethod
    def examples(cls):
        return [
            cls((8, 16), trees=8, max_voxels=40),
            cls((20,), ("intensity", "structure_tensor_eigenvalues"), 1.0, ("a", "b", "c"), trees=3, max_depth=3, min_samples_leaf=2, balanced=False),
        ]

    def example_inputs(self, rng, shape: Int3, spacing) -> tuple[dict, dict]:
        return _example(rng, shape, spacing, len(self.classes))

    def facts(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"scikit-learn": version("scikit-learn")}

    def check(self, image: ArraySpec, annotations: ArraySpec) -> None:
        self.check_classes()

    def memory(self, image: ArraySpec, annotations: ArraySpec) -> float:
        voxels = np.prod([min(n, THICK) for n in image.shape])
        drawn = min(voxels, self.max_voxels * len(self.classes)) * 3 * (24 + 4 * len(self.columns()))  # of the block, sorted, merged
        return self.features_memory(image) + float(drawn / voxels) + 16 * 8 / min(image.shape[0], THICK)

    def measure(self, image: np.ndarray, annotations: np.ndarray, *, site: Site) -> Samples:
        where, classes, annotated = self._drawn(annotations[site.crop], site)
        features = np.empty((len(where), len(self.columns())), np.float32)
        for cluster in clusters(where, self.halo(site.spacing)):
            self._take(image, where, cluster, features, site)
        if not np.isfinite(features).all():
            raise RecipeError("the image is not finite (NaN or infinity) near annotated voxels. Repair the volume or annotate elsewhere.")
        return Samples(site.linear(where), classes, features, annotated, self.max_voxels, self.seed)

    def _drawn(self, annotations: np.ndarray, site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Annotated voxels of the block that can be among those drawn of the volume: global ZYX, class from 0; and the number of all by class."""
        found, counts = [], np.zeros(len(self.classes), np.int64)
        for z, plane in enumerate(annotations):
            yx = np.argwhere(plane)
            if not len(yx):
                continue
            ids = plane[yx[:, 0], yx[:, 1]]
            if ids.max() > len(self.classes):
                y, x = yx[int(ids.argmax())]
                raise RecipeError(
                    f"the annotations hold the id {ids.max()} at voxel {tuple(int(v) for v in (z, y, x) + np.array(site.write.start))}, but 'classes' "
                    f"names {len(self.classes)}: {', '.join(self.classes)} (1 to {len(self.classes)}). Name every id."
                )
            classes = ids.astype(np.int64) - 1
            counts += np.bincount(classes, minlength=len(counts))
            zyx = np.concatenate([np.full((len(yx), 1), z), yx], 1) + np.array(site.write.start)
            found.append((zyx, classes))
            if sum(len(c) for _, c in found) > 4 * self.max_voxels * len(self.classes):
                found = [self._fewer(found, site)]
        zyx, classes = self._fewer(found, site) if found else (np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
        return zyx, classes, counts

    def _fewer(self, found: list, site: Site) -> tuple[np.ndarray, np.ndarray]:
        zyx, classes = (np.concatenate(parts) for parts in zip(*found))
        keep = drawn(site.linear(zyx), classes, self.max_voxels, self.seed)
        return zyx[keep], classes[keep]

    def _take(self, image: np.ndarray, where: np.ndarray, cluster: np.ndarray, features: np.ndarray, site: Site) -> None:
        zyx = where[cluster]
        low, high = zyx.min(0), zyx.max(0) + 1
        at = zyx - low
        for z, slab in self.stream(image, part_of(site, Box(tuple(map(int, low)), tuple(map(int, high))))):
            here = (zyx[:, 0] >= z) & (zyx[:, 0] < z + slab.shape[1])
            features[cluster[here]] = slab[:, zyx[here, 0] - z, at[here, 1], at[here, 2]].T

    def finish(self, partial: Samples, inputs: tuple[ArraySpec, ...]) -> dict:
        names = self.classes
        if not partial.annotated.any():
            raise RecipeError("no voxel is annotated. Annotate some of each class: " + ", ".join(f"{i + 1} {n}" for i, n in enumerate(names)) + ".")
        for i, n in enumerate(partial.annotated):
            if not n:
                raise RecipeError(f"no voxel is annotated as '{names[i]}' ({i + 1}). Annotate some, or leave the class out of 'classes'.")
        forest, right = self.fit(partial)
        return {
            "classes": list(names), "features": list(self.features), "sigmas_nm": list(self.sigmas_nm), "window": self.window,
            "columns": self.columns(), "spacing_nm": list(inputs[0].spacing.zyx),
            "annotated": dict(zip(names, partial.annotated.tolist())), "used": dict(zip(names, np.bincount(partial.classes, minlength=len(names)).tolist())),
            "out_of_bag": right, "importance": dict(zip(self.columns(), forest.feature_importances_.tolist())),
            "trees": [_tree(e.tree_) for e in forest.estimators_],
        }  # fmt: skip

    def fit(self, samples: Samples):
        """(scikit-learn's forest of the voxels in raster order, share of out-of-bag voxels named rightly, or None where every tree has seen every voxel)."""
        from sklearn.ensemble import RandomForestClassifier

        order = np.argsort(samples.index)
        x, y = samples.features[order], samples.classes[order]
        forest = RandomForestClassifier(
            self.trees, max_depth=self.max_depth, min_samples_leaf=self.min_samples_leaf, random_state=self.seed, n_jobs=1, oob_score=True,
            class_weight="balanced" if self.balanced else None,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # voxels that no tree left out: they are not counted below
            with np.errstate(invalid="ignore"):
                forest.fit(x, y)
        votes = forest.oob_decision_function_
        judged = np.nan_to_num(votes).sum(1) > 0
        shares = [float((votes[judged & (y == c)].argmax(1) == c).mean()) for c in range(len(self.classes)) if (judged & (y == c)).any()]
        return forest, (sum(shares) / len(shares) if shares else None)


def _tree(tree) -> dict[str, list]:
    """scikit-learn's arrays of a tree as lists. It compares float32 values with a float64 threshold; the next float32 below compares the same."""
    leaf = tree.children_left < 0
    threshold = tree.threshold.astype(np.float32)
    threshold = np.where(threshold > tree.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
    value = tree.value[leaf, 0, :]
    return {
        "feature": np.where(leaf, -1, tree.feature).tolist(),
        "threshold": np.where(leaf, np.float32(0), threshold).tolist(),
        "left": np.where(leaf, np.cumsum(leaf) - 1, tree.children_left).tolist(),
        "right": tree.children_right.tolist(),
        "probability": (value / value.sum(1, keepdims=True)).tolist(),
    }


def compiled(forest: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """The arrays of a forest as the kernels take them: of trees, of nodes, and the probabilities of the leaves."""
    trees = forest["trees"]
    roots, rows = (np.cumsum([0] + [len(t[k]) for t in trees]) for k in ("feature", "probability"))
    nodes = [np.empty(roots[-1], dtype) for dtype in (np.uint32, np.float32, np.uint32, np.int32, np.uint32)]
    depths = np.empty(len(trees), np.int64)
    for i, t in enumerate(trees):
        lists = np.asarray(t["feature"], np.int64), np.asarray(t["threshold"], np.float32), *(np.asarray(t[k], np.int64) for k in ("left", "right"))
        depths[i] = lay_out(*lists, roots[i], rows[i], *nodes)
    probability = np.concatenate([np.asarray(t["probability"], np.float64) for t in trees])
    return (roots.astype(np.uint32), depths, rows[:-1].astype(np.uint32), *nodes, probability)


def probabilities(forest: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """float64 (n, classes) of feature vectors `x` (float32, (n, columns)): what scikit-learn's `predict_proba` gives."""
    arrays = compiled(forest)
    out, sums, node = np.empty((len(x), len(forest["classes"]))), np.empty((len(forest["classes"]), TOGETHER)), np.empty(TOGETHER, np.uint32)
    some = np.zeros((x.shape[1], TOGETHER), np.float32)
    for i in range(0, len(x), TOGETHER):
        n = min(TOGETHER, len(x) - i)
        some[:, :n] = x[i : i + n].T
        vote(some.reshape(-1), n, *arrays, node, sums)
        out[i : i + n] = sums[:, :n].T
    return out / len(forest["trees"])


@dataclass(frozen=True)
class Showing(Operator):
    """What is given of a classification."""

    show: Annotated[
        Literal["probabilities", "classes"],
        Field(description="probabilities: a volume for each class; classes: one, 'classes', with the number (from 1) of the likeliest class"),
    ] = "probabilities"
    wanted: Annotated[tuple[str, ...] | None, Field(min_length=1, description="classes whose probability is wanted; default: all")] = None


@register("classify_pixels")
@dataclass(frozen=True)
class ClassifyPixels(Showing, Classes, Filter):
    """Probability (0..1, stored in 255 steps) of each class for every voxel, by a forest that `train_forest` trained with the same classes and features
    on voxels of the same size: one output for each class, named `step.class`; or the likeliest class (of equal ones the first)."""

    serves = "step 6: the whole cell by a pixel classifier"
    ports = (_IMAGE, _FOREST, _MASK)

    @classmethod
    def examples(cls):
        return [cls(sigmas_nm=(8, 16)), cls(sigmas_nm=(20,), classes=("a", "b", "c"), show="classes"), cls(sigmas_nm=(12,), wanted=("cell",))]

    def example_inputs(self, rng, shape: Int3, spacing) -> tuple[dict, dict]:
        values, specs = _example(rng, shape, spacing, len(self.classes))
        train = TrainForest(self.sigmas_nm, self.features, self.window, self.classes, trees=8)
        some = {k: v[:24, :24, :24] for k, v in values.items()}
        site = Site.whole(*(ArraySpec(some[k].shape, s.dtype, s.spacing, s.kind) for k, s in specs.items()))
        forest = train.finish(train.measure(*some.values(), site=site), site.inputs)
        mask = rng.random(shape) < 0.8
        return {"image": values["image"], "forest": forest, "mask": mask}, {
            "image": specs["image"],
            "mask": ArraySpec(shape, "bool", specs["image"].spacing, "mask"),
        }

    def check(self, image: ArraySpec, mask: ArraySpec | None = None) -> None:
        self.check_classes()
        unknown = [c for c in self.wanted or () if c not in self.classes]
        if unknown:
            raise RecipeError(f"'wanted' names '{unknown[0]}', which is none of the classes: {', '.join(self.classes)}.")
        if self.wanted and self.show == "classes":
            raise RecipeError("'wanted' chooses among probabilities: leave it out with 'show: classes'.")

    def _names(self) -> list[str]:
        return ["classes"] if self.show == "classes" else list(dict.fromkeys(self.wanted or self.classes))

    def output(self, image: ArraySpec, mask: ArraySpec | None = None) -> dict[str, ArraySpec]:
        return {name: image.like(np.uint8, "labels" if self.show == "classes" else "probability") for name in self._names()}

    def memory(self, image: ArraySpec, mask: ArraySpec | None = None) -> float:
        return self.features_memory(image) + len(self._names()) + (mask is not None and mask.dtype != "bool") + (1 << 20) / THICK**3

    def __call__(self, image: np.ndarray, forest: dict, mask: np.ndarray | None = None, *, site: Site) -> dict[str, np.ndarray]:
        self._check_forest(forest, site.spacing)
        names = self._names()
        out = np.empty((len(names), *site.write.shape), np.uint8)
        wanted = np.array([self.classes.index(n) for n in names] if self.show == "probabilities" else [], np.int64)
        here = np.empty((0, 0, 0), np.bool_) if mask is None else np.ascontiguousarray(is_set(mask[site.crop]))
        arrays = compiled(forest)
        for z, slab in self.stream(image, site):
            part = slice(z - site.write.start[0], z - site.write.start[0] + slab.shape[1])
            if image.dtype.kind == "f" and not np.isfinite(slab).all():
                raise RecipeError(
                    f"the image is not finite (NaN or infinity) in or near planes {z} to {z + slab.shape[1] - 1} of {site.write}. Repair it."
                )
            if mask is None or here[part].any():
                classify(slab, here[part] if mask is not None else here, *arrays, wanted, out[:, part])
            else:
                out[:, part] = 0
        return dict(zip(names, out))

    def _check_forest(self, forest: Mapping[str, Any], spacing: Spacing) -> None:
        if not isinstance(forest, Mapping) or "trees" not in forest:
            raise RecipeError(f"'forest' of '{self.name}' is no forest. Give it the step of a 'train_forest'.")
        for key in ("classes", "sigmas_nm", "features", "window"):
            mine, its = getattr(self, key), forest[key]
            if (list(mine) if isinstance(mine, tuple) else mine) != its:
                raise RecipeError(f"the forest was trained with {key}: {its}, and '{self.name}' has {key}: {mine}. Give both the same.")
        if any(max(a / b, b / a) > SAME_VOXELS for a, b in zip(spacing.zyx, forest["spacing_nm"])):
            trained = " x ".join(f"{s:g}" for s in forest["spacing_nm"])
            raise RecipeError(f"the forest was trained on voxels of {trained} nm (z, y, x), the image has {spacing}. Train on the same level.")


@register("pixel_classifier")
@dataclass(frozen=True)
class PixelClassifier(Showing, Training, Composite):
    """Probability (0..1, stored in 255 steps) of each class for every voxel, by a random forest trained on a few annotated voxels of the same image: one
    output for each class, named `step.class`. Trains (`train_forest`) and classifies (`classify_pixels`) in one step.

    Best on a coarser level of the pyramid, whose voxels are some tenth of what is to be told apart; a cell, say, at 16 to 64 nm."""

    serves = "step 6: the whole cell by a pixel classifier"
    ports = (_IMAGE, _ANNOTATIONS, _MASK)

    @classmethod
    def examples(cls):
        return [cls(sigmas_nm=(10,), trees=6), cls(sigmas_nm=(8, 24), trees=4, show="classes", classes=("out", "cell", "nucleus"))]

    def example_inputs(self, rng, shape: Int3, spacing) -> tuple[dict, dict]:
        return _example(rng, shape, spacing, len(self.classes))

    def expand(self, inputs: Mapping[str, str]) -> list[Step]:
        training = TrainForest(**{f.name: getattr(self, f.name) for f in fields(TrainForest)})
        classification = ClassifyPixels(**{f.name: getattr(self, f.name) for f in fields(ClassifyPixels)})
        rest = {k: v for k, v in inputs.items() if k != "annotations"}
        return [Step(".forest", training, {k: inputs[k] for k in ("image", "annotations")}), Step("", classification, {**rest, "forest": ".forest"})]


def _example(rng, shape: Int3, spacing, classes: int) -> tuple[dict, dict]:
    """An image of noise, and annotations of every class."""
    spec = ArraySpec(tuple(shape), "uint8", spacing if isinstance(spacing, Spacing) else Spacing(*spacing), "image")
    image = rng.integers(0, 256, shape).astype(np.uint8)
    annotations = np.where(rng.random(shape) < 0.02, rng.integers(1, classes + 1, shape), 0).astype(np.uint8)
    annotations.reshape(-1)[: 2 * classes] = np.tile(np.arange(1, classes + 1), 2)[: annotations.size]
    return {"image": image, "annotations": annotations}, {"image": spec, "annotations": spec.like(np.uint8, "labels")}
