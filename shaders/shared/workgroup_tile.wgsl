// What the products of a workgroup of 16 x 16 invocations share: 64 x 64 elements of the result, each invocation 4 rows x
// 4 columns in registers. 16 steps of the inner axis at a time, the workgroup copies 64 rows of the left operand and 64
// columns of the right one to workgroup memory, one vec4 of each per invocation.

import package::shared::product::accumulate;

// One vec4 of padding per row spreads the rows over the banks.
const A_STRIDE: u32 = 5u;
var<workgroup> a_tile: array<vec4<f32>, 320>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

// Adds 16 steps to an invocation's sums, one row a column of the matrix. `x` is what it copies of the left operand: vec4
// number index % 4 of row index / 4; `w` of the right one: vec4 number lane.x of step lane.y. All invocations must call it
// together: the first barrier waits until the tiles are written, the second until all have read them.
fn multiply(sums: mat4x4<f32>, x: vec4<f32>, w: vec4<f32>, lane: vec3<u32>, index: u32) -> mat4x4<f32> {
    a_tile[index / 4u * A_STRIDE + index % 4u] = x;
    b_tile[index] = w;
    workgroupBarrier();
    let row = lane.y * 4u;
    var c = sums;
    for (var k = 0u; k < 4u; k++) {
        let b = mat4x4(
            b_tile[k * 64u + lane.x],
            b_tile[k * 64u + 16u + lane.x],
            b_tile[k * 64u + 32u + lane.x],
            b_tile[k * 64u + 48u + lane.x],
        );
        let x0 = a_tile[row * A_STRIDE + k];
        let x1 = a_tile[(row + 1u) * A_STRIDE + k];
        let x2 = a_tile[(row + 2u) * A_STRIDE + k];
        let x3 = a_tile[(row + 3u) * A_STRIDE + k];
        c = accumulate(c, x0, x1, x2, x3, b);
    }
    workgroupBarrier();
    return c;
}
