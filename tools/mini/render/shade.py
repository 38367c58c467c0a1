"""Per-pixel materials and lights of the deferred renderer.

`resolve` turns what the z-buffer holds into albedo, normal, label and gloss; skin, brows, lips, stubble, irises and
clothes are painted here as functions of the point on the unmorphed head, so that they follow every morph and expression.
`light` then applies the lamps. All colours are linear RGB.
"""

import math

import numpy as np
from numba import njit

from .assets import BEARD, COLLAR, EARRING, EYE, FRAME, HAIR, SKIN, TEETH, TONGUE
from .hair import LINE_ANGLE, LINE_HEIGHT, beard_mask
from .raster import FAST, noise3, smooth

# Slots of the parameter vector `q`.
(SEED, FRECKLES, BLUSH, WRINKLES, LIPS, LIPSTICK, EYESHADOW, OIL, DARK, BROW_THICK, BROW_ARCH, BROW_TILT, BROW_IN, BROW_OUT,
 BROW_LIFT, BROW_DENSE, STUBBLE, BEARD_KIND, SCALP, LINE, RECEDE, CLOTH, NECK, LASHES, HORSESHOE, DETAIL, GAZE_X, GAZE_Y) = range(28)
# Rows of the colour table.
C_SKIN, C_HAIR, C_BROW, C_EYE, C_LIPSTICK, C_CLOTH, C_CLOTH2, C_FRAME = range(8)
# Cloth patterns.
PLAIN, KNIT, SHIRT, SUIT, HOODIE, STRIPES, COAT = range(7)
# Neck lines.
N_CREW, N_SHIRT, N_SUIT, N_HOOD, N_TURTLE = range(5)


@njit(**FAST)
def _cloth(x, y, z, q, col, out):
    """Paints clothes at a canonical point of the torso; returns the gloss."""
    kind = int(q[CLOTH])
    ax = abs(x)
    for k in range(3):
        out[k] = col[C_CLOTH, k]
    fold = 1 + 0.10 * noise3(x * 1.7 + 5, y * 1.3, z * 1.5) + 0.05 * noise3(x * 5, y * 3.5, z * 4)
    if kind == KNIT:
        rib = 0.5 + 0.5 * math.sin(math.atan2(x, z) * 110)
        row = 0.5 + 0.5 * math.sin(y * 70 + 1.5 * math.sin(math.atan2(x, z) * 110))
        fold *= 0.80 + 0.16 * rib + 0.12 * row
    elif kind == STRIPES:
        band = math.sin((y + 0.08 * ax) * 24)
        if band > 0.1:
            for k in range(3):
                out[k] = col[C_CLOTH2, k]
    elif kind == SHIRT and z > 0.3:
        placket = smooth(0.10, 0.085, ax)
        fold *= 1 - 0.10 * placket * smooth(0.075, 0.09, ax)
        by = (y * 2.2) % 1.0 - 0.5
        if ax * ax + (by / 2.2) ** 2 < 0.0011:
            fold *= 0.45
    elif kind == COAT and z > 0.3:
        if ax < 0.022:
            fold *= 0.45
    elif kind == SUIT and z > 0.2:
        opening = (y - 4.1) * 0.36  # half width of the shirt triangle
        if ax < opening:
            tie = 0.075 + 0.07 * smooth(5.5, 4.2, y)
            if ax < tie:
                for k in range(3):
                    out[k] = col[C_CLOTH2, k]
                fold *= 0.85 + 0.3 * (0.5 + 0.5 * math.sin((x + y) * 60))
            else:
                for k in range(3):
                    out[k] = 0.72
        else:
            edge = ax - opening
            if edge < 0.30 * smooth(4.0, 4.9, y) + 0.04:
                fold *= 1.45
                if edge > 0.30 * smooth(4.0, 4.9, y) + 0.01:
                    fold *= 0.4
            if edge < 0.02:
                fold *= 0.5
    elif kind == HOODIE and z > 0.3:
        if y > 4.75 and abs(ax - 0.20) < 0.022:
            for k in range(3):
                out[k] = 0.7
    for k in range(3):
        out[k] *= fold
    if kind == COAT:
        return 0.5
    return 0.05


@njit(**FAST)
def _below_neckline(x, y, z, q):
    kind = int(q[NECK])
    plane = 5.80 - 0.25 * (z - 0.2) - y
    if kind == N_SHIRT or kind == N_SUIT:
        if z > 0.4:
            plane -= max(0.0, 0.20 - abs(x)) * (1.5 if kind == N_SHIRT else 0.2)
    elif kind == N_TURTLE:
        plane += 0.25
    return plane


