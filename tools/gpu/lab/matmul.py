#!/usr/bin/env python3
"""Versions of a matmul by cooperative matrices of 16 x 16, f16 with sums in f32, with sizes as constants.

    tools/gpu/lab/matmul.py [--tiny] [--out matmul.json]

y = a b, where a is m x k and b is k x n (or its transpose n x k), both multiples of a tile. A workgroup makes a tile of y; in each
step along k it takes its parts of a and b to workgroup memory, and reads those of the next step meanwhile. Each subgroup keeps a part
of the tile's sums in matrices with names of their own. The first version of each size is a plain loop in f32, which the others are
held to.
"""

from dataclasses import dataclass

from versions import LANES, case, fits, write

SIZES = [(2048, 1280, 10240), (2048, 5120, 1280)]
"""m, k, n: of SDXL's feed-forward layers at 32 x 32."""
TINY = [(256, 128, 256)]
SIDE = 16
"""Of a matrix."""
PITCH = 5
"""Of a matrix of sums in workgroup memory, in vec4, so that its rows begin in different banks."""


@dataclass(frozen=True)
class Version:
    """A way to multiply."""

    rows: int = 128
    """Of a tile."""
    columns: int = 256
    step: int = 32
    """Of the inner axis, what lies in workgroup memory."""
    part: tuple = (64, 64)
    """Rows and columns of sums that a subgroup keeps."""
    packed: bool = False
    """Units of 16 bytes are read and written as one vec4<f32>, otherwise as two vec4<f16>."""
    buffers: int = 1
    """In workgroup memory: with two, a step is written while the one before is multiplied."""
    padding: int = 1
    """Units of 16 bytes after each row there."""
    grouped: int = 0
    """Rows of tiles that are made together, so that their operands stay in the cache."""
    aligned: bool = False
    """Loads of matrices say that they are aligned to 16 bytes."""
    transposed: bool = False
    """b is n x k."""

    def __str__(self):
        extras = {
            "two buffers": self.buffers == 2, "no padding": not self.padding, f"{self.grouped} rows of tiles together": self.grouped,
            "aligned loads": self.aligned, "b transposed": self.transposed,
        }  # fmt: skip
        tile, sums = f"{self.rows}x{self.columns}x{self.step}", f"sums {self.part[0]}x{self.part[1]}"
        named = [tile, sums, *(name for name, on in extras.items() if on)]
        return ("packed " if self.packed else "") + ", ".join(named)


def versions():
    """Those that were measured (h200.md), in that order."""
    yield Version()
    yield Version(aligned=True)
    for extras in (
        {}, {"aligned": True}, {"grouped": 8}, {"step": 16, "buffers": 2}, {"step": 16}, {"transposed": True},
        {"rows": 256, "columns": 128}, {"rows": 256}, {"rows": 256, "part": (64, 128)}, {"part": (64, 128)}, {"part": (64, 32)},
    ):  # fmt: skip
        yield Version(packed=True, **extras)
    for buffers in (1, 2):
        yield Version(columns=128, buffers=buffers)
    for extras in (
        {}, {"step": 64}, {"step": 16}, {"buffers": 2}, {"buffers": 2, "step": 16}, {"buffers": 2, "padding": 0},
        {"buffers": 2, "grouped": 8}, {"part": (64, 32)}, {"part": (64, 32), "buffers": 2}, {"part": (64, 32), "step": 64},
        {"part": (32, 64), "buffers": 2},
    ):  # fmt: skip
        yield Version(columns=128, packed=True, **extras)
    yield Version(columns=64, part=(64, 32), packed=True)
    yield Version(columns=64, part=(32, 32), buffers=2, packed=True)
    yield Version(rows=64, columns=128, part=(32, 64), buffers=2, packed=True)
    yield Version(rows=64, columns=64, part=(32, 32), buffers=2, packed=True)
    yield Version(rows=64, columns=64, part=(32, 32), step=64, packed=True)


