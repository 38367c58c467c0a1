// What the products of one subgroup of 8 lanes share: 8 rows x 32 columns of the result, each lane its own 4 columns. For CPU
// devices: there a load is eight scalar loads, each checked and branched around, whether the lanes read one address or eight,
// so that no lane may read what another has read. Each lane reads one row of the left operand and passes it on by broadcast,
// which is a permutation of one register.

import package::shared::product::combine;

// The sums of a lane's columns in eight rows; named values, since indexed arrays leave registers.
struct Sums {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
}

fn no_sums() -> Sums {
    let zero = vec4(0.0);
    return Sums(zero, zero, zero, zero, zero, zero, zero, zero);
}

// Adds four steps: `own` are the values of the row with the lane's number, `b` those of the right operand in its columns, one
// step a column of the matrix.
fn broadcast_products(s: Sums, own: vec4<f32>, b: mat4x4<f32>) -> Sums {
    return Sums(
        s.s0 + combine(subgroupBroadcast(own, 0u), b),
        s.s1 + combine(subgroupBroadcast(own, 1u), b),
        s.s2 + combine(subgroupBroadcast(own, 2u), b),
        s.s3 + combine(subgroupBroadcast(own, 3u), b),
        s.s4 + combine(subgroupBroadcast(own, 4u), b),
        s.s5 + combine(subgroupBroadcast(own, 5u), b),
        s.s6 + combine(subgroupBroadcast(own, 6u), b),
        s.s7 + combine(subgroupBroadcast(own, 7u), b),
    );
}

// The sums of row r.
fn row_of(s: Sums, r: u32) -> vec4<f32> {
    var v = s.s0;
    v = select(v, s.s1, r == 1u);
    v = select(v, s.s2, r == 2u);
    v = select(v, s.s3, r == 3u);
    v = select(v, s.s4, r == 4u);
    v = select(v, s.s5, r == 5u);
    v = select(v, s.s6, r == 6u);
    v = select(v, s.s7, r == 7u);
    return v;
}
