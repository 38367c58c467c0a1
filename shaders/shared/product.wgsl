// The arithmetic of the tiled matrix products and convolutions: four steps of the inner axis at a time.

// Four columns of one row: `x` holds the row's values at four steps, `b` the right operand's, one step a column of the matrix.
fn combine(x: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
    return x.x * b[0] + x.y * b[1] + x.z * b[2] + x.w * b[3];
}

// Adds the products of four rows, each a column of the matrices, to their sums.
fn accumulate(sums: mat4x4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4(sums[0] + combine(x0, b), sums[1] + combine(x1, b), sums[2] + combine(x2, b), sums[3] + combine(x3, b));
}

// The same for one row and the four steps by themselves: nothing but fused multiply-adds, and no sum besides the result.
fn add_products(sum: vec4<f32>, x: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) -> vec4<f32> {
    return fma(vec4(x.w), b3, fma(vec4(x.z), b2, fma(vec4(x.y), b1, fma(vec4(x.x), b0, sum))));
}
