// Walks over up to eight axes, innermost first: `near` holds axes 0 to 3, `far` axes 4 to 7. Lowering merges axes, so RANK
// is small and the tests below vanish.

override RANK: u32 = 1u;

struct Position {
    near: vec4<u32>,
    far: vec4<u32>,
}

// Coordinates of element i of a row-major walk.
fn unravel(i: u32, near: vec4<u32>, far: vec4<u32>) -> Position {
    var p = Position(vec4(0u), vec4(0u));
    if RANK == 1u {
        p.near.x = i;
        return p;
    }
    var rest = i / near.x;
    p.near.x = i - rest * near.x;
    if RANK == 2u {
        p.near.y = rest;
        return p;
    }
    var next = rest / near.y;
    p.near.y = rest - next * near.y;
    if RANK == 3u {
        p.near.z = next;
        return p;
    }
    rest = next / near.z;
    p.near.z = next - rest * near.z;
    if RANK == 4u {
        p.near.w = rest;
        return p;
    }
    next = rest / near.w;
    p.near.w = rest - next * near.w;
    p.far.x = next % far.x;
    rest = next / far.x;
    p.far.y = rest % far.y;
    rest = rest / far.y;
    p.far.z = rest % far.z;
    p.far.w = rest / far.z;
    return p;
}

// Offset of a position under strides.
fn offset_of(p: Position, near: vec4<u32>, far: vec4<u32>) -> u32 {
    var offset = p.near.x * near.x;
    if RANK > 1u {
        offset += p.near.y * near.y;
    }
    if RANK > 2u {
        offset += p.near.z * near.z + p.near.w * near.w;
    }
    if RANK > 4u {
        offset += dot(p.far, far);
    }
    return offset;
}
