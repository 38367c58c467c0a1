// y = x: each invocation copies 16 bytes.

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(256)
fn copy(@builtin(global_invocation_id) at: vec3<u32>) {
    y[at.x] = x[at.x];
}
