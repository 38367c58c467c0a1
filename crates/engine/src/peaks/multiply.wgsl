// Each invocation multiplies and adds in eight sums of four, which do not wait for each other: STEPS times 32 in all.

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

const STEPS = 256u;

@compute @workgroup_size(256)
fn multiply(@builtin(global_invocation_id) at: vec3<u32>) {
    let a = x[0];
    let b = x[1];
    var s0 = x[2];
    var s1 = s0 + a;
    var s2 = s1 + a;
    var s3 = s2 + a;
    var s4 = s3 + a;
    var s5 = s4 + a;
    var s6 = s5 + a;
    var s7 = s6 + a;
    for (var i = 0u; i < STEPS; i++) {
        s0 = fma(s0, a, b);
        s1 = fma(s1, a, b);
        s2 = fma(s2, a, b);
        s3 = fma(s3, a, b);
        s4 = fma(s4, a, b);
        s5 = fma(s5, a, b);
        s6 = fma(s6, a, b);
        s7 = fma(s7, a, b);
    }
    y[at.x] = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
}