@njit(**FAST)
def _skin(x, y, z, at, q, col, moles, out):
    """Paints skin; returns the label and writes gloss into out[3]. `at` holds lips, inside of the mouth, ear."""
    ax = abs(x)
    s = q[SEED]
    d = q[DETAIL]
    r, g, b = col[C_SKIN, 0], col[C_SKIN, 1], col[C_SKIN, 2]
    n1 = noise3(x * 2.3 + s, y * 2.3, z * 2.3)
    n2 = noise3(x * 9 + s, y * 9, z * 9)
    n3 = noise3(x * 34 + s, y * 34, z * 34)
    tone = 1 + 0.05 * n1 + 0.035 * n2 + 0.05 * n3 * d
    red = q[BLUSH] * (0.75 * math.exp(-((ax - 0.43) ** 2 / 0.035 + (y - 6.98) ** 2 / 0.045)) + 0.55 * math.exp(-(x * x / 0.022 + (y - 6.94) ** 2 / 0.02)))
    if z < 1.0:
        red *= smooth(0.6, 1.0, z)
    red += 0.5 * at[2] + 0.10 * n2 + 0.25 * math.exp(-(x * x + (y - 6.3) ** 2) / 0.03)
    # Zones of a face: forehead lighter and yellower, lower face greyer.
    r *= tone * (1 + 0.05 * red)
    g *= tone * (1 - 0.20 * red)
    b *= tone * (1 - 0.17 * red)
    gloss = q[OIL] * (0.55 + 0.6 * math.exp(-(x * x / 0.05 + (y - 7.1) ** 2 / 0.5)) + 0.10 * n3)
    label = 1
    # Shade under the eyes and on the lids.
    if z > 0.7:
        ex = ax - 0.31
        under = math.exp(-(ex * ex / 0.030 + (y - 7.13) ** 2 / 0.0035)) * (0.18 + 0.12 * q[WRINKLES])
        lid = math.exp(-(ex * ex / 0.030 + (y - 7.37) ** 2 / 0.0035))
        r *= 1 - 0.7 * under - 0.10 * lid
        g *= 1 - under - 0.17 * lid
        b *= 1 - 0.85 * under - 0.15 * lid
        if q[EYESHADOW] > 0:
            e = q[EYESHADOW] * lid * 0.6
            r, g, b = r * (1 - e) + 0.10 * e, g * (1 - e) + 0.045 * e, b * (1 - e) + 0.075 * e
        # Rim of the eyelids, where the lashes grow.
        rim = (ex * ex / 0.0200 + (y - 7.288) ** 2 / 0.0042)
        line = math.exp(-((rim - 1.0) ** 2) / 0.06) * q[LASHES] * (1.0 if y > 7.288 else 0.45) * 0.8
        if z > 1.15:
            r, g, b = r * (1 - line), g * (1 - line), b * (1 - line)
        if q[WRINKLES] > 0:
            w = q[WRINKLES]
            fore = smooth(7.58, 7.68, y) * smooth(8.0, 7.9, y) * smooth(0.55, 0.3, ax) * max(0.0, math.sin(y * 62 + 2.0 * noise3(x * 2.5 + s, y * 2, 1.0)) - 0.45)
            fold = math.exp(-((ax - 0.20 - (6.93 - y) * 0.42) ** 2) / 0.0009) * smooth(6.50, 6.6, y) * smooth(6.97, 6.9, y)
            crow = smooth(0.50, 0.54, ax) * smooth(0.68, 0.6, ax) * smooth(7.12, 7.2, y) * smooth(7.45, 7.38, y) * max(0.0, math.sin((y - 7.28) * 70 + (ax - 0.5) * 12) - 0.2)
            k = w * (0.30 * fore + 0.26 * fold + 0.25 * crow)
            r, g, b = r * (1 - 0.8 * k), g * (1 - k), b * (1 - k)
        else:
            fold = 0.08 * math.exp(-((ax - 0.20 - (6.93 - y) * 0.42) ** 2) / 0.0012) * smooth(6.60, 6.7, y) * smooth(6.97, 6.9, y)
            r, g, b = r * (1 - 0.7 * fold), g * (1 - fold), b * (1 - fold)
        if q[FRECKLES] > 0:
            f = noise3(x * 21 + s, y * 21, z * 21) + 0.4 * noise3(x * 47, y * 47 + s, z * 47)
            zone = math.exp(-((ax - 0.28) ** 2 / 0.06 + (y - 7.02) ** 2 / 0.05)) + 0.35 * smooth(7.5, 7.7, y)
            f = smooth(0.35, 0.62, f) * q[FRECKLES] * min(1.0, zone) * 0.62
            r, g, b = r * (1 - 0.45 * f), g * (1 - 0.62 * f), b * (1 - 0.72 * f)
        for m in range(moles.shape[0]):
            dd = (x - moles[m, 0]) ** 2 + (y - moles[m, 1]) ** 2
            k = smooth(1.5, 0.7, dd / (moles[m, 2] ** 2)) * 0.75
            r, g, b = r * (1 - k), g * (1 - k), b * (1 - k)
        # Brows.
        t = (ax - q[BROW_IN]) / (q[BROW_OUT] - q[BROW_IN])
        if -0.1 < t < 1.1 and z > 0.8:
            arch = q[BROW_ARCH] * (1 - (2 * t - 1.25) ** 2 * 0.64)
            by = 7.495 + q[BROW_LIFT] + arch + q[BROW_TILT] * (t - 0.5) * 2
            half = q[BROW_THICK] * (1.05 - 0.62 * t * t)
            stroke = 0.5 * noise3(x * 16 + y * 22 + s, (y - x * 0.9) * 70, s)
            k = smooth(1.15, 0.55, abs(y - by) / half + stroke * 0.45) * smooth(-0.06, 0.10, t) * smooth(1.06, 0.90, t)
            k *= q[BROW_DENSE] * (0.85 + 0.3 * stroke)
            k = min(1.0, max(0.0, k)) * 0.93
            r, g, b = r * (1 - k) + col[C_BROW, 0] * k, g * (1 - k) + col[C_BROW, 1] * k, b * (1 - k) + col[C_BROW, 2] * k
            gloss *= 1 - 0.8 * k
            if k > 0.4:
                label = 2 if x < 0 else 3
    if q[STUBBLE] > 0:
        m = beard_mask(x, y, z, int(q[BEARD_KIND])) * q[STUBBLE]
        if m > 0.01:
            k = m * (0.62 + 0.38 * noise3(x * 60, y * 45, z * 60))
            k = min(1.0, max(0.0, k))
            hr, hg, hb = col[C_BROW, 0] * 0.8 + 0.012, col[C_BROW, 1] * 0.8 + 0.012, col[C_BROW, 2] * 0.8 + 0.014
            r, g, b = r * (1 - k) + hr * k, g * (1 - k) + hg * k, b * (1 - k) + hb * k
            gloss *= 1 - 0.7 * k
    if at[0] > 0.02 and z > 1.2:
        k = smooth(0.12, 0.55, at[0])
        lr, lg, lb = r * 0.90, g * (0.66 - 0.16 * q[LIPS]), b * (0.72 - 0.16 * q[LIPS])
        p = q[LIPSTICK] * 0.85
        lr, lg, lb = lr * (1 - p) + col[C_LIPSTICK, 0] * p, lg * (1 - p) + col[C_LIPSTICK, 1] * p, lb * (1 - p) + col[C_LIPSTICK, 2] * p
        crease = 1 + 0.10 * noise3(x * 60, y * 10, s) * d
        r, g, b = r * (1 - k) + lr * k * crease, g * (1 - k) + lg * k * crease, b * (1 - k) + lb * k * crease
        gloss = gloss * (1 - k) + k * (1.3 + 1.2 * q[LIPSTICK])
        if at[0] > 0.4:
            label = 12 if y > 6.606 else 13
    if label == 1:
        if at[2] > 0.5 and z < 0.95:
            label = 7 if x < 0 else 8
        elif y < 6.10 + 0.16 * (1.35 - z) and z < 1.42:
            label = 14
        elif z > 1.25 and 6.83 < y < 7.32 and ax < 0.065 + (7.32 - y) * 0.34:
            label = 10
        elif z < 0.45 and y < 6.75:
            label = 14
    if at[1] > 0.5 and z < 1.47:
        r, g, b = 0.16, 0.028, 0.026
        gloss = 0.5
        label = 11
    # Scalp under the hair.
    if q[SCALP] > 0 and at[2] < 0.4:
        angle = math.atan2(ax, z - 0.55)
        h = _line(angle)
        h += q[LINE] * min(1.0, max(0.0, 1 - angle / 1.1)) + q[RECEDE] * math.exp(-(((angle - 0.62) / 0.25) ** 2))
        k = smooth(-0.05, 0.07, y - h + 0.03 * n2 + 0.03 * n3) * q[SCALP]
        if q[HORSESHOE] > 0:
            k *= smooth(7.86, 7.7, y + 0.05 * n2) * smooth(1.0, 0.9, z)
        if k > 0.01:
            k2 = k * (0.9 + 0.1 * n3)
            r, g, b = r * (1 - k2) + col[C_HAIR, 0] * 0.6 * k2, g * (1 - k2) + col[C_HAIR, 1] * 0.6 * k2, b * (1 - k2) + col[C_HAIR, 2] * 0.6 * k2
            gloss *= 1 - k
            if k > 0.5:
                label = 17
    out[0], out[1], out[2], out[3] = r, g, b, gloss
    return label


