// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101), as PyTorch computes it:
//   g = factor * gradient, m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g^2,
//   p' = (1 - rate * decay) p - rate / correction1 * m' / (sqrt(v') / sqrt(correction2) + epsilon), correction = 1 - beta^step.
//   state, next: (3, count) f32, rows p, m, v      gradient: (count) f32
//   settings: (8) f32: rate, decay, beta1, beta2, epsilon, correction1, correction2, factor
// Each invocation computes one column. A factor of zero leaves the state as it is: so a step with gradients that are not finite is
// skipped.

import package::shared::grid::flat_index;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> state: array<f32>;
@group(0) @binding(2) var<storage, read> gradient: array<f32>;
@group(0) @binding(3) var<storage, read> settings: array<f32>;
@group(0) @binding(4) var<storage, read_write> next: array<f32>;

@compute @workgroup_size(64)
fn adamw(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = flat_index(id, groups, 64u);
    if i >= params.count {
        return;
    }
    let p = state[i];
    let m = state[params.count + i];
    let v = state[2u * params.count + i];
    let factor = settings[7];
    if factor == 0.0 {
        next[i] = p;
        next[params.count + i] = m;
        next[2u * params.count + i] = v;
        return;
    }
    let rate = settings[0];
    let g = factor * gradient[i];
    let first = settings[2] * m + (1.0 - settings[2]) * g;
    let second = settings[3] * v + (1.0 - settings[3]) * g * g;
    let width = sqrt(second) / sqrt(settings[6]) + settings[4];
    next[i] = p * (1.0 - rate * settings[1]) - (rate / settings[5]) * (first / width);
    next[params.count + i] = first;
    next[2u * params.count + i] = second;
}
