"""Rendering: every voxel from its own coordinates alone, so that any box equals the same box of the whole, bit for bit."""

from __future__ import annotations

import numpy as np
from numba import njit

# grey of structures, raw FIB-SEM: stain is dark, resin bright
RESIN, CYTOSOL, MEMBRANE, MATRIX, CRISTA = 205.0, 160.0, 58.0, 138.0, 84.0
EUCHROMATIN, HETEROCHROMATIN, NUCLEOLUS, LYSOSOME, LUMEN = 182.0, 120.0, 108.0, 106.0, 188.0


@njit(cache=True, nogil=True, inline="always")
def _hash(a, b, c, seed):
    """uint64 of three integers and a seed (splitmix64's finaliser)."""
    h = (
        np.uint64(a) * np.uint64(0x9E3779B97F4A7C15)
        ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
        ^ np.uint64(c) * np.uint64(0x165667B19E3779F9)
        ^ np.uint64(seed) * np.uint64(0xD6E8FEB86659FD93)
    )
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _uniform(a, b, c, seed):
    return (_hash(a, b, c, seed) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True, inline="always")
def _normal(a, b, c, seed):
    """About standard normal: the sum of four 16 bit uniforms of one hash."""
    h = _hash(a, b, c, seed)
    m = np.uint64(0xFFFF)
    total = float(h & m) + float((h >> np.uint64(16)) & m) + float((h >> np.uint64(32)) & m) + float(h >> np.uint64(48))
    return (total / 65536.0 - 2.0) * 1.7320508075688772


@njit(cache=True, nogil=True)
def _value_noise(z, y, x, seed):
    """Smooth noise in -1..1 with unit lattice."""
    iz, iy, ix = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
    fz, fy, fx = z - iz, y - iy, x - ix
    fz, fy, fx = fz * fz * (3 - 2 * fz), fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    total = 0.0
    for dz in range(2):
        for dy in range(2):
            w = (fz if dz else 1 - fz) * (fy if dy else 1 - fy)
            total += w * ((1 - fx) * _uniform(iz + dz, iy + dy, ix, seed) + fx * _uniform(iz + dz, iy + dy, ix + 1, seed))
    return 2 * total - 1


@njit(cache=True, nogil=True, inline="always")
def _filled(d, w):
    """Share of a voxel of width w on the inner side of a surface at signed distance d."""
    return min(1.0, max(0.0, 0.5 - d / w))


@njit(cache=True, nogil=True, inline="always")
def _sheet(d, t, w):
    """Share of a voxel of width w taken by a sheet of thickness t at distance d."""
    return max(0.0, min(d + w / 2, t / 2) - max(d - w / 2, -t / 2)) / w


@njit(cache=True, nogil=True)
def _waves(z, y, x, waves):
    s = 0.0
    for i in range(len(waves)):
        s += waves[i, 0] * np.sin(z * waves[i, 1] + y * waves[i, 2] + x * waves[i, 3] + waves[i, 4])
    return s


@njit(cache=True, nogil=True)
def _cell(z, y, x, half, waves):
    a, b, c = z / half[0], y / half[1], x / half[2]
    q = np.sqrt(a * a + b * b + c * c)
    a, b, c = a / half[0], b / half[1], c / half[2]
    scale = np.sqrt(a * a + b * b + c * c)
    d = q * (q - 1) / max(scale, 1e-9)
    return d if abs(d) > 900.0 else d - _waves(z, y, x, waves)


@njit(cache=True, nogil=True)
def _nucleus(z, y, x, lobes, waves):
    a = np.sqrt((z - lobes[0, 0]) ** 2 + (y - lobes[0, 1]) ** 2 + (x - lobes[0, 2]) ** 2) - lobes[0, 3]
    b = np.sqrt((z - lobes[1, 0]) ** 2 + (y - lobes[1, 1]) ** 2 + (x - lobes[1, 2]) ** 2) - lobes[1, 3]
    h = min(1.0, max(0.0, 0.5 + 0.5 * (b - a) / 120.0))
    d = b * (1 - h) + a * h - 120.0 * h * (1 - h)
    return d if abs(d) > 600.0 else d - _waves(z, y, x, waves)


