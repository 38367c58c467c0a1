// Sine and cosine of large phases. WGSL's own may be wrong by 2^-11 and more there, so they are computed here: the phase is
// reduced to [-pi/4, pi/4] by three-part subtraction, then a short Taylor series.

// sin(phase + quarter * pi/2)
fn sine(phase: f32, quarter: i32) -> f32 {
    let n = round(phase * 0.63661977);
    // pi/2 in three parts whose products with n are exact.
    let r = ((phase - n * 1.5703125) - n * 4.8375129699707e-4) - n * 7.5497899548918e-8;
    let s = r * r;
    let sine = r * (1.0 + s * (-1.0 / 6.0 + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s / 362880.0))));
    let cosine = 1.0 + s * (-0.5 + s * (1.0 / 24.0 + s * (-1.0 / 720.0 + s / 40320.0)));
    let turn = (i32(n) + quarter) & 3;
    let value = select(sine, cosine, (turn & 1) == 1);
    return select(value, -value, turn >= 2);
}
