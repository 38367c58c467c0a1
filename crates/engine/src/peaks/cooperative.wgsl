// Each subgroup multiplies matrices of f16 and adds in eight matrices of f32: STEPS times 8 products in all. Matrices are of 16 x 16
// here; the text is changed for others.
enable f16;
enable wgpu_cooperative_matrix;

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

@group(0) @binding(0) var<storage, read> x: array<f16>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

const STEPS = 64u;
const SIZE = 16u;

@compute @workgroup_size(256)
fn cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_size) lanes: u32,
) {
    let stride = SIZE;
    // Different factors, or compilers would see that the sums are one.
    let a0 = coopLoadT<Left>(&x[0], stride);
    let a1 = coopLoadT<Left>(&x[SIZE * SIZE], stride);
    let b0 = coopLoadT<Right>(&x[2u * SIZE * SIZE], stride);
    let b1 = coopLoadT<Right>(&x[3u * SIZE * SIZE], stride);
    let b2 = coopLoadT<Right>(&x[4u * SIZE * SIZE], stride);
    let b3 = coopLoadT<Right>(&x[5u * SIZE * SIZE], stride);
    var s0 = Sum();
    var s1 = Sum();
    var s2 = Sum();
    var s3 = Sum();
    var s4 = Sum();
    var s5 = Sum();
    var s6 = Sum();
    var s7 = Sum();
    for (var i = 0u; i < STEPS; i++) {
        s0 = coopMultiplyAdd(a0, b0, s0);
        s1 = coopMultiplyAdd(a0, b1, s1);
        s2 = coopMultiplyAdd(a0, b2, s2);
        s3 = coopMultiplyAdd(a0, b3, s3);
        s4 = coopMultiplyAdd(a1, b0, s4);
        s5 = coopMultiplyAdd(a1, b1, s5);
        s6 = coopMultiplyAdd(a1, b2, s6);
        s7 = coopMultiplyAdd(a1, b3, s7);
    }
    let sum = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
    // Subgroups take invocations in order.
    let at = (group.x * (256u / lanes) + index / lanes) * SIZE * SIZE;
    coopStoreT(sum, &y[at], stride);
}