@njit(**FAST)
def _line(angle):
    """Height of the hairline at an angle from the front."""
    for i in range(11):
        if angle < LINE_ANGLE[i + 1]:
            t = (angle - LINE_ANGLE[i]) / (LINE_ANGLE[i + 1] - LINE_ANGLE[i])
            return LINE_HEIGHT[i] * (1 - t) + LINE_HEIGHT[i + 1] * t
    return LINE_HEIGHT[11]


@njit(**FAST)
def _eye(dx, dy, dz, q, col, out):
    """Paints the eyeball for a direction in the head's frame; out[3] is the gloss."""
    n = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
    dx, dy, dz = dx / n, dy / n, dz / n
    gx, gy = q[GAZE_X], q[GAZE_Y]
    gz = math.sqrt(max(0.05, 1 - gx * gx - gy * gy))
    c = dx * gx + dy * gy + dz * gz
    a = math.acos(min(1.0, max(-1.0, c)))
    iris = 0.56
    phi = math.atan2(dy - gy, dx - gx)
    white = 0.62 * (1 - 0.28 * smooth(0.55, 1.2, a))
    out[0], out[1], out[2] = white, white * 0.93, white * 0.90
    if a < iris + 0.06:
        t = a / iris
        streak = 0.75 + 0.35 * noise3(math.cos(phi) * 6, math.sin(phi) * 6, 3.0) + 0.2 * noise3(math.cos(phi) * 15, math.sin(phi) * 15, t * 2)
        glow = (0.65 + 0.9 * t * t) * streak * (1 - 0.75 * smooth(0.80, 1.0, t))
        k = smooth(iris + 0.06, iris - 0.02, a)
        for i in range(3):
            out[i] = out[i] * (1 - k) + col[C_EYE, i] * glow * 1.35 * k
        p = smooth(0.25, 0.21, a)
        for i in range(3):
            out[i] = out[i] * (1 - p) + 0.004 * p
    out[3] = 3.0


