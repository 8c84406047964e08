"""What is kept for validation: one region of each volume, never planes strewn among those that are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vemray.geometry import Box
from vemray.training.source import Source
from vemray.training.targets import Target

#: nm next to the region that are neither trained on nor judged: a neighbouring plane shows nearly the same
GAP_NM = 100.0


def hold_back(sources: Sequence[Source], target: Target, classes: int, share: float, fold: tuple[int, int] | None = None) -> bool:
    """Set `held` and `gap` of each source: about `share` of what is annotated, or part `fold[0]` of `fold[1]` of it. False where it cannot be done
    without losing a class: then nothing is held back. A volume that is another one turned keeps nothing itself, and shows nothing of what that
    one keeps."""
    for s in sources:
        s.held = s.gap = None
    if not share and fold is None:
        return False
    copies = [s for s in sources if s.turned is not None]
    sources = [s for s in sources if s.turned is None]
    counted = [_counts(s, target, classes) for s in sources]
    if fold is None and len(sources) > 1:  # a class may be painted in one volume alone, so the classes are looked at together
        total = sum(c[0].sum(1) for c in counted)
    else:
        total = counted[0][0].sum(1)
    for source, counts in zip(sources, counted):
        axis = _axis(source, counts, share if fold is None else 1 / fold[1])
        found = _slab(counts[axis], total, share, fold)
        if found is None:
            continue
        start, stop = [0, 0, 0], list(source.shape)
        start[axis], stop[axis] = found
        source.held = Box(tuple(start), tuple(stop))
        wide = int(np.ceil(GAP_NM / source.spacing.zyx[axis]))
        gap = [wide if i == axis else 0 for i in range(3)]
        apart = source.held.grow(tuple(gap)).clip(source.shape)
        kept = counts[axis].sum(1) - counts[axis][:, apart.start[axis] : apart.stop[axis]].sum(1)
        source.gap = apart if (kept[counts[axis].sum(1) > 0] > 0).all() else source.held
    held = any(s.held is not None for s in sources)
    for s in copies if held else ():
        s.held = Box((0, 0, 0), (0, 0, 0))
    return held


def _counts(source: Source, target: Target, classes: int) -> list[np.ndarray]:
    """For each axis (classes, n): annotated voxels by coordinate."""
    out = [np.zeros((classes, n), np.int64) for n in source.shape]
    for box, _ in source.annotation.boxes():
        labels = source.annotation.read(box)
        if not labels.any():
            continue
        index = target.indices(np.squeeze(labels) if labels.shape.count(1) == 1 else labels).reshape(labels.shape)
        for c in range(classes):
            here = index == c
            for axis in range(3):
                sums = here.sum(tuple(i for i in range(3) if i != axis))
                out[axis][c, box.start[axis] : box.stop[axis]] += sums
    return out


def _axis(source: Source, counts: list[np.ndarray], share: float) -> int:
    """The one along which most planes are annotated, if a part of that size can be cut from them; else the longest within the planes."""
    annotated = [int((c.sum(0) > 0).sum()) for c in counts]
    stack = min(range(3), key=lambda i: annotated[i] / source.shape[i])  # sparse along it: planes
    if annotated[stack] == source.shape[stack]:  # everything is annotated
        return int(np.argmax([n * s for n, s in zip(source.shape, source.spacing.zyx)]))
    if round(share * annotated[stack]) >= 1 and annotated[stack] >= 4:
        return stack
    return max((i for i in range(3) if i != stack), key=lambda i: annotated[i])


def _slab(counts: np.ndarray, total: np.ndarray, share: float, fold: tuple[int, int] | None) -> tuple[int, int] | None:
    """[start, stop) along the axis of (classes, n) whose classes are annotated most nearly in the proportions of all, without which every class is
    still annotated; or the fold."""
    known = counts.sum(0)
    upto = np.concatenate([[0], np.cumsum(known)])
    if not upto[-1]:
        return None
    if fold is not None:
        a, b = (int(np.searchsorted(upto, upto[-1] * (fold[0] + d) / fold[1])) for d in (0, 1))
        candidates = [(a, b)]
    else:
        size = share * upto[-1]
        places = np.flatnonzero(known)
        places = places[np.linspace(0, len(places) - 1, min(len(places), 256)).round().astype(int)]
        candidates = []
        for a in np.unique(places):
            b = int(np.searchsorted(upto, upto[a] + size * 0.999))
            if b <= len(known):
                candidates.append((int(a), max(b, int(a) + 1)))
    own = counts.sum(1)
    best, at = np.inf, None
    for a, b in candidates:
        run = counts[:, a:b].sum(1)
        if not run.sum() or ((own - run)[own > 0] <= 0).any():
            continue
        off = np.abs(run / run.sum() - own / own.sum()).sum() + ((run == 0) & (own > 0)).sum() + abs(run.sum() / own.sum() - share)
        if fold is not None or off < best:
            best, at = off, (a, b)
    return at
