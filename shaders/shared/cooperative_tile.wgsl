// What the products of cooperative matrices share: a workgroup computes ROWS x COLUMNS elements of the result, each of its
// subgroups SPANROWS x SPANCOLUMNS of them as matrices of f32 sums, 2 or 4 of them down and across. STEP steps of the inner axis at a time, the workgroup
// copies both operands to workgroup memory in f16, eight at a time; what the next STEP needs is read from storage before the
// arithmetic of this one, which hides the way: no branch that depends on the invocation stands around these reads, since
// what comes together after one is waited for there. The matrices are named by constant indices,
// and the build gives each a variable of the entry point (crates/ops/build/matrices.rs): dynamic ones leave registers.
// No branch around them may depend on the invocation, and what they load and store is not checked by the device.
// Feature `transposed`: the right operand is stored by columns and lies so in workgroup memory, too.
// Feature `coop8`: matrices of 8 x 8 in arrays of scalars, as Metal wants them; else 16 x 16 in vec4s. With `packed` the operands lie
// in units of 16 bytes, which are copied at once: eight f16 behind the type vec4<f32>. Left and Right say f32 there, since WGSL takes a
// matrix's type from what it is loaded from; the engine makes f16 of it in SPIR-V. As numbers those f32 mean nothing: they are moved and chosen from, no more.

@if(coop8) const SIZE: u32 = 8u;
@else const SIZE: u32 = 16u;

override ROWS: u32 = 128u;
override COLUMNS: u32 = 128u;
override SPANROWS: u32 = 64u;
override SPANCOLUMNS: u32 = 64u;
const STEP: u32 = 32u;
// 1: the last STEP of the inner axis (of a tap) may be a part of one.
override PARTIAL: u32 = 1u;
// Lanes of a subgroup, the most where the driver chooses: so many lanes may be several subgroups, which then compute the same and
// write the same to the same place of workgroup memory.
override LANES: u32 = 32u;

// Subgroups side by side, and invocations of all.
override ACROSS: u32 = COLUMNS / SPANCOLUMNS;
override INVOCATIONS: u32 = ROWS / SPANROWS * ACROSS * LANES;

// Eights in a row of a tile. Invocation i copies eight i of the tile, then those that lie INVOCATIONS further on: always
// in the same place of a row, so many rows further down.
override LEFTWIDTH: u32 = STEP / 8u;
override LEFTDOWN: u32 = INVOCATIONS / LEFTWIDTH;
override LEFTCOPIES: u32 = ROWS / LEFTDOWN;
@if(transposed) override RIGHTWIDTH: u32 = STEP / 8u;
@else override RIGHTWIDTH: u32 = COLUMNS / 8u;
override RIGHTDOWN: u32 = INVOCATIONS / RIGHTWIDTH;
@if(transposed) override RIGHTCOPIES: u32 = COLUMNS / RIGHTDOWN;
@else override RIGHTCOPIES: u32 = STEP / RIGHTDOWN;

// 16 bytes of padding per row spread the rows over the banks.
override LEFTSTRIDE: u32 = (STEP + 8u) / UNIT;
@if(transposed) override RIGHTSTRIDE: u32 = (STEP + 8u) / UNIT;
@else override RIGHTSTRIDE: u32 = (COLUMNS + 8u) / UNIT;
// From a matrix of the right tile to that beside it.
@if(transposed) override BESIDE: u32 = SIZE * RIGHTSTRIDE;
@else override BESIDE: u32 = SIZE / UNIT;
// Two matrices side by side, for each subgroup.
const PAIR_STRIDE: u32 = (2u * SIZE + 4u) / SUMUNIT;

// What the left and the right operand, and sums on their way out, lie in.
@if(coop8) const UNIT: u32 = 1u;
@elif(packed) const UNIT: u32 = 8u;
@else const UNIT: u32 = 4u;
@if(coop8) const SUMUNIT: u32 = 1u;
@else const SUMUNIT: u32 = 4u;
@if(coop8) alias half_unit = f16;
@elif(packed) alias half_unit = vec4<f32>;
@else alias half_unit = vec4<f16>;
@if(coop8) alias sum_unit = f32;
@else alias sum_unit = vec4<f32>;
// naga takes a name for the length of an array, no expression.
override LEFTUNITS: u32 = ROWS * LEFTSTRIDE;
@if(transposed) override RIGHTUNITS: u32 = COLUMNS * RIGHTSTRIDE;
@else override RIGHTUNITS: u32 = STEP * RIGHTSTRIDE;
override PAIRUNITS: u32 = INVOCATIONS / LANES * SIZE * PAIR_STRIDE;
var<workgroup> left_tile: array<half_unit, LEFTUNITS>;
var<workgroup> right_tile: array<half_unit, RIGHTUNITS>;
var<workgroup> pairs: array<sum_unit, PAIRUNITS>;

