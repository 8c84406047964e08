"""Rendering: every voxel from its own coordinates alone, so that any box equals the same box of the whole, bit for bit."""

from __future__ import annotations

import numpy as np
from numba import njit

from vemray.phantom.noise import bits, dots, filled, key, mix, noise, normal, sheet, sine, value_noise, vesicle
from vemray.phantom.pores import LIP, MIDDLE
from vemray.phantom.surfaces import MOUTH

# grey of structures, raw FIB-SEM: stain is dark, resin bright
RESIN, CYTOSOL, MEMBRANE, MATRIX, CRISTA, RIBOSOME = 208.0, 160.0, 12.0, 140.0, 50.0, 76.0
PLUG, HOLLOW = 62.0, 172.0
EUCHROMATIN, HETEROCHROMATIN, NUCLEOLUS, LYSOSOME, LUMEN = 164.0, 116.0, 104.0, 92.0, 178.0
#: lattices, nm: the noises of grain (macromolecules), patches (also the course of membranes) and regions; ribosomes; vesicles
GRAIN, PATCH, REGION, DOTS, VESICLES = 46.0, 120.0, 330.0, 58.0, 140.0
#: standard deviation of the blur by beam and depth of escape, nm: within the slice and across it
BEAM, DEPTH = 6.5, 8.5
#: the Golgi's cisternae: spacing and reach sideways
STACK, GOLGI = 48.0, 380.0
BRICK = 16


@njit(cache=True, nogil=True, inline="always")
def _width(blur, tilt):
    """Width of the blur across a surface whose normal has the square `tilt` along z: what lies flat in the slice is smeared more."""
    return np.sqrt(blur[0] * blur[0] * (1 - tilt) + blur[1] * blur[1] * tilt)


@njit(cache=True, nogil=True)
def _waves(z, y, x, waves, d):
    """d minus the waves; exact where its sign is at stake."""
    s = 0.0
    for i in range(len(waves)):
        s += waves[i, 0] * sine(z * waves[i, 1] + y * waves[i, 2] + x * waves[i, 3] + waves[i, 4])[0]
    if abs(d - s) < 0.01:
        s = 0.0
        for i in range(len(waves)):
            s += waves[i, 0] * np.sin(z * waves[i, 1] + y * waves[i, 2] + x * waves[i, 3] + waves[i, 4])
    return d - s


@njit(cache=True, nogil=True)
def _level(z, y, x, waves, bend):
    """About the signed distance (nm) to where a sum of waves vanishes, bent by some nm, and the square of its normal's z."""
    s, gz, gy, gx = 0.0, 0.0, 0.0, 0.0
    for i in range(len(waves)):
        sin, cos = sine(z * waves[i, 1] + y * waves[i, 2] + x * waves[i, 3] + waves[i, 4])
        s += waves[i, 0] * sin
        gz += waves[i, 0] * waves[i, 1] * cos
        gy += waves[i, 0] * waves[i, 2] * cos
        gx += waves[i, 0] * waves[i, 3] * cos
    g = max(gz * gz + gy * gy + gx * gx, 3e-5)
    return s / np.sqrt(g) + bend, gz * gz / g


@njit(cache=True, nogil=True)
def _cell(z, y, x, half, waves, reach):
    """(distance to the cell, square of the normal's z); beyond `reach` the waves are left out."""
    a, b, c = z / half[0], y / half[1], x / half[2]
    q = np.sqrt(a * a + b * b + c * c)
    a, b, c = a / half[0], b / half[1], c / half[2]
    scale = max(np.sqrt(a * a + b * b + c * c), 1e-9)
    d = q * (q - 1) / scale
    return (d, 0.0) if abs(d) > reach else (_waves(z, y, x, waves, d), (a / scale) ** 2)