@njit(cache=True, nogil=True)
def _tube(z, y, x, segments, near, n_near, label_skip):
    """(distance, label, arc length, offset across) to the nearest tube's surface; tubes of `label_skip` are left out."""
    best, label, arc, across = 1e9, 0, 0.0, 0.0
    for j in range(n_near):
        s = segments[near[j]]
        if s[7] == label_skip:
            continue
        uz, uy, ux = s[3] - s[0], s[4] - s[1], s[5] - s[2]
        pz, py, px = z - s[0], y - s[1], x - s[2]
        length2 = uz * uz + uy * uy + ux * ux
        t = min(1.0, max(0.0, (pz * uz + py * uy + px * ux) / length2))
        qz, qy, qx = pz - t * uz, py - t * uy, px - t * ux
        d = np.sqrt(qz * qz + qy * qy + qx * qx) - s[6]
        if d < best:
            best, label = d, int(s[7])
            along = (pz * uz + py * uy + px * ux) / np.sqrt(length2)
            arc = s[8] + along
            across = qz * s[9] + qy * s[10] + qx * s[11]
    return best, label, arc, across


@njit(cache=True, nogil=True)
def _culled(items, radius_at, lo, hi, margin, ends, out):
    """Indices of segments (ends = 2) or spheres (ends = 1) that come within `margin` of the brick [lo, hi]."""
    n = 0
    for j in range(len(items)):
        r = items[j, radius_at] + margin
        keep = True
        for a in range(3):
            p = items[j, a]
            q = items[j, a + 3] if ends == 2 else p
            if min(p, q) - r > hi[a] or max(p, q) + r < lo[a]:
                keep = False
                break
        if keep:
            out[n] = j
            n += 1
    return n


@njit(cache=True, nogil=True)
def render(
    start,
    shape,
    spacing,
    centre,
    half,
    waves_cell,
    lobes,
    waves_nucleus,
    nucleoli,
    segments,
    spheres,
    waves_er,
    seed,
    sigma,
    em,
    cell,
    nucleus,
    mito,
    lysosome,
):
    """Fill em (uint8), cell and nucleus (bool), mito and lysosome (uint64 labels), all of `shape`, for the box that begins at voxel `start`."""
    nz, ny, nx = shape
    brick = 16
    w = max(spacing[0], spacing[1], spacing[2]) * 1.15  # the beam and the slice blur a little more than a voxel
    curtain = np.zeros((brick, brick))
    near_seg, near_sph = np.zeros(max(1, len(segments)), np.int64), np.zeros(max(1, len(spheres)), np.int64)
    lo, hi = np.zeros(3), np.zeros(3)
    for bz in range(0, nz, brick):
        for by in range(0, ny, brick):
            for bx in range(0, nx, brick):
                ez, ey, ex = min(bz + brick, nz), min(by + brick, ny), min(bx + brick, nx)
                lo[0], lo[1], lo[2] = (
                    (start[0] + bz) * spacing[0] - centre[0],
                    (start[1] + by) * spacing[1] - centre[1],
                    (start[2] + bx) * spacing[2] - centre[2],
                )
                hi[0], hi[1], hi[2] = (
                    (start[0] + ez - 1) * spacing[0] - centre[0],
                    (start[1] + ey - 1) * spacing[1] - centre[1],
                    (start[2] + ex - 1) * spacing[2] - centre[2],
                )
                n_seg = _culled(segments, 6, lo, hi, 2 * w + 60.0, 2, near_seg)
                n_sph = _culled(spheres, 3, lo, hi, 2 * w + 30.0, 1, near_sph)
                for i in range(bz, ez):  # curtains run along the beam (y): stripes of x that live for some slices
                    for k in range(bx, ex):
                        gz, gx = start[0] + i, start[2] + k
                        curtain[i - bz, k - bx] = 2.2 * _value_noise(gz / 6.0, 0.0, gx / 2.5, seed + 21) + 2.4 * _value_noise(
                            gz / 15.0, 0.0, gx / 11.0, seed + 22
                        )
                for i in range(bz, ez):
                    gz = start[0] + i
                    z = gz * spacing[0] - centre[0]
                    # slice-to-slice brightness: slow drift and a jump from slice to slice
                    drift = 4.0 * _value_noise(gz / 23.0, 0.0, 0.0, seed + 11) + 1.6 * _normal(gz, 1, 0, seed + 12)
                    for j in range(by, ey):
                        gy = start[1] + j
                        y = gy * spacing[1] - centre[1]
                        last = _normal(gz, gy, start[2] + bx - 1, seed + 31)
                        for k in range(bx, ex):
                            gx = start[2] + k
                            x = gx * spacing[2] - centre[2]
                            value, d_cell, d_nucleus, label = _structure(
                                z,
                                y,
                                x,
                                w,
                                half,
                                waves_cell,
                                lobes,
                                waves_nucleus,
                                nucleoli,
                                segments,
                                near_seg,
                                n_seg,
                                spheres,
                                near_sph,
                                n_sph,
                                waves_er,
                                seed,
                            )
                            # shot noise grows with the signal; neighbours on the scan line share a little
                            fresh = _normal(gz, gy, gx, seed + 31)
                            noise = (fresh + 0.3 * last) / 1.044
                            last = fresh
                            grey = value + drift + curtain[i - bz, k - bx] + sigma * np.sqrt((value + 60.0) / 220.0) * noise
                            em[i, j, k] = np.uint8(min(255.0, max(0.0, np.rint(grey))))
                            cell[i, j, k] = d_cell < 0
                            nucleus[i, j, k] = d_nucleus < 0
                            mito[i, j, k] = label
                            for m in range(n_sph):
                                ball = spheres[near_sph[m]]
                                if ball[4] == 0 and (z - ball[0]) ** 2 + (y - ball[1]) ** 2 + (x - ball[2]) ** 2 < ball[3] * ball[3]:
                                    lysosome[i, j, k] = near_sph[m] + 1


