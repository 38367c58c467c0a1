// y = f(a op b), op given by FUNCTION, f by ACTIVATION, with broadcasting.
//   a, b: any strides; b may be f32 under f16 activations (feature `wide`)     y: dense
// Each invocation computes one cell of y; a and b are then walked by cells too.
// permutation: f16
// permutation: vec4
// permutation: f16 vec4
// permutation: f16 wide
// permutation: f16 vec4 wide

import package::shared::grid::flat_index;
import package::shared::strided::{Position, unravel, offset_of};
import package::shared::vector::{activate_cell, cell, real};

@if(f16) enable f16;

struct Params {
    near: vec4<u32>,
    far: vec4<u32>,
    a_near: vec4<u32>,
    a_far: vec4<u32>,
    b_near: vec4<u32>,
    b_far: vec4<u32>,
    count: u32,
}

override FUNCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<cell>;
@if(wide) @group(0) @binding(2) var<storage, read> b: array<real>;
@else @group(0) @binding(2) var<storage, read> b: array<cell>;
@group(0) @binding(3) var<storage, read_write> y: array<cell>;

// WGSL leaves powers of negative bases undefined; integer exponents have the usual sign, others give NaN as in NumPy.
fn power(x: real, e: real) -> real {
    let odd = abs(e - 2.0 * floor(0.5 * e)) == real(1.0);
    let whole = floor(e) == e;
    let magnitude = pow(abs(x), e);
    let signed = select(magnitude, -magnitude, odd);
    // 0 / 0 in a form that compilers do not reject as a constant.
    let undefined = (x - x) / (x - x);
    let negative = select(undefined, signed, whole);
    let zero = select(real(0.0), 1.0 / abs(x), e < real(0.0));
    let nonzero = select(magnitude, negative, x < real(0.0));
    return select(select(nonzero, zero, x == real(0.0)), real(1.0), e == real(0.0));
}

fn combine(x: real, z: real) -> real {
    switch FUNCTION {
        case 0u: { return x + z; }
        case 1u: { return x - z; }
        case 2u: { return x * z; }
        case 3u: { return x / z; }
        case 4u: { return max(x, z); }
        case 5u: { return min(x, z); }
        case 7u: { return select(real(0.0), real(1.0), x < z); }
        case 8u: { return select(real(0.0), real(1.0), x <= z); }
        case 9u: { return select(real(0.0), real(1.0), x == z); }
        default: { return power(x, z); }
    }
}

@compute @workgroup_size(64)
fn binary(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let p = unravel(i, params.near, params.far);
    let x = real(a[offset_of(p, params.a_near, params.a_far)]);
    let z = real(b[offset_of(p, params.b_near, params.b_far)]);
    y[i] = cell(activate_cell(combine(x, z)));
}