@njit(cache=True, nogil=True)
def _nucleus(z, y, x, lobes, waves, fingers, reach):
    p = np.sqrt((z - lobes[0, 0]) ** 2 + (y - lobes[0, 1]) ** 2 + (x - lobes[0, 2]) ** 2)
    q = np.sqrt((z - lobes[1, 0]) ** 2 + (y - lobes[1, 1]) ** 2 + (x - lobes[1, 2]) ** 2)
    a, b = p - lobes[0, 3], q - lobes[1, 3]
    h = min(1.0, max(0.0, 0.5 + 0.5 * (b - a) / 120.0))
    d = b * (1 - h) + a * h - 120.0 * h * (1 - h)
    if abs(d) > reach:
        return d, 0.0
    d, tilt = _waves(z, y, x, waves, d), ((z - lobes[0, 0]) / p * h + (z - lobes[1, 0]) / q * (1 - h)) ** 2
    for i in range(len(fingers)):
        s = fingers[i]
        uz, uy, ux = s[3] - s[0], s[4] - s[1], s[5] - s[2]
        pz, py, px = z - s[0], y - s[1], x - s[2]
        t = min(1.0, max(0.0, (pz * uz + py * uy + px * ux) / (uz * uz + uy * uy + ux * ux)))
        r = np.sqrt((pz - t * uz) ** 2 + (py - t * uy) ** 2 + (px - t * ux) ** 2)
        e = s[6] - r
        if e > d:
            tilt = ((pz - t * uz) / max(r, 1e-9)) ** 2
        d = max(d, e) + MOUTH / 4 * max(0.0, 1 - abs(d - e) / MOUTH) ** 2
    return d, tilt


@njit(cache=True, nogil=True)
def _tube(z, y, x, segments, near, n_near, label_skip):
    """(distance, label, arc length, offset across, square of the normal's z) to the nearest tube's surface, those of `label_skip` left out."""
    best, label, arc, across, tilt = 1e9, 0, 0.0, 0.0, 0.0
    for j in range(n_near):
        s = segments[near[j]]
        if s[7] == label_skip:
            continue
        uz, uy, ux = s[3] - s[0], s[4] - s[1], s[5] - s[2]
        pz, py, px = z - s[0], y - s[1], x - s[2]
        length2 = uz * uz + uy * uy + ux * ux
        t = min(1.0, max(0.0, (pz * uz + py * uy + px * ux) / length2))
        qz, qy, qx = pz - t * uz, py - t * uy, px - t * ux
        r = np.sqrt(qz * qz + qy * qy + qx * qx)
        d = r - s[6]
        if d < best:
            best, label = d, int(s[7])
            along = (pz * uz + py * uy + px * ux) / np.sqrt(length2)
            arc = s[8] + along
            across = qz * s[9] + qy * s[10] + qx * s[11]
            tilt = (qz / max(r, 1e-9)) ** 2
    return best, label, arc, across, tilt


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
def _pore(z, y, x, pores, near, n_near):
    """(the pore around this place or -1, distance to its axis, height over the outer membrane; the hollow nearest by or -1, distance to its surface)."""
    pore, across, height, hollow, least = -1, 0.0, 0.0, -1, 1e9
    for j in range(n_near):
        s = pores[near[j]]
        pz, py, px = z - s[4], y - s[5], x - s[6]
        h = pz * s[7] + py * s[8] + px * s[9]
        r2 = max(0.0, pz * pz + py * py + px * px - h * h)
        if s[10] > 0 and r2 < 9900.0 and h > -150.0:
            pore, across, height = near[j], np.sqrt(r2), h
        half = (1 - MIDDLE) * s[13]
        u = -h - s[11] - MIDDLE * s[13]
        a, b = r2 / (s[12] * s[12]), u * u / (half * half)
        d = 1e9
        if a + b < 9.0:
            q = np.sqrt(a + b)
            d = max(q * (q - 1) / max(np.sqrt(a / (s[12] * s[12]) + b / (half * half)), 1e-9), h + s[11])
        if d < least:
            hollow, least = near[j], d
    return pore, across, height, hollow, least