@njit(cache=True, nogil=True)
def _structure(z, y, x, w, half, waves_cell, lobes, waves_nucleus, nucleoli, segments, near_seg, n_seg, spheres, near_sph, n_sph, waves_er, seed):
    """(grey, distance to the cell, distance to the nucleus, label of the mitochondrion) at a point, averaged over a voxel of width w."""
    d_cell = _cell(z, y, x, half, waves_cell)
    if d_cell > 3 * w:
        return RESIN, d_cell, 1e9, 0
    d_nucleus = _nucleus(z, y, x, lobes, waves_nucleus)
    grain = min(1.0, 30.0 / w)  # ribosomes and filaments average out in large voxels
    texture = 9.0 * _value_noise(z / 95.0, y / 95.0, x / 95.0, seed + 41) + 24.0 * grain * _value_noise(z / 34.0, y / 34.0, x / 34.0, seed + 42)
    label = 0
    if d_nucleus < 2 * w and d_nucleus < -2 * w - 60.0:
        value = _chromatin(z, y, x, d_nucleus, w, nucleoli, texture, seed)
        return value, d_cell, d_nucleus, 0
    value = CYTOSOL + texture
    # endoplasmic reticulum: sheets and tubules where two wave fields vanish, two membranes around a lumen
    field = _waves(z, y, x, waves_er)
    where = _value_noise(z / 700.0, y / 700.0, x / 700.0, seed + 51)
    there = min(1.0, max(0.0, (where + 0.4) * 3.0)) * min(1.0, max(0.0, (-d_cell - 120.0) / 80.0)) * min(1.0, max(0.0, (d_nucleus - 60.0) / 60.0))
    if there > 0.02:
        d_er = abs(field) * 62.0 - 24.0  # field's slope is about 1 / 62 nm
        value += there * ((LUMEN - value) * 0.5 * _filled(d_er, w) + (MEMBRANE - value) * 0.8 * _sheet(d_er, 11.0, w))
    for m in range(n_sph):
        s = spheres[near_sph[m]]
        d = np.sqrt((z - s[0]) ** 2 + (y - s[1]) ** 2 + (x - s[2]) ** 2) - s[3]
        if d < 2 * w:
            inside = _filled(d, w)
            if s[4] == 0:
                body = LYSOSOME + 14.0 * _value_noise(z / 120.0, y / 120.0, x / 120.0, int(s[5])) + 0.4 * texture
                value += (body - value) * inside + (MEMBRANE - value) * _sheet(d, 9.0, w)
            else:
                value += (LUMEN - value) * 0.8 * inside + (MEMBRANE - value) * _sheet(d, 10.0, w)
    d, found, arc, across = _tube(z, y, x, segments, near_seg, n_seg, 0)
    if d < 2 * w:
        if d < 0:
            label = found
        value += (_mitochondrion(z, y, x, d, arc, across, w, texture, found, seed) - value) * _filled(d, w)
        outer = _sheet(d + 5.0, 14.0, w)
        inner = _sheet(d + 28.0, 12.0, w)
        value += (MEMBRANE - value) * min(1.0, outer + inner)
        # the membrane of a touching neighbour
        e, other, _, _ = _tube(z, y, x, segments, near_seg, n_seg, found)
        if e < 2 * w:
            value += (MEMBRANE - value) * min(1.0, _sheet(e + 5.0, 14.0, w) + _sheet(e + 28.0, 12.0, w))
    # nuclear envelope: outer and inner membrane with the perinuclear space between them
    if d_nucleus < 2 * w:
        inside = _filled(d_nucleus, w)
        value += (_chromatin(z, y, x, d_nucleus, w, nucleoli, texture, seed) - value) * inside
        value += (LUMEN - value) * 0.7 * _sheet(d_nucleus + 22.0, 26.0, w)
        value += (MEMBRANE - value) * min(1.0, _sheet(d_nucleus + 5.0, 10.0, w) + _sheet(d_nucleus + 40.0, 12.0, w))
    # plasma membrane and the resin beyond
    outside = 1 - _filled(d_cell, w)
    value += (RESIN - value) * outside
    value += (MEMBRANE - value) * _sheet(d_cell + 4.0, 11.0, w)
    return value, d_cell, d_nucleus, label


