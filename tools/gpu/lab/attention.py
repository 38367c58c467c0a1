#!/usr/bin/env python3
"""Versions of attention by cooperative matrices of 16 x 16, f16 with sums in f32, heads of 64, with sizes as constants.

    tools/gpu/lab/attention.py [--tiny] [--out attention.json]

y = softmax(q k' / 8) v, as flash attention does: each subgroup keeps some rows of queries and their results in matrices with names
of their own, and a workgroup takes keys and values to workgroup memory, reading the next step's meanwhile. Of 32 keys at a time the
scores go through workgroup memory, where lanes make weights of them. Results are only scaled anew where a row's sum of weights would
leave f16's range; what that needs stays in a row's ninth vec4 of scores: (largest score, sum of weights, factor for results, 0). The
first version of all but the large size is a plain loop in f32, which the others are held to.
"""

from dataclasses import dataclass

from versions import LANES, case, fits, write

SIZES = [(2, 4096, 10), (2, 1024, 20)]
"""Batch, queries and keys, heads: SDXL's self-attention with both guidance passes."""
PLAIN = 1024
"""The most queries of a size that the plain loop is run on."""
HEAD = 64
"""Of a head: its numbers."""
ROW = HEAD // 8
"""The same in units of eight f16."""
BLOCK = 32
"""Keys whose scores are in workgroup memory at once."""
SIDE = 16
"""Of a matrix."""
KEY_PITCH = 18
"""Of keys and values in workgroup memory, in vec4<f16>."""
WEIGHT_PITCH = 10
"""Of weights there, in vec4<f16>."""
KEPT = 8
"""The vec4 of a row of scores that holds what is kept of it."""


@dataclass(frozen=True)
class Version:
    """A way to attend."""

    keys: int = 64
    """In workgroup memory at once."""
    subgroups: int = 4
    rows: int = 32
    """Of queries, for each subgroup: 16 or 32."""
    ahead: bool = False
    """The next block's scores are multiplied before this one's weights are made."""
    padding: int = 8
    """f32 after each row of 32 scores."""
    swapped: bool = True
    """In some rows neighbouring vec4 of scores are read in the other order, so that lanes meet in fewer banks."""
    softmax: bool = True
    """Without, weights are scores: no attention, but what matrices alone take."""
    barriers: bool = True
    """Without, workgroups do not wait for their keys: a wrong result, but what waiting takes."""

    def __str__(self):
        extras = {"scores ahead": self.ahead, f"scores padded by {self.padding}": self.padding != 8, "not swapped": not self.swapped}
        extras |= {"WRONG without softmax": not self.softmax, "WRONG without barriers": not self.barriers}
        return ", ".join([f"{self.keys} keys, {self.subgroups} x {self.rows} rows", *(name for name, on in extras.items() if on)])


def versions():
    """Those that were measured (h200.md), in that order."""
    narrow = {"rows": 16, "subgroups": 8}
    for choice in (
        {}, {"ahead": True}, {"keys": 32}, {"subgroups": 2}, {"subgroups": 2, "keys": 32},
        narrow, narrow | {"ahead": True}, narrow | {"keys": 32}, {"rows": 16}, {"rows": 16, "ahead": True},
        {"padding": 4, "swapped": False}, {"swapped": False}, {"softmax": False}, {"barriers": False},
    ):  # fmt: skip
        yield Version(**choice)


def largest(values):
    """WGSL for the largest of some vectors, a component at a time."""
    first, *others = values
    for value in others:
        first = f"max({first}, {value})"
    return first