@njit(cache=True, nogil=True)
def render(start, shape, spacing, scene, seed, sigma, em, cell, nucleus, mito, lysosome, pore, pocket):
    """Fill em (uint8), cell and nucleus (bool), mito and lysosome (uint64 labels), all of `shape`, for the box that begins at voxel `start`; where the
    scene has pores, also pore and pocket (uint64 labels).
    `scene`: centre, half_axes, waves_cell, lobes, waves_nucleus, nucleoli, segments, spheres, waves_er, fingers, pores, lining."""
    centre, segments, spheres, pores = scene[0], scene[6], scene[7], scene[10]
    nz, ny, nx = shape
    # width of the blur within the slice and across it (voxel and beam; electrons come from some depth below the face), and what it leaves of fine texture
    across, along = 4.47 * np.hypot(0.289 * max(spacing[1], spacing[2]), BEAM), 4.47 * np.hypot(0.289 * spacing[0], DEPTH)
    most = max(across, along)
    blur = (across, along, most, 1 / (1 + (most / 70.0) ** 2), 1 / (1 + (most / 190.0) ** 2), min(1.0, max(0.0, (56.0 - most) / 14.0)))
    golgi = _golgi(scene[3])
    near_seg, near_sph = np.zeros(max(1, len(segments)), np.int64), np.zeros(max(1, len(spheres)), np.int64)
    near_pore = np.zeros(max(1, len(pores)), np.int64)
    deep = 260.0 if len(scene[9]) == 0 else 460.0  # below it, neither lining nor fingers change anything
    reach = (min(900.0, scene[2][:, 0].sum() + max(160.0, most)), min(deep + 340.0, scene[4][:, 0].sum() + max(deep, 2 * most)))
    curtain, white = np.zeros((BRICK, BRICK)), np.zeros((BRICK + 2, BRICK + 2))
    lo, hi = np.zeros(3), np.zeros(3)
    for bz in range(0, nz, BRICK):
        for by in range(0, ny, BRICK):
            for bx in range(0, nx, BRICK):
                ez, ey, ex = min(bz + BRICK, nz), min(by + BRICK, ny), min(bx + BRICK, nx)
                for a, first, end in ((0, bz, ez), (1, by, ey), (2, bx, ex)):
                    lo[a] = (start[a] + first) * spacing[a] - centre[a]
                    hi[a] = (start[a] + end - 1) * spacing[a] - centre[a]
                n_seg = _culled(segments, 6, lo, hi, most + 70.0, 2, near_seg)
                n_sph = _culled(spheres, 3, lo, hi, most + 70.0, 1, near_sph)
                n_pore = _culled(pores, 3, lo, hi, most, 1, near_pore)
                for i in range(bz, ez):  # curtains run along the beam (y): stripes of x that live for some slices
                    for k in range(bx, ex):
                        gz, gx = start[0] + i, start[2] + k
                        fine, broad = value_noise(gz / 6.0, gx / 2.5, seed + 21), value_noise(gz / 15.0, gx / 11.0, seed + 22)
                        curtain[i - bz, k - bx] = 1.1 * fine + 1.8 * broad
                for i in range(bz, ez):
                    gz = start[0] + i
                    z = gz * spacing[0] - centre[0]
                    # slice-to-slice brightness: slow drift and a jump from slice to slice
                    drift = 4.0 * value_noise(gz / 23.0, 0.0, seed + 11) + 1.4 * normal(gz, 1, 0, seed + 12)
                    for j in range(by - 1, ey + 1):
                        for k in range(bx - 1, ex + 1):
                            white[j - by + 1, k - bx + 1] = normal(gz, start[1] + j, start[2] + k, seed + 31)
                    for j in range(by, ey):
                        y = (start[1] + j) * spacing[1] - centre[1]
                        for k in range(bx, ex):
                            x = (start[2] + k) * spacing[2] - centre[2]
                            value, d_cell, d_nucleus, label, hole = _structure(
                                z, y, x, blur, reach, golgi, scene, near_seg, n_seg, near_sph, n_sph, near_pore, n_pore, seed
                            )
                            # shot noise grows with the signal; neighbours share a little, those on the scan line more
                            m, n = j - by + 1, k - bx + 1
                            shot = white[m, n] + 0.32 * (white[m, n - 1] + white[m, n + 1]) + 0.2 * (white[m - 1, n] + white[m + 1, n])
                            grey = value + drift + curtain[i - bz, k - bx] + sigma * np.sqrt((value + 60.0) / 220.0) * shot / 1.134
                            em[i, j, k] = np.uint8(min(255.0, max(0.0, np.rint(grey))))
                            cell[i, j, k] = d_cell < 0
                            nucleus[i, j, k] = d_nucleus < 0
                            mito[i, j, k] = label
                            if hole > 0:
                                pocket[i, j, k] = hole
                            elif hole < 0:
                                pore[i, j, k] = -hole
                            for m in range(n_sph):
                                ball = spheres[near_sph[m]]
                                if ball[4] == 0 and (z - ball[0]) ** 2 + (y - ball[1]) ** 2 + (x - ball[2]) ** 2 < ball[3] * ball[3]:
                                    lysosome[i, j, k] = near_sph[m] + 1