@njit(**FAST)
def resolve(ident, bary, tri, mat, nrm, canon, attr, q, col, moles, albedo, normal, label, gloss, material, tangent, shade):
    """Fills the deferred buffers from the z-buffer."""
    h, w = ident.shape
    out = np.zeros(4, np.float64)
    at = np.zeros(4, np.float64)
    for y in range(h):
        for x in range(w):
            t = ident[y, x]
            if t < 0:
                material[y, x] = -1
                continue
            i, j, k = tri[t, 0], tri[t, 1], tri[t, 2]
            b0, b1 = bary[y, x, 0], bary[y, x, 1]
            b2 = 1 - b0 - b1
            nx = b0 * nrm[i, 0] + b1 * nrm[j, 0] + b2 * nrm[k, 0]
            ny = b0 * nrm[i, 1] + b1 * nrm[j, 1] + b2 * nrm[k, 1]
            nz = b0 * nrm[i, 2] + b1 * nrm[j, 2] + b2 * nrm[k, 2]
            m = mat[t]
            cx = b0 * canon[i, 0] + b1 * canon[j, 0] + b2 * canon[k, 0]
            cy = b0 * canon[i, 1] + b1 * canon[j, 1] + b2 * canon[k, 1]
            cz = b0 * canon[i, 2] + b1 * canon[j, 2] + b2 * canon[k, 2]
            for a in range(4):
                at[a] = b0 * attr[i, a] + b1 * attr[j, a] + b2 * attr[k, a]
            shade[y, x] = 1.0
            if m == SKIN:
                below = _below_neckline(cx, cy, cz, q) if cy < 6.3 else -1.0
                if below > 0:
                    g = _cloth(cx, cy, cz, q, col, out)
                    gloss[y, x] = g
                    label[y, x] = 16
                    m = COLLAR
                    shade[y, x] = 0.55 + 0.45 * smooth(0.0, 0.12, below)
                else:
                    label[y, x] = _skin(cx, cy, cz, at, q, col, moles, out)
                    gloss[y, x] = out[3]
                    if label[y, x] == 11:
                        m = TONGUE
                        shade[y, x] = smooth(0.9, 1.5, cz)
                    if label[y, x] != 17 and q[DETAIL] > 0.5:
                        bump = 0.055 * q[DETAIL]
                        nx += bump * noise3(cx * 52, cy * 52, cz * 52 + 9)
                        ny += bump * noise3(cx * 52 + 31, cy * 52, cz * 52)
            elif m == EYE:
                _eye(cx, cy, cz, q, col, out)
                gloss[y, x] = out[3]
                label[y, x] = 4 if at[0] < 1.5 else 5
                shade[y, x] = 0.55 + 0.45 * smooth(0.33, 0.02, cy / (abs(cz) + 0.2))
            elif m == TEETH:
                out[0], out[1], out[2] = 0.62, 0.56, 0.46
                gap = abs(math.sin(cx * 24))
                dim = (0.72 + 0.28 * smooth(0.0, 0.25, gap)) * smooth(0.75, 1.40, cz)
                for a in range(3):
                    out[a] *= dim
                gloss[y, x] = 1.0
                label[y, x] = 11
            elif m == TONGUE:
                out[0], out[1], out[2] = 0.30, 0.085, 0.085
                gloss[y, x] = 0.8
                label[y, x] = 11
                shade[y, x] = 0.6
            elif m == HAIR or m == BEARD:
                c = C_HAIR if m == HAIR else C_BROW
                streak = noise3(cx * 3.3 + cz * 91.0, cz * 57.0, cy * 0.8)
                tone = (0.62 + 0.75 * cz) * (1 + 0.28 * streak)
                for a in range(3):
                    out[a] = col[c, a] * tone
                # Ends bleach a little, more in the red.
                out[0] *= 1 + 0.18 * cy
                out[1] *= 1 + 0.12 * cy
                gloss[y, x] = 1.0
                label[y, x] = 17 if m == HAIR else 1
                shade[y, x] = at[3]
                tangent[y, x, 0], tangent[y, x, 1], tangent[y, x, 2] = at[0], at[1], at[2]
            elif m == FRAME:
                for a in range(3):
                    out[a] = col[C_FRAME, a]
                gloss[y, x] = 2.0
                label[y, x] = 6
            elif m == EARRING:
                out[0], out[1], out[2] = 0.75, 0.60, 0.25
                gloss[y, x] = 3.0
                label[y, x] = 9
            else:
                for a in range(3):
                    out[a] = col[C_CLOTH, a]
                kind = int(q[CLOTH])
                dim = 1.0
                if kind == KNIT:
                    dim = 0.78 + 0.30 * (0.5 + 0.5 * math.sin(cx * 70))
                elif kind == SUIT:
                    out[0], out[1], out[2] = 0.74, 0.74, 0.74
                elif kind == STRIPES:
                    dim = 0.9
                dim *= 1 + 0.06 * noise3(cx * 4, cy * 4, 2.0)
                for a in range(3):
                    out[a] *= dim
                gloss[y, x] = 0.5 if kind == COAT else 0.05
                label[y, x] = 16
            n = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
            if nz < 0 and m != SKIN:  # thin parts are seen from both sides
                nx, ny, nz = -nx, -ny, -nz
            normal[y, x, 0], normal[y, x, 1], normal[y, x, 2] = nx / n, ny / n, nz / n
            albedo[y, x, 0], albedo[y, x, 1], albedo[y, x, 2] = out[0], out[1], out[2]
            material[y, x] = m