class Flash:
    """The text of a version for a size."""

    def __init__(self, version, batch, length, heads):
        self.version, self.batch, self.length, self.heads = version, batch, length, heads
        self.threads = version.subgroups * LANES
        self.queries = version.rows * version.subgroups
        # Of 16 x 16, above one another.
        self.down = version.rows // SIDE
        self.lanes_a_row = LANES // version.rows
        self.vectors = BLOCK // self.lanes_a_row // 4
        self.score_pitch = (BLOCK + version.padding) // 4
        self.fetches = version.keys * ROW // self.threads
        # Of a token with all heads, in units of eight f16.
        self.token = heads * ROW
        if length % version.keys or length % self.queries or version.keys * ROW % self.threads:
            raise ValueError(f"{version} cannot attend to {length}")

    def shared_bytes(self):
        """Of workgroup memory."""
        return 2 * self.version.keys * KEY_PITCH * 8 + self.queries * (self.score_pitch * 16 + WEIGHT_PITCH * 8)

    def declarations(self):
        keys = self.version.keys * KEY_PITCH
        yield "enable f16;"
        yield "enable wgpu_cooperative_matrix;"
        yield "struct Eight { low: vec4<f16>, high: vec4<f16>, }"
        yield "@group(0) @binding(0) var<storage, read> q: array<Eight>;"
        yield "@group(0) @binding(1) var<storage, read> kv: array<Eight>;"
        yield "@group(0) @binding(2) var<storage, read_write> y: array<vec4<f16>>;"
        yield "alias Left = coop_mat16x16<f16, A>;"
        yield "alias Right = coop_mat16x16<f16, B>;"
        yield "alias Sum = coop_mat16x16<f32, C>;"
        yield f"var<workgroup> keys: array<vec4<f16>, {keys}>;"
        yield f"var<workgroup> values: array<vec4<f16>, {keys}>;"
        yield f"var<workgroup> weights: array<vec4<f16>, {self.queries * WEIGHT_PITCH}>;"
        yield f"var<workgroup> scores: array<vec4<f32>, {self.queries * self.score_pitch}>;"

    def across_row(self, name, combined):
        """Combines what the lanes of a row have, where there are two of them."""
        return [] if self.lanes_a_row == 1 else [f" {name} = {combined.format(f'subgroupShuffleXor({name}, 1u)')};"]

    def read_scores(self, name):
        return [f" let {name}{j} = scores[{'odd' if j % 2 else 'even'} + {j // 2 * 2}u];" for j in range(self.vectors)]

    def write_weights(self, name, value):
        for j in range(self.vectors):
            to = f"weights[{'to_odd' if j % 2 else 'to_even'} + {j // 2 * 2}u]"
            yield f" let {name}{j} = {value.format(j)}; {to} = vec4<f16>({name}{j}); sums += {name}{j};"

    def highest(self, name):
        yield f" let m = {largest([f'{name}{j}' for j in range(self.vectors)])};"
        yield " var high = scale * max(max(m.x, m.y), max(m.z, m.w));"
        yield from self.across_row("high", "max(high, {})")
        yield " top = max(top, high);"

    def soften(self):
        """A function that makes weights of a row's scores, and says whether results must be scaled."""
        swap = "0u"
        if self.version.swapped:
            swap = "((row >> 2u) ^ (row >> 3u)) & 1u" if self.down == 2 else "(row >> 1u) & 1u"
        kept = f"scores[row * {self.score_pitch}u + {KEPT}u]"
        yield "fn soften(row: u32, half: u32, first: u32) -> bool {"
        yield f" let swap = {swap};"
        yield f" let at = row * {self.score_pitch}u + half * {self.vectors}u; let to = row * {WEIGHT_PITCH}u + half * {self.vectors}u;"
        yield " let even = at + swap; let odd = at + 1u - swap; let to_even = to + swap; let to_odd = to + 1u - swap;"
        yield from self.read_scores("s")
        if not self.version.softmax:
            for j in range(self.vectors):
                yield f" weights[{'to_odd' if j % 2 else 'to_even'} + {j // 2 * 2}u] = vec4<f16>(s{j});"
            yield " return false;"
            yield "}"
            return
        yield f" let before = {kept}; var top = before.x; let scale = 0.125 * 1.4426950408889634;"
        yield " if first == 0u {"
        yield from self.highest("s")
        yield " }"
        yield " var sums = vec4<f32>();"
        yield from self.write_weights("w", "exp2(fma(s{}, vec4(scale), vec4(-top)))")
        yield " var sum = dot(sums, vec4(1.0));"
        yield from self.across_row("sum", "sum + {}")
        yield " let grown = sum > 4096.0;"
        yield " if grown {"
        yield from self.read_scores("r")
        yield from self.highest("r")
        yield " sums = vec4<f32>();"
        yield from self.write_weights("v", "exp2(fma(r{}, vec4(scale), vec4(-top)))")
        yield " sum = dot(sums, vec4(1.0));"
        yield from self.across_row("sum", "sum + {}")
        yield " }"
        yield " let factor = exp2(before.x - top);"
        yield f" if half == 0u {{ {kept} = vec4(top, before.y * factor + sum, factor, 0.0); }}"
        yield " return grown;"
        yield "}"

    def places(self):
        lanes = self.lanes_a_row
        yield f" let subgroup = index / {LANES}u; let lane = index % {LANES}u; let area = subgroup * {self.version.rows}u;"
        yield f" let row = area + lane / {lanes}u; let half = lane % {lanes}u; let start = group.x * {self.queries}u + area;"
        yield f" let q_at = (group.z * {self.length}u + start) * {self.token}u + group.y * {ROW}u;"
        yield f" var k_at = (group.z * {self.length}u + index / {ROW}u) * {self.token}u + group.y * {ROW}u + index % {ROW}u;"
        yield f" let to = index / {ROW}u * {KEY_PITCH}u + index % {ROW}u * 2u;"

    def fetch(self, declared=""):
        """A step's keys and values into registers; values lie behind all keys."""
        for c in range(self.fetches):
            key = c * self.threads // ROW * self.token
            yield f" {declared}k{c} = kv[k_at + {key}u]; {declared}v{c} = kv[k_at + {self.batch * self.length * self.token + key}u];"

    def stage(self):
        """Those from registers into workgroup memory."""
        barrier = ["  workgroupBarrier();"] if self.version.barriers else []
        yield from barrier
        for c in range(self.fetches):
            at = c * self.threads // ROW * KEY_PITCH
            yield f"  keys[to + {at}u] = k{c}.low; keys[to + {at + 1}u] = k{c}.high;"
            yield f"  values[to + {at}u] = v{c}.low; values[to + {at + 1}u] = v{c}.high;"
        yield from barrier

    def queries_to_matrices(self):
        """Through the memory of weights, half of a head at a time."""
        yield f" scores[row * {self.score_pitch}u + {KEPT}u] = vec4(-1.4e30, 0.0, 0.0, 0.0);"
        for half in range(2):
            yield " subgroupBarrier();"
            yield f" for (var t = lane; t < {self.version.rows * 4}u; t += {LANES}u) {{"
            yield f"  let e = q[q_at + t / 4u * {self.token}u + {4 * half}u + t % 4u];"
            yield f"  let at = (area + t / 4u) * {WEIGHT_PITCH}u + t % 4u * 2u; weights[at] = e.low; weights[at + 1u] = e.high;"
            yield " }"
            yield " subgroupBarrier();"
            for i in range(self.down):
                for d in (2 * half, 2 * half + 1):
                    yield f" let qp{i}_{d} = (area + {SIDE * i}u) * {WEIGHT_PITCH}u + {4 * (d % 2)}u;"
                    yield f" let q{i}_{d} = coopLoadT<Left>(&weights[qp{i}_{d}], {WEIGHT_PITCH}u);"
        for i in range(self.down):
            for d in range(4):
                yield f" var o{i}_{d} = Sum();"

    def multiply_keys(self, block):
        for i in range(self.down):
            for n in range(2):
                yield f"  var s{block}_{i}_{n} = Sum();"
        for d in range(4):
            for n in range(2):
                yield f"  let kp{block}_{d}_{n} = {(block * BLOCK + SIDE * n) * KEY_PITCH + 4 * d}u;"
                yield f"  let kf{block}_{d}_{n} = coopLoad<Right>(&keys[kp{block}_{d}_{n}], {KEY_PITCH}u);"
                for i in range(self.down):
                    yield f"  s{block}_{i}_{n} = coopMultiplyAdd(q{i}_{d}, kf{block}_{d}_{n}, s{block}_{i}_{n});"

    def store_scores(self, block):
        for i in range(self.down):
            for n in range(2):
                yield f"  let sp{block}_{i}_{n} = (area + {SIDE * i}u) * {self.score_pitch}u + {4 * n}u;"
                yield f"  coopStoreT(s{block}_{i}_{n}, &scores[sp{block}_{i}_{n}], {self.score_pitch}u);"

    def make_weights(self, block):
        yield f"  let grown{block} = soften(row, half, first + {block * BLOCK}u);"
        yield "  subgroupBarrier();"
        if self.version.softmax:
            # A branch that compilers do not turn into selections.
            yield f"  for (var turn = subgroupAny(grown{block}); turn; turn = false) {{"
            yield from self.scale_results(block)
            yield "  }"

    def scale_results(self, block):
        """Results through the memory of scores, half of a head at a time."""
        for half in range(2):
            for i in range(self.down):
                for d in range(2):
                    yield f"   let ra{block}_{half}{i}{d} = (area + {SIDE * i}u) * {self.score_pitch}u + {4 * d}u;"
                    yield f"   coopStoreT(o{i}_{2 * half + d}, &scores[ra{block}_{half}{i}{d}], {self.score_pitch}u);"
            yield "   subgroupBarrier();"
            yield f"   for (var t = lane; t < {self.version.rows * 8}u; t += {LANES}u) {{"
            yield f"    let at = (area + t / 8u) * {self.score_pitch}u; scores[at + t % 8u] *= scores[at + {KEPT}u].z;"
            yield "   }"
            yield "   subgroupBarrier();"
            for i in range(self.down):
                for d in range(2):
                    yield f"   o{i}_{2 * half + d} = coopLoadT<Sum>(&scores[ra{block}_{half}{i}{d}], {self.score_pitch}u);"
            yield "   subgroupBarrier();"

    def multiply_values(self, block):
        for n in range(2):
            for i in range(self.down):
                yield f"  let wp{block}_{i}_{n} = (area + {SIDE * i}u) * {WEIGHT_PITCH}u + {4 * n}u;"
                yield f"  let w{block}_{i}_{n} = coopLoadT<Left>(&weights[wp{block}_{i}_{n}], {WEIGHT_PITCH}u);"
            for d in range(4):
                yield f"  let vp{block}_{d}_{n} = {(block * BLOCK + SIDE * n) * KEY_PITCH + 4 * d}u;"
                yield f"  let vf{block}_{d}_{n} = coopLoadT<Right>(&values[vp{block}_{d}_{n}], {KEY_PITCH}u);"
                for i in range(self.down):
                    yield f"  o{i}_{d} = coopMultiplyAdd(w{block}_{i}_{n}, vf{block}_{d}_{n}, o{i}_{d});"

    def loop(self):
        keys, blocks = self.version.keys, self.version.keys // BLOCK
        yield f" for (var first = 0u; first < {self.length}u; first += {keys}u) {{"
        yield from self.stage()
        # The last step reads its own keys again.
        yield f"  k_at += select(0u, {keys * self.token}u, first + {keys}u < {self.length}u);"
        yield from self.fetch()
        for block in range(blocks):
            if block == 0 or not self.version.ahead:
                yield from self.multiply_keys(block)
                yield from self.store_scores(block)
                yield "  subgroupBarrier();"
            follows = self.version.ahead and block + 1 < blocks
            if follows:
                yield from self.multiply_keys(block + 1)
            yield from self.make_weights(block)
            if follows:
                yield from self.store_scores(block + 1)
            yield from self.multiply_values(block)
            if follows:
                yield "  subgroupBarrier();"
        yield " }"

    def results(self):
        """Results over their sums of weights to y, half of a head at a time."""
        kept = f"scores[row * {self.score_pitch}u + {KEPT}u]"
        if self.version.softmax:
            yield f" let total = {kept}.y; if half == 0u {{ {kept}.z = 1.0 / total; }}"
        else:
            yield f" if half == 0u {{ {kept}.z = 1.0; }}"
        for half in range(2):
            yield " subgroupBarrier();"
            for i in range(self.down):
                for d in range(2):
                    yield f" let fa{half}{i}{d} = (area + {SIDE * i}u) * {self.score_pitch}u + {4 * d}u;"
                    yield f" coopStoreT(o{i}_{2 * half + d}, &scores[fa{half}{i}{d}], {self.score_pitch}u);"
            yield " subgroupBarrier();"
            to = f"(q_at + t / 8u * {self.token}u) * 2u + {8 * half}u + t % 8u"
            yield f" for (var t = lane; t < {self.version.rows * 8}u; t += {LANES}u) {{"
            yield f"  let at = (area + t / 8u) * {self.score_pitch}u; y[{to}] = vec4<f16>(scores[at + t % 8u] * scores[at + {KEPT}u].z);"
            yield " }"

    def text(self):
        lines = [*self.declarations(), *self.soften(), f"@compute @workgroup_size({self.threads})"]
        lines.append("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {")
        return "\n".join([*lines, *self.places(), *self.fetch("var "), *self.queries_to_matrices(), *self.loop(), *self.results(), "}"])

    def case(self):
        version = self.version
        # What is wrong on purpose is held to nothing.
        wrong = "" if version.softmax and version.barriers else f", {version}"
        size = (self.batch, self.length, self.heads)
        return sized(str(version), self.text(), [self.length // self.queries, self.heads, self.batch], size, wrong)


def sized(name, wgsl, workgroups, size, wrong=""):
    """A case of batch, queries and keys, heads."""
    batch, length, heads = size
    numbers = batch * length * heads * HEAD
    text = f"{batch}x{length}x{heads}"
    return case(f"{name}; {text}", text + wrong, wgsl, workgroups, [numbers, 2 * numbers], numbers, 4 * length * numbers)


def plain(batch, length, heads):
    """A loop, in f32, over keys for each query and head."""
    values, row = batch * length * heads * HEAD, heads * HEAD
    text = f"""enable f16;
@group(0) @binding(0) var<storage, read> q: array<f16>;
@group(0) @binding(1) var<storage, read> kv: array<f16>;
@group(0) @binding(2) var<storage, read_write> y: array<f16>;
@compute @workgroup_size({HEAD})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {{
 let at = (group.z * {length}u + group.x) * {row}u + group.y * {HEAD}u;
 var sum = 0.0;
 var result = 0.0;
 for (var j = 0u; j < {length}u; j++) {{
  let key = (group.z * {length}u + j) * {row}u + group.y * {HEAD}u;
  var score = 0.0;
  for (var d = 0u; d < {HEAD}u; d++) {{ score += f32(q[at + d]) * f32(kv[key + d]); }}
  let weight = exp(score * 0.125);
  sum += weight;
  result += weight * f32(kv[{values}u + key + index]);
 }}
 y[at + index] = f16(result / sum);
}}"""
    return sized("plain loop", text, [length, heads, batch], (batch, length, heads))


def cases(tiny):
    """All versions of every size, behind what they are held to."""
    found = []
    for size in [(1, 256, 2)] if tiny else SIZES:
        if size[1] <= PLAIN:
            found.append(plain(*size))
        made = [Flash(version, *size) for version in versions()]
        found += [flash.case() for flash in made if fits(flash.version, flash.shared_bytes())]
    return found


if __name__ == "__main__":
    write(__doc__, "attention.json", cases)