@njit(cache=True, nogil=True)
def _golgi(lobes):
    """Its centre, beside the furrow of the nucleus, and its normal."""
    out, axis = np.zeros((2, 3)), lobes[1, :3] - lobes[0, :3]
    length = np.sqrt((axis**2).sum())
    along = min(lobes[0, 3], 0.5 * (length + (lobes[0, 3] ** 2 - lobes[1, 3] ** 2) / length)) / length
    aside = max(np.sqrt(axis[1] ** 2 + axis[2] ** 2), 1e-9)
    out[1, 1], out[1, 2] = axis[2] / aside, -axis[1] / aside
    out[0] = lobes[0, :3] + along * axis + out[1] * (np.sqrt(max(0.0, lobes[0, 3] ** 2 - (along * length) ** 2)) + 420.0)
    return out


@njit(cache=True, nogil=True)
def _structure(z, y, x, blur, reach, golgi, scene, near_seg, n_seg, near_sph, n_sph, near_pore, n_pore, seed):
    """(grey, distance to the cell, distance to the nucleus, label of the mitochondrion, label of the pocket or minus that of the pore) at a point, averaged
    over a blurred voxel."""
    _, half, waves_cell, lobes, waves_nucleus, nucleoli, segments, spheres, waves_er, fingers, pores, lining = scene
    most = blur[2]
    d_cell, tilt_cell = _cell(z, y, x, half, waves_cell, reach[0])
    if d_cell > most:
        return RESIN, d_cell, 1e9, 0, 0
    d_nucleus, tilt_nucleus = _nucleus(z, y, x, lobes, waves_nucleus, fingers, reach[1])
    grain, patch = noise(z / GRAIN, y / GRAIN, x / GRAIN, seed + 42), noise(z / PATCH, y / PATCH, x / PATCH, seed + 41)
    region = noise(z / REGION, y / REGION, x / REGION, seed + 51)
    hole, light, through = 0, 0.0, -1
    if n_pore > 0 and d_nucleus < most + 20.0:
        through, across_pore, height, hollow, d_hollow = _pore(z, y, x, pores, near_pore, n_pore)
        if hollow >= 0:
            light = pores[hollow, 15] * filled(d_hollow + 7.0 * patch[0] + 5.0 * grain[1], max(most, 46.0))
            if d_hollow < 0 and pores[hollow, 10] > 0:
                hole = hollow + 1
        if through >= 0 and across_pore < pores[through, 10] and -pores[through, 11] <= height < LIP:
            hole = -through - 1
    if d_nucleus < -most - 80.0:
        return _chromatin(z, y, x, d_nucleus, blur, nucleoli, lining, light, grain, patch, region), d_cell, d_nucleus, 0, hole
    # membranes: darker and fainter, thicker and thinner, a little undulating along their course
    dark, thick, wobble = min(1.0, max(0.45, 0.8 + 0.17 * patch[1])), 13.0 + 1.5 * patch[0], min(7.0, max(-7.0, 3.2 * patch[2]))
    d_tube, found, arc, across, tilt_tube = _tube(z, y, x, segments, near_seg, n_seg, 0)
    d_ball, ball = 1e9, -1
    for m in range(n_sph):
        s = spheres[near_sph[m]]
        d = np.sqrt((z - s[0]) ** 2 + (y - s[1]) ** 2 + (x - s[2]) ** 2) - s[3]
        if d < d_ball:
            d_ball, ball = d, near_sph[m]
    label = found if d_tube < 0 else 0
    value = CYTOSOL
    if d_tube > -most - 45.0 and d_ball > -most - 45.0:
        # endoplasmic reticulum: cisternae with closed rims; Golgi; vesicles. They keep clear of the larger organelles and follow their outlines
        d_er, tilt = _level(z, y, x, waves_er, 30.0 * region[2] + 4.0 * patch[2])
        shut = max(0.0, -0.1 - region[0] - 0.12 * patch[1]) * 95.0
        d = np.sqrt(d_er * d_er + shut * shut) / 1.1 - 17.0 - 3.0 * patch[0]
        kind, near = 0.0, 0.0
        gz, gy, gx = z - golgi[0, 0], y - golgi[0, 1], x - golgi[0, 2]
        far = gz * gz + gy * gy + gx * gx
        if far < (2 * GOLGI) ** 2:
            near = 1 - far / (2 * GOLGI) ** 2
            v = gz * golgi[1, 0] + gy * golgi[1, 1] + gx * golgi[1, 2] + far / 2600.0 - 40.0 + 14.0 * region[1] + 4.0 * patch[1]
            n = min(2.0, max(-2.0, np.rint(v / STACK)))
            rim = GOLGI * (0.75 + 0.1 * n) + 70.0 * region[2] + 35.0 * patch[0]
            d_golgi = np.hypot(v - n * STACK, max(0.0, np.sqrt(max(0.0, far - v * v)) - rim)) - 9.0 - 2.0 * patch[2]
            if d_golgi < 40.0:
                d, tilt, kind = min(max(d, 34.0 - d_golgi), d_golgi), 0.1, 0.01
        d_vesicle, content = vesicle(z / VESICLES, y / VESICLES, x / VESICLES, 0.4 + 0.16 * region[1] + 0.5 * near, seed + 52)
        d_vesicle = d_vesicle * VESICLES + 0.6 * wobble
        if d_vesicle < d:
            d, tilt, kind = d_vesicle, 0.33, 0.01 + content
        d = max(d, 16.0 - d_tube, 16.0 - d_ball, 26.0 - d_nucleus, 30.0 + d_cell)
        value = _cytosol(z, y, x, d, kind, tilt, dark, blur, grain, patch, region, seed)
    if d_ball < most:
        s = spheres[ball]
        w = _width(blur, ((z - s[0]) / max(d_ball + s[3], 1e-9)) ** 2)
        if s[4] == 0:
            # dented: the outline stays within the label
            d = d_ball + min(45.0, max(0.0, 13.0 + 9.0 * region[2] + 6.0 * region[0] + wobble))
            value += (_lysosome(d, blur, grain, patch, region, s[5]) - value) * filled(d, w)
        else:
            d = d_ball + wobble
            value += (LUMEN + 5.0 * patch[0] - value) * 0.9 * filled(d, w)
        value += (MEMBRANE - value) * dark * sheet(d + 4.0, thick, w)
    if d_tube < most:
        w, d = _width(blur, tilt_tube), d_tube + 0.6 * wobble
        value += (_mitochondrion(d, arc, across, blur, grain, patch, region, found, seed) - value) * filled(d, w)
        value += (MEMBRANE - value) * dark * min(1.0, sheet(d + 5.0, 11.0, w) + 0.8 * sheet(d + 27.0 + 2.0 * patch[0], 10.0, w))
        # the membrane of a touching neighbour
        e, _, _, _, tilt_tube = _tube(z, y, x, segments, near_seg, n_seg, found)
        if e < most:
            w = _width(blur, tilt_tube)
            value += (MEMBRANE - value) * dark * min(1.0, sheet(e + 5.0, 11.0, w) + 0.8 * sheet(e + 27.0, 10.0, w))
    # nuclear envelope: outer and inner membrane with the perinuclear space between them
    if d_nucleus < most:
        w, d, gap = _width(blur, min(1.0, tilt_nucleus)), d_nucleus + 0.7 * wobble, 30.0 + 5.0 * patch[0] + 5.0 * region[2]
        value += (_chromatin(z, y, x, d_nucleus, blur, nucleoli, lining, light, grain, patch, region) - value) * filled(d, w)
        closed = 1.0
        if through >= 0:
            # the membranes meet around the pore; within it, a plug
            s = pores[through]
            edge, level = across_pore - s[10] + 0.5 * wobble, height + s[11] / 2
            closed = 1 - filled(edge - 6.0, blur[2])
        value += (LUMEN - value) * 0.65 * closed * sheet(d + gap / 2 + 4.0, gap, w)
        value += (MEMBRANE - value) * dark * closed * min(1.0, sheet(d + 5.0, 11.0, w) + sheet(d + gap + 5.0, 12.0, w))
        if through >= 0:
            value += (MEMBRANE - value) * dark * 0.85 * sheet(edge - 4.0, 12.0, blur[2]) * sheet(level, s[11] - 4.0, w)
            value += (PLUG - value) * s[14] * (1 + 0.12 * grain[0] * blur[3]) * filled(edge + 12.0, blur[2]) * sheet(level, s[11] + 12.0, w)
    # plasma membrane and the resin beyond
    w, d = _width(blur, tilt_cell), d_cell + 0.7 * wobble
    value += (RESIN - value) * (1 - filled(d, w))
    value += (MEMBRANE - value) * dark * sheet(d + 4.0, thick, w)
    return value, d_cell, d_nucleus, label, hole