@njit(**FAST)
def key_light(material, normal, points, to_light, smap, sm_basis, sm_scale, sm_res, wrap, key, shadow):
    """Shadowed cosine of the key light per pixel; `points` are positions, `sm_basis` the light's axes."""
    h, w = material.shape
    for y in range(h):
        for x in range(w):
            m = material[y, x]
            if m < 0:
                continue
            c = normal[y, x, 0] * to_light[0] + normal[y, x, 1] * to_light[1] + normal[y, x, 2] * to_light[2]
            wr = wrap if (m == SKIN or m == HAIR or m == BEARD) else 0.05
            c = (c + wr) / (1 + wr)
            if c < 0:
                c = 0.0
            px = points[y, x, 0]
            py = points[y, x, 1]
            pz = points[y, x, 2]
            sx = (px * sm_basis[0, 0] + py * sm_basis[0, 1] + pz * sm_basis[0, 2]) * sm_scale[0] + sm_scale[1]
            sy = (px * sm_basis[1, 0] + py * sm_basis[1, 1] + pz * sm_basis[1, 2]) * sm_scale[0] + sm_scale[2]
            sz = px * sm_basis[2, 0] + py * sm_basis[2, 1] + pz * sm_basis[2, 2]
            bias = 0.045 if m != HAIR else 0.09
            lit = 0.0
            count = 0.0
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    ix, iy = int(sx + dx * 0.9), int(sy + dy * 0.9)
                    if 0 <= ix < sm_res and 0 <= iy < sm_res:
                        z = smap[iy, ix] - sz
                        lit += 1 - smooth(bias, bias + 0.05, z)
                    else:
                        lit += 1.0
                    count += 1.0
            shadow[y, x] = lit / count
            key[y, x] = c