@njit(cache=True, nogil=True)
def _chromatin(z, y, x, d, w, nucleoli, texture, seed):
    """Euchromatin with clumps of heterochromatin, a rim of it under the envelope, and nucleoli."""
    clump = _value_noise(z / 330.0, y / 330.0, x / 330.0, seed + 61) + 0.5 * _value_noise(z / 140.0, y / 140.0, x / 140.0, seed + 62)
    rim = max(0.0, 1.0 - abs(d + 85.0) / 75.0) * (0.7 + 0.5 * _value_noise(z / 240.0, y / 240.0, x / 240.0, seed + 63))
    dense = min(1.0, max(0.0, (clump - 0.32) * 2.6) + max(0.0, rim))
    value = EUCHROMATIN + 0.8 * texture + (HETEROCHROMATIN - EUCHROMATIN) * dense
    for m in range(len(nucleoli)):
        s = nucleoli[m]
        e = np.sqrt((z - s[0]) ** 2 + (y - s[1]) ** 2 + (x - s[2]) ** 2) - s[3] * (
            1 + 0.25 * _value_noise(z / 260.0, y / 260.0, x / 260.0, seed + 64)
        )
        value += (NUCLEOLUS + 12.0 * clump + 0.6 * texture - value) * _filled(e, max(w, 60.0))
    return value


@njit(cache=True, nogil=True)
def _mitochondrion(z, y, x, d, arc, across, w, texture, label, seed):
    """Matrix with lamellar cristae, across the tube, tilted and broken."""
    value = MATRIX + 0.5 * texture
    if d < -36.0:
        bend = 34.0 * _value_noise(z / 150.0, y / 150.0, x / 150.0, seed + 71)
        period = 84.0
        s = (arc + 0.45 * across + bend + 31.0 * label) / period
        gap = abs(s - np.floor(s) - 0.5) * period
        there = _value_noise(z / 190.0, y / 190.0, x / 190.0, seed + 72 + label)
        if there > -0.45:
            value += (CRISTA - value) * 0.95 * _sheet(gap, 24.0, w)
    return value