@njit(cache=True, nogil=True)
def _cytosol(z, y, x, d, kind, tilt, dark, blur, grain, patch, region, seed):
    """Ground substance with ribosomes, some in clusters, many on the membranes; and a membranous profile at distance d."""
    w = _width(blur, tilt)
    value = CYTOSOL + (4.0 * grain[0] - 3.0 * abs(grain[1])) * blur[3] + (5.0 * patch[0] + 3.0 * region[2]) * blur[4]
    many = min(0.9, max(0.2, 0.72 + 0.14 * patch[2] + 0.1 * region[1]))
    rough = sheet(d - 16.0, 24.0, 16.0) if kind == 0.0 else 0.0
    some = many + (1.1 - many) * rough
    if blur[5] < 1.0:
        value += (RIBOSOME - value) * 0.15 * some * (1 - blur[5])
    if blur[5] > 0.0:
        value += (RIBOSOME - value) * min(1.0, 0.57 * blur[5] * dots(z / DOTS, y / DOTS, x / DOTS, some, seed + 43))
    if d < w:
        body = (LUMEN if kind < 0.7 else 126.0) + 6.0 * grain[2] * blur[3]
        value += (body - value) * 0.9 * filled(d, w)
        value += (MEMBRANE + 8.0 - value) * 0.92 * dark * sheet(d, 10.5, w)
    return value


