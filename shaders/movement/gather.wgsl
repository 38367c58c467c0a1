// y[j, c] = table[indices[j], c]; an index past the end reads the last row.
//   table: (rows, width)     indices: (count / width) u32     y: (count / width, width)     in cells
// Each invocation moves one cell. Bits are moved as they are.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4

import package::shared::grid::flat_index;
import package::shared::moving::words;

@if(f16) enable f16;

struct Params {
    count: u32,
    width: u32,
    rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<words>;
@group(0) @binding(2) var<storage, read> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<words>;

@compute @workgroup_size(64)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i < params.count {
        let j = i / params.width;
        y[i] = table[min(indices[j], params.rows - 1u) * params.width + i - j * params.width];
    }
}
