// As shared/workgroup_tile, for a right operand that is stored by columns: each invocation copies four steps of one column, which
// are transposed in registers.

import package::shared::product::accumulate;

// One vec4 of padding per row and column spreads them over the banks.
const STRIDE: u32 = 5u;
var<workgroup> a_tile: array<vec4<f32>, 320>;
var<workgroup> b_tile: array<vec4<f32>, 320>;

// Adds 16 steps to an invocation's sums, one row a column of the matrix. `x` is what it copies of the left operand: vec4 number
// index % 4 of row index / 4; `w` of the right one: vec4 number index % 4 of column index / 4. All invocations must call it
// together: the first barrier waits until the tiles are written, the second until all have read them.
fn multiply_transposed(sums: mat4x4<f32>, x: vec4<f32>, w: vec4<f32>, lane: vec3<u32>, index: u32) -> mat4x4<f32> {
    let line = index / 4u;
    let step4 = index % 4u;
    a_tile[line * STRIDE + step4] = x;
    // An invocation's four columns lie 16 apart, so that neighbours read neighbouring ones.
    b_tile[(line % 4u * 16u + line / 4u) * STRIDE + step4] = w;
    workgroupBarrier();
    let row = lane.y * 4u;
    var c = sums;
    for (var k = 0u; k < 4u; k++) {
        let b = transpose(mat4x4(
            b_tile[lane.x * STRIDE + k],
            b_tile[(16u + lane.x) * STRIDE + k],
            b_tile[(32u + lane.x) * STRIDE + k],
            b_tile[(48u + lane.x) * STRIDE + k],
        ));
        let x0 = a_tile[row * STRIDE + k];
        let x1 = a_tile[(row + 1u) * STRIDE + k];
        let x2 = a_tile[(row + 2u) * STRIDE + k];
        let x3 = a_tile[(row + 3u) * STRIDE + k];
        c = accumulate(c, x0, x1, x2, x3, b);
    }
    workgroupBarrier();
    return c;
}
