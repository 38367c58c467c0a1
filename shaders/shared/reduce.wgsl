// Reductions over the 64 invocations of a workgroup. Every invocation must call them; each ends with a barrier, so that
// the next call may reuse the memory.

var<workgroup> partial: array<f32, 64>;

fn workgroup_sum(value: f32, lane: u32) -> f32 {
    partial[lane] = value;
    // All values are written before any is read.
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane < half {
            partial[lane] += partial[lane + half];
        }
        // This level's sums are written before the next level reads them.
        workgroupBarrier();
    }
    let result = partial[0];
    // Everybody has read the result before the memory is written again.
    workgroupBarrier();
    return result;
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    partial[lane] = value;
    // As above.
    workgroupBarrier();
    for (var half = 32u; half > 0u; half >>= 1u) {
        if lane < half {
            partial[lane] = max(partial[lane], partial[lane + half]);
        }
        workgroupBarrier();
    }
    let result = partial[0];
    workgroupBarrier();
    return result;
}
