// y[j, c] = f32 of table[indices[j], c] from packed halves; an index past the end reads the last row.
//   table: (rows, width) halves in u32     indices: (count / width) u32     y: (count / width, width) f32
// Each invocation computes one element.

import package::shared::grid::flat_index;

struct Params {
    count: u32,
    width: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn gather_unpack(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i < params.count {
        let j = i / params.width;
        let at = min(indices[j], params.rows - 1u) * params.width + i - j * params.width;
        let pair = unpack2x16float(table[at >> 1u]);
        y[i] = select(pair.x, pair.y, (at & 1u) == 1u);
    }
}