class Tiled:
    """The text of a version for a size; lengths of rows are in units of eight f16."""

    def __init__(self, version, m, k, n):
        self.version, self.m, self.k, self.n = version, m, k, n
        part_rows, part_columns = version.part
        self.across = version.columns // part_columns
        self.subgroups = version.rows // part_rows * self.across
        self.threads = self.subgroups * LANES
        self.down_matrices, self.across_matrices = part_rows // SIDE, part_columns // SIDE
        # Elements of an array in workgroup memory that make a unit.
        self.unit = 1 if version.packed else 2
        self.left_row, self.left_rows = version.step // 8, version.rows
        self.right_row, self.right_rows = version.columns // 8, version.step
        if version.transposed:
            self.right_row, self.right_rows = version.step // 8, version.columns
        self.left_units = self.left_row * self.left_rows // self.threads
        self.right_units = self.right_row * self.right_rows // self.threads
        self.left_pitch, self.right_pitch = self.left_row + version.padding, self.right_row + version.padding
        self.sums = self.subgroups * SIDE * PITCH
        # Sums leave through the left operand's memory where both are of vec4<f32> and it is large enough.
        self.reused = version.packed and self.sums <= self.left_rows * self.left_pitch
        self.multiplications = 0
        divides = m % version.rows == n % version.columns == k % (version.step * version.buffers) == 0
        whole = all(self.threads % row == 0 and self.left_units and self.right_units for row in (self.left_row, self.right_row))
        if not (divides and whole):
            raise ValueError(f"{version} cannot make {m}x{k}x{n}")

    def shared_bytes(self):
        """Of workgroup memory."""
        tiles = self.left_rows * self.left_pitch + self.right_rows * self.right_pitch
        return 16 * (self.version.buffers * tiles + (0 if self.reused else self.sums))

    def declarations(self):
        unit, element, factor = ("vec4<f32>", "vec4<f32>", "f32") if self.version.packed else ("Eight", "vec4<f16>", "f16")
        yield "enable f16;"
        yield "enable wgpu_cooperative_matrix;"
        if not self.version.packed:
            yield "struct Eight { low: vec4<f16>, high: vec4<f16>, }"
        yield f"@group(0) @binding(0) var<storage, read> a: array<{unit}>;"
        yield f"@group(0) @binding(1) var<storage, read> b: array<{unit}>;"
        yield "@group(0) @binding(2) var<storage, read_write> y: array<vec4<f16>>;"
        yield f"alias Left = coop_mat16x16<{factor}, A>;"
        yield f"alias Right = coop_mat16x16<{factor}, B>;"
        yield "alias Sum = coop_mat16x16<f32, C>;"
        yield f"const K = {self.k}u;"
        for buffer in range(self.version.buffers):
            yield f"var<workgroup> left{buffer}: array<{element}, {self.left_rows * self.left_pitch * self.unit}>;"
            yield f"var<workgroup> right{buffer}: array<{element}, {self.right_rows * self.right_pitch * self.unit}>;"
        if not self.reused:
            yield f"var<workgroup> sums: array<vec4<f32>, {self.sums}>;"

    def places(self):
        version, width, height = self.version, self.n // self.version.columns, self.m // self.version.rows
        if version.grouped:
            yield f" let linear = group.x + group.y * {width}u; let together = {version.grouped * width}u;"
            yield f" let first = linear / together * {version.grouped}u; let rows = min({height}u - first, {version.grouped}u);"
            yield " let gy = first + (linear % together) % rows; let gx = (linear % together) / rows;"
        else:
            yield " let gx = group.x; let gy = group.y;"
        yield f" let subgroup = index / {LANES}u; let lane = index % {LANES}u;"
        yield f" let down = subgroup / {self.across}u * {version.part[0]}u; let across = subgroup % {self.across}u * {version.part[1]}u;"
        for i, j in self.matrices():
            yield f" var c{i}_{j} = Sum();"
        yield f" let left_row = index / {self.left_row}u; let left_column = index % {self.left_row}u;"
        yield f" let right_row = index / {self.right_row}u; let right_column = index % {self.right_row}u;"
        yield f" var a_at = (gy * {version.rows}u + left_row) * {self.k // 8}u + left_column;"
        if version.transposed:
            yield f" var b_at = (gx * {version.columns}u + right_row) * {self.k // 8}u + right_column;"
        else:
            yield f" var b_at = right_row * {self.n // 8}u + gx * {version.columns // 8}u + right_column;"
        unit = "vec4<f32>" if version.packed else "Eight"
        for side, units in (("l", self.left_units), ("r", self.right_units)):
            for i in range(units):
                yield f" var {side}{i} = {unit}();"

    def matrices(self):
        return [(i, j) for i in range(self.down_matrices) for j in range(self.across_matrices)]

    def advance(self):
        right = self.version.step * self.n // 8 if not self.version.transposed else self.version.step // 8
        yield f"  a_at += {self.version.step // 8}u; b_at += {right}u;"

    def fetch(self):
        """A step's units into registers."""
        b_row = self.k // 8 if self.version.transposed else self.n // 8
        for i in range(self.left_units):
            yield f"  l{i} = a[a_at + {i * self.threads // self.left_row * (self.k // 8)}u];"
        for i in range(self.right_units):
            yield f"  r{i} = b[b_at + {i * self.threads // self.right_row * b_row}u];"

    def stage(self, buffer):
        """Those from registers into workgroup memory."""
        for side, units, row, pitch in (
            ("left", self.left_units, self.left_row, self.left_pitch),
            ("right", self.right_units, self.right_row, self.right_pitch),
        ):
            for i in range(units):
                value, to = f"{side[0]}{i}", f"{side}{buffer}"
                at = f"({side}_row + {i * self.threads // row}u) * {pitch * self.unit}u + {side}_column * {self.unit}u"
                yield f"  {to}[{at}] = {value};" if self.version.packed else f"  {to}[{at}] = {value}.low; {to}[{at} + 1u] = {value}.high;"

    def multiply(self, buffer):
        """A step's products."""
        left, right, unit = self.left_pitch * self.unit, self.right_pitch * self.unit, self.unit
        for k in range(0, self.version.step, SIDE):
            turn, self.multiplications = self.multiplications, self.multiplications + 1
            for i in range(self.down_matrices):
                yield f"  let pa{turn}_{i} = (down + {SIDE * i}u) * {left}u + {k // 8 * unit}u;"
                yield f"  let a{turn}_{i} = coopLoadT<Left>(&left{buffer}[pa{turn}_{i}], {left}u);"
            for j in range(self.across_matrices):
                if self.version.transposed:
                    at, load = f"(across + {SIDE * j}u) * {right}u + {k // 8 * unit}u", "coopLoad"
                else:
                    at, load = f"{k * right}u + (across + {SIDE * j}u) / 8u * {unit}u", "coopLoadT"
                yield f"  let pb{turn}_{j} = {at};"
                yield f"  let b{turn}_{j} = {load}<Right>(&right{buffer}[pb{turn}_{j}], {right}u);"
            for i, j in self.matrices():
                yield f"  c{i}_{j} = coopMultiplyAdd(a{turn}_{i}, b{turn}_{j}, c{i}_{j});"

    def loop(self):
        step = self.version.step
        yield from self.fetch()
        if self.version.buffers == 1:
            yield f" for (var k = 0u; k < K; k += {step}u) {{"
            yield "  workgroupBarrier();"
            yield from self.stage(0)
            yield "  workgroupBarrier();"
            yield from self.advance()
            yield f"  if k + {step}u < K {{"
            yield from self.fetch()
            yield "  }"
            yield from self.multiply(0)
        else:
            yield from self.stage(0)
            yield "  workgroupBarrier();"
            yield f" for (var k = 0u; k < K; k += {2 * step}u) {{"
            yield from self.advance()
            yield from self.fetch()
            yield from self.multiply(0)
            yield from self.stage(1)
            yield "  workgroupBarrier();"
            yield from self.advance()
            yield f"  if k + {2 * step}u < K {{"
            yield from self.fetch()
            yield "  }"
            yield from self.multiply(1)
            yield from self.stage(0)
            yield "  workgroupBarrier();"
        yield " }"

    def results(self):
        """Sums to y, a matrix at a time."""
        sums = "left0" if self.reused else "sums"
        yield f" let area = subgroup * {SIDE * PITCH}u;"
        for i, j in self.matrices():
            yield "  workgroupBarrier();"
            yield f"  coopStoreT(c{i}_{j}, &{sums}[area], {PITCH}u);"
            yield "  workgroupBarrier();"
            row = f"gy * {self.version.rows}u + down + {SIDE * i}u + t / 4u"
            column = f"(gx * {self.version.columns}u + across + {SIDE * j}u) / 4u + t % 4u"
            yield f"  for (var t = lane; t < 64u; t += {LANES}u) {{"
            yield f"   y[({row}) * {self.n // 4}u + {column}] = vec4<f16>({sums}[area + t / 4u * {PITCH}u + t % 4u]);"
            yield "  }"

    def text(self):
        lines = [*self.declarations(), f"@compute @workgroup_size({self.threads})"]
        lines.append("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {")
        return "\n".join([*lines, *self.places(), *self.loop(), *self.results(), "}"])

    def case(self):
        version = self.version
        workgroups = [self.n // version.columns, self.m // version.rows, 1]
        flags = {"packed": version.packed, "aligned": version.aligned}
        return sized(str(version), self.text(), workgroups, (self.m, self.k, self.n), version.transposed, **flags)


def sized(name, wgsl, workgroups, size, transposed, **flags):
    """A case of m x k x n."""
    m, k, n = size
    work = f"{m}x{k}x{n}{', b transposed' if transposed else ''}"
    return case(f"{name}; {m}x{k}x{n}", work, wgsl, workgroups, [m * k, k * n], m * n, 2 * m * k * n, **flags)


def plain(m, k, n, transposed):
    """A loop, in f32."""
    b = f"x * {k}u + i" if transposed else f"i * {n}u + x"
    text = f"""enable f16;
@group(0) @binding(0) var<storage, read> a: array<f16>;
@group(0) @binding(1) var<storage, read> b: array<f16>;
@group(0) @binding(2) var<storage, read_write> y: array<f16>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {{
 let x = group.x * 64u + index;
 var sum = 0.0;
 for (var i = 0u; i < {k}u; i++) {{ sum += f32(a[group.y * {k}u + i]) * f32(b[{b}]); }}
 y[group.y * {n}u + x] = f16(sum);
}}"""
    return sized(f"plain loop{', b transposed' if transposed else ''}", text, [n // 64, m, 1], (m, k, n), transposed)


def cases(tiny):
    """All versions of every size, each behind what it is held to."""
    found = []
    for size in TINY if tiny else SIZES:
        found += [plain(*size, transposed) for transposed in (False, True)]
        made = [Tiled(version, *size) for version in versions()]
        found += [tiled.case() for tiled in made if fits(tiled.version, tiled.shared_bytes())]
    return found


if __name__ == "__main__":
    write(__doc__, "matmul.json", cases)