@njit(cache=True, nogil=True)
def _lysosome(d, blur, grain, patch, region, seed):
    """Dense and mottled, some with light vacuoles, some with a light halo."""
    value = LYSOSOME + 4.0 * (seed % 3.0) + 8.0 * grain[1] * blur[3] + (9.0 * patch[0] + 4.0 * region[1]) * blur[4]
    if seed % 4.0 == 0.0:
        value += 50.0 * min(1.0, max(0.0, patch[1] - 0.8)) * filled(d + 40.0, 40.0)
    elif seed % 4.0 == 1.0:
        value += (LUMEN - value) * 0.6 * sheet(d + 16.0, 18.0, blur[2])
    return value


@njit(cache=True, nogil=True)
def _chromatin(z, y, x, d, blur, nucleoli, lining, light, grain, patch, region):
    """Euchromatin with fuzzy clumps of heterochromatin, more of them near the envelope, an irregular rim under it with light hollows (`light`: their share
    of this place), and nucleoli."""
    clump = region[0] + 0.55 * patch[0] + 0.35 * grain[0] * blur[3] - 0.5 * min(1.0, max(0.0, -d / 240.0))
    thick = min(lining[3], max(10.0, lining[0] + lining[1] * region[1] + lining[2] * patch[1])) + 6.0 * grain[1]
    rim = filled(-d - 46.0 - thick, 80.0)
    dense = 1 - (1 - filled(1.05 - clump, 2.0)) * (1 - 0.9 * rim)
    fibres = (7.0 * grain[1] + 4.0 * grain[0] - 6.0 * abs(grain[2])) * blur[3] + 6.0 * patch[2] * blur[4]
    value = EUCHROMATIN + fibres + (HETEROCHROMATIN - EUCHROMATIN) * dense
    if light > 0:
        value += (HOLLOW + 0.8 * fibres - value) * light
    for m in range(len(nucleoli)):
        s = nucleoli[m]
        e = np.sqrt((z - s[0]) ** 2 + (y - s[1]) ** 2 + (x - s[2]) ** 2) - s[3] * (1 + 0.1 * region[1]) + 22.0 * patch[1] + 3.0 * grain[1]
        if e < 100.0:
            body = NUCLEOLUS + fibres + 6.0 * patch[0] + 20.0 * filled(1.2 - patch[2] - 0.3 * grain[0], 1.0)
            value += (body - value) * filled(e, max(blur[2], 60.0))
    return value


