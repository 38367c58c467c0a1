// Flat invocation index of a one-dimensional dispatch that was folded into two dimensions (see `Dispatch::over`).

fn flat_index(id: vec3<u32>, groups: vec3<u32>, size: u32) -> u32 {
    return id.y * groups.x * size + id.x;
}