@if(coop8) alias Left = coop_mat8x8<f16, A>;
@elif(packed) alias Left = coop_mat16x16<f32, A>;
@else alias Left = coop_mat16x16<f16, A>;
@if(coop8) alias Right = coop_mat8x8<f16, B>;
@elif(packed) alias Right = coop_mat16x16<f32, B>;
@else alias Right = coop_mat16x16<f16, B>;
@if(coop8) alias Sum = coop_mat8x8<f32, C>;
@else alias Sum = coop_mat16x16<f32, C>;

// Four rows of four; of fewer, the first ones count.
alias Sums = array<Sum, 16>;

// 16 bytes, so that they are read at once.
@if(packed) alias Eight = vec4<f32>;
@else struct Eight {
    low: vec4<f16>,
    high: vec4<f16>,
}

// Of eight numbers, rounded.
@if(packed) fn eight(low: vec4<f32>, high: vec4<f32>) -> Eight {
    let words = vec4(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
    return bitcast<vec4<f32>>(words);
}
@else fn eight(low: vec4<f32>, high: vec4<f32>) -> Eight {
    return Eight(vec4<f16>(low), vec4<f16>(high));
}

@if(coop8) fn put_left(at: u32, e: Eight) {
    left_tile[at] = e.low.x;
    left_tile[at + 1u] = e.low.y;
    left_tile[at + 2u] = e.low.z;
    left_tile[at + 3u] = e.low.w;
    left_tile[at + 4u] = e.high.x;
    left_tile[at + 5u] = e.high.y;
    left_tile[at + 6u] = e.high.z;
    left_tile[at + 7u] = e.high.w;
}
@elif(packed) fn put_left(at: u32, e: Eight) {
    left_tile[at] = e;
}
@else fn put_left(at: u32, e: Eight) {
    left_tile[at] = e.low;
    left_tile[at + 1u] = e.high;
}

@if(coop8) fn put_right(at: u32, e: Eight) {
    right_tile[at] = e.low.x;
    right_tile[at + 1u] = e.low.y;
    right_tile[at + 2u] = e.low.z;
    right_tile[at + 3u] = e.low.w;
    right_tile[at + 4u] = e.high.x;
    right_tile[at + 5u] = e.high.y;
    right_tile[at + 6u] = e.high.z;
    right_tile[at + 7u] = e.high.w;
}
@elif(packed) fn put_right(at: u32, e: Eight) {
    right_tile[at] = e;
}
@else fn put_right(at: u32, e: Eight) {
    right_tile[at] = e.low;
    right_tile[at + 1u] = e.high;
}

// `e`, or zeros.
@if(packed) fn kept(e: Eight, keep: bool) -> Eight {
    return select(vec4<f32>(), e, keep);
}
@else fn kept(e: Eight, keep: bool) -> Eight {
    return Eight(select(vec4<f16>(), e.low, keep), select(vec4<f16>(), e.high, keep));
}

// Writes copy i of invocation `index`.
fn stage_left(index: u32, i: u32, e: Eight) {
    put_left((index / LEFTWIDTH + i * LEFTDOWN) * LEFTSTRIDE + index % LEFTWIDTH * (8u / UNIT), e);
}

fn stage_right(index: u32, i: u32, e: Eight) {
    put_right((index / RIGHTWIDTH + i * RIGHTDOWN) * RIGHTSTRIDE + index % RIGHTWIDTH * (8u / UNIT), e);
}

// Adds STEP steps to the sums of a subgroup, whose part of the tile begins at row `down` and column `across`.
fn multiply(sums: ptr<function, Sums>, down: u32, across: u32) {
    multiply_at(sums, down, across, 0u);
    multiply_at(sums, down, across, SIZE);
    if SIZE == 8u {
        multiply_at(sums, down, across, 2u * SIZE);
        multiply_at(sums, down, across, 3u * SIZE);
    }
}

// Those of the matrices from element k of the STEP on.
fn multiply_at(sums: ptr<function, Sums>, down: u32, across: u32, k: u32) {
    let left_stride = LEFTSTRIDE;
    let right_stride = RIGHTSTRIDE;
    let left0 = down * LEFTSTRIDE + k / UNIT;
    let left1 = left0 + SIZE * LEFTSTRIDE;
    @if(transposed) let right0 = across * RIGHTSTRIDE + k / UNIT;
    @else let right0 = k * RIGHTSTRIDE + across / UNIT;
    let right1 = right0 + BESIDE;
    let a0 = coopLoadT<Left>(&left_tile[left0], left_stride);
    let a1 = coopLoadT<Left>(&left_tile[left1], left_stride);
    @if(transposed) let b0 = coopLoad<Right>(&right_tile[right0], right_stride);
    @else let b0 = coopLoadT<Right>(&right_tile[right0], right_stride);
    @if(transposed) let b1 = coopLoad<Right>(&right_tile[right1], right_stride);
    @else let b1 = coopLoadT<Right>(&right_tile[right1], right_stride);
    (*sums)[0] = coopMultiplyAdd(a0, b0, (*sums)[0]);
    (*sums)[1] = coopMultiplyAdd(a0, b1, (*sums)[1]);
    (*sums)[4] = coopMultiplyAdd(a1, b0, (*sums)[4]);
    (*sums)[5] = coopMultiplyAdd(a1, b1, (*sums)[5]);
    let left2 = left1 + SIZE * LEFTSTRIDE;
    let left3 = left2 + SIZE * LEFTSTRIDE;
    if SPANCOLUMNS == 2u * SIZE {
        if SPANROWS > 2u * SIZE {
            let a2 = coopLoadT<Left>(&left_tile[left2], left_stride);
            let a3 = coopLoadT<Left>(&left_tile[left3], left_stride);
            (*sums)[8] = coopMultiplyAdd(a2, b0, (*sums)[8]);
            (*sums)[9] = coopMultiplyAdd(a2, b1, (*sums)[9]);
            (*sums)[12] = coopMultiplyAdd(a3, b0, (*sums)[12]);
            (*sums)[13] = coopMultiplyAdd(a3, b1, (*sums)[13]);
        }
    } else {
        let right2 = right1 + BESIDE;
        let right3 = right2 + BESIDE;
        @if(transposed) let b2 = coopLoad<Right>(&right_tile[right2], right_stride);
        @else let b2 = coopLoadT<Right>(&right_tile[right2], right_stride);
        @if(transposed) let b3 = coopLoad<Right>(&right_tile[right3], right_stride);
        @else let b3 = coopLoadT<Right>(&right_tile[right3], right_stride);
        (*sums)[2] = coopMultiplyAdd(a0, b2, (*sums)[2]);
        (*sums)[3] = coopMultiplyAdd(a0, b3, (*sums)[3]);
        (*sums)[6] = coopMultiplyAdd(a1, b2, (*sums)[6]);
        (*sums)[7] = coopMultiplyAdd(a1, b3, (*sums)[7]);
        if SPANROWS > 2u * SIZE {
            let a2 = coopLoadT<Left>(&left_tile[left2], left_stride);
            let a3 = coopLoadT<Left>(&left_tile[left3], left_stride);
            (*sums)[8] = coopMultiplyAdd(a2, b0, (*sums)[8]);
            (*sums)[9] = coopMultiplyAdd(a2, b1, (*sums)[9]);
            (*sums)[10] = coopMultiplyAdd(a2, b2, (*sums)[10]);
            (*sums)[11] = coopMultiplyAdd(a2, b3, (*sums)[11]);
            (*sums)[12] = coopMultiplyAdd(a3, b0, (*sums)[12]);
            (*sums)[13] = coopMultiplyAdd(a3, b1, (*sums)[13]);
            (*sums)[14] = coopMultiplyAdd(a3, b2, (*sums)[14]);
            (*sums)[15] = coopMultiplyAdd(a3, b3, (*sums)[15]);
        }
    }
}

// Lays two matrices side by side where all lanes of their subgroup can read them. All invocations must call it together.
fn stage_pair(p: Sum, q: Sum, subgroup: u32) {
    let stride = PAIR_STRIDE;
    let first = subgroup * SIZE * PAIR_STRIDE;
    let second = first + SIZE / SUMUNIT;
    workgroupBarrier();
    coopStoreT(p, &pairs[first], stride);
    coopStoreT(q, &pairs[second], stride);
    workgroupBarrier();
}

// Columns 4 * column4 .. + 3 of a row there.
@if(coop8) fn staged(subgroup: u32, row: u32, column4: u32) -> vec4<f32> {
    let at = (subgroup * SIZE + row) * PAIR_STRIDE + 4u * column4;
    return vec4(pairs[at], pairs[at + 1u], pairs[at + 2u], pairs[at + 3u]);
}
@else fn staged(subgroup: u32, row: u32, column4: u32) -> vec4<f32> {
    return pairs[(subgroup * SIZE + row) * PAIR_STRIDE + column4];
}