@njit(cache=True, nogil=True)
def _mitochondrion(d, arc, across, blur, grain, patch, region, label, seed):
    """Granular matrix with lamellar cristae, bent, tilted, of varying contrast; most reach in from one side only."""
    own = 10.0 * (bits(mix(key(label, 0, 0, seed + 73)), 0, 16) - 0.5)
    value = MATRIX + own + (9.0 * grain[0] - 6.0 * abs(grain[1])) * blur[3] + 4.0 * patch[2] * blur[4]
    if d < -24.0:
        period = 64.0
        s = (arc + 0.4 * across + 11.0 * region[0] + 9.0 * patch[1] + 31.0 * label) / period
        n = np.floor(s)
        h = mix(key(int(n), label, 0, seed + 71))
        gap = (s - n - 0.5 - 0.44 * (bits(h, 0, 10) - 0.5)) * period
        side = 1.0 if h & np.uint64(1 << 40) else -1.0
        there = filled((bits(h, 20, 10) - 0.74) * 420.0 - side * across - 25.0 * patch[0], 50.0)
        faint = min(1.0, max(0.4, 0.6 + 0.4 * bits(h, 30, 10) + 0.12 * patch[1]))
        value += (CRISTA - value) * faint * there * sheet(gap, 21.0 + 3.0 * patch[0], blur[0])
    return value