@njit(**FAST)
def combine(material, normal, albedo, gloss, tangent, shade, occlusion, key, shadow, scatter, lamps, to_light, rim_dir, view, label, colour):
    """Final linear colour. `lamps` rows: key, sky, ground, rim; `scatter` is the blurred key irradiance of skin [h,w,3]."""
    h, w = material.shape
    hx, hy, hz = to_light[0] + view[0], to_light[1] + view[1], to_light[2] + view[2]
    n = math.sqrt(hx * hx + hy * hy + hz * hz)
    hx, hy, hz = hx / n, hy / n, hz / n
    for y in range(h):
        for x in range(w):
            m = material[y, x]
            if m < 0:
                continue
            nx, ny, nz = normal[y, x, 0], normal[y, x, 1], normal[y, x, 2]
            ao = occlusion[y, x]
            up = 0.5 + 0.5 * ny
            rim = max(0.0, nx * rim_dir[0] + ny * rim_dir[1] + nz * rim_dir[2])
            nv = max(0.0, nx * view[0] + ny * view[1] + nz * view[2])
            edge = (1 - nv) ** 3
            nh = max(0.0, nx * hx + ny * hy + nz * hz)
            s = shadow[y, x]
            kd = key[y, x] * s
            spec = 0.0
            if m == SKIN:
                fres = 0.028 + 0.45 * edge
                spec = gloss[y, x] * s * (0.75 * nh ** 34 + 0.32 * nh ** 10) * (0.10 + fres) * min(1.0, key[y, x] * 4)
            elif m == EYE:
                spec = 1.6 * nh ** 320 + 0.02 * up * nv
            elif m == TEETH or m == TONGUE:
                spec = gloss[y, x] * 0.3 * nh ** 40 * s
            elif m == HAIR or m == BEARD:
                tx, ty, tz = tangent[y, x, 0], tangent[y, x, 1], tangent[y, x, 2]
                th = tx * hx + ty * hy + tz * hz
                a = math.sqrt(max(0.0, 1 - th * th))
                th2 = th + 0.14
                a2 = math.sqrt(max(0.0, 1 - th2 * th2))
                spec = (0.10 * a ** 60 + 0.06 * a2 ** 14) * s * min(1.0, key[y, x] * 2.5) * shade[y, x]
                if m == BEARD:
                    spec *= 0.3
            else:
                spec = gloss[y, x] * 0.25 * nh ** 30 * s
            sh = shade[y, x]
            for c in range(3):
                sky = lamps[1, c] * up + lamps[2, c] * (1 - up)
                if m == SKIN:
                    kk = scatter[y, x, c]
                    # Occlusion in skin is warmer: light that enters elsewhere comes out red.
                    o = ao ** (0.8 if c == 0 else 1.15)
                else:
                    kk = kd
                    o = ao
                e = lamps[0, c] * kk + sky * o + lamps[3, c] * (rim * 0.6 + 0.5 * edge * rim)
                v = albedo[y, x, c] * e * sh
                if m == HAIR:
                    v += (0.4 * albedo[y, x, c] * 3 + 0.35) * spec * lamps[0, c] * 1.2 + lamps[3, c] * rim * edge * 0.05
                else:
                    v += spec * lamps[0, c] + (sky * 0.035 * edge * ao if m == SKIN else 0.0)
                if m == EYE:
                    v += 0.01 * sky * nv
                colour[y, x, c] = v
