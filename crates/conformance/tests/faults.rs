//! Faults planted on purpose: each of these changes of a shader must fail some check of its operator.

use pulid_conformance::{checks, compare, reference};
use pulid_engine::{Device, DeviceOptions, run_single_edited};
use pulid_ops::Storage;
use pulid_tensor::{HostTensor, TensorType};

/// A change of one shader's text.
struct Fault {
    what: &'static str,
    shader: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn fault(what: &'static str, shader: &'static str, from: &'static str, to: &'static str) -> Fault {
    Fault { what, shader, from, to }
}

const BARRIER_IN_SUM: &str = "partial[lane + half];\n        }\n        workgroupBarrier();";
const NO_BARRIER_IN_SUM: &str = "partial[lane + half];\n        }";

const FAULTS: [Fault; 22] = [
    fault("one element too many is written", "permute", "if i < params.count", "if i <= params.count"),
    fault("near and far axes are swapped", "permute", "params.x_near, params.x_far", "params.x_far, params.x_near"),
    fault("the padding in front is forgotten", "pad", "p.near - params.before_near", "p.near"),
    fault("the last row is never taken", "gather", "params.rows - 1u", "params.rows - 2u"),
    fault("operands begin where the first does", "concat", "+ params.start ", ""),
    fault(
        "no barrier before a tile is read",
        "matmul_workgroup_tile",
        "        workgroupBarrier();\n        for",
        "        for",
    ),
    fault(
        "a stride that is right for full rows only",
        "matmul_workgroup_tile",
        "(row + 1u) * A_STRIDE",
        "(row + 1u) * 4u",
    ),
    fault(
        "rows below the last are stored",
        "matmul_workgroup_tile",
        "row >= package_shared__1matmul_tile_params.m || ",
        "",
    ),
    fault("the last steps of a product are left out", "matmul_workgroup_tile", "step += 4u", "step += 5u"),
    fault(
        "gates are read before they are there",
        "matmul_workgroup_tile",
        "        workgroupBarrier();\n        if",
        "        if",
    ),
    fault(
        "values are their own gates",
        "matmul_register_tile",
        "column4 + package_shared__1matmul_tile_width4(), g)",
        "column4, g)",
    ),
    fault("values are their own gates", "matmul_strided", "column + width, g", "column, g"),
    fault("strides are swapped", "conv2d_direct", "out_y * params.stride_y", "out_y * params.stride_x"),
    fault("one row below the picture counts", "conv2d_direct", "in_y >= params.height", "in_y > params.height"),
    fault("windows of negative values have a largest value of 0", "max_pool2d", "v, unseen", "max(v, 0.0), unseen"),
    fault("no barrier between the levels of a sum", "softmax_workgroup", BARRIER_IN_SUM, NO_BARRIER_IN_SUM),
    fault("the largest value is not taken out", "softmax_workgroup", "let top = ", "let top = 0.0 * "),
    fault("deviations are not squared", "layer_norm_workgroup", "squares += d * d", "squares += d"),
    fault("some elements count twice", "reduce_workgroup", "j += 64u", "j += 63u"),
    fault("both halves are the first", "geglu", "x[first + params.width]", "x[first]"),
    fault("rotated the other way round", "rotary", "vec2(-v.y, v.x)", "vec2(v.y, -v.x)"),
    fault("a query does not see its own key", "attention_tile", "key <= vec4(row)", "key < vec4(row)"),
];

/// Whether any check in f32 fails with the fault; `None` where no check's shader has the text.
async fn noticed(device: &Device, fault: &Fault) -> Option<bool> {
    let mut there = false;
    for check in checks(device.capabilities()).unwrap() {
        let uses = check.variant.dispatches.iter().any(|d| d.shader == fault.shader);
        if !uses || check.storage != Storage::F32 || check.skipped.is_some() {
            continue;
        }
        let inputs = check.case.inputs(check.storage).unwrap();
        let types: Vec<TensorType> = inputs.iter().map(HostTensor::tensor_type).collect();
        let output = check.case.operator.infer(&types).unwrap();
        let changed = std::cell::Cell::new(false);
        let edit = |shader: &str, text: &str| {
            let edited = if shader == fault.shader { text.replace(fault.from, fault.to) } else { text.to_owned() };
            changed.set(changed.get() || edited != text);
            edited
        };
        let run = run_single_edited(device, &check.variant, &inputs, &output, &edit).await;
        there |= changed.get();
        let run = run.unwrap_or_else(|e| panic!("{}: {e}", fault.what));
        let want = reference(&check.case, &inputs).unwrap();
        if !compare(&run.output, &want, check.case.tolerance, run.stray_bytes).passed() {
            assert!(changed.get(), "{}: {} fails without it", fault.what, check.id);
            return Some(true);
        }
    }
    there.then_some(false)
}

#[test]
fn every_planted_fault_is_noticed() {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let missed: Vec<_> = FAULTS
        .iter()
        .filter_map(|fault| {
            // Each on a device of its own, which it may spoil.
            let device = pollster::block_on(Device::open(&selector, DeviceOptions::default())).unwrap();
            match pollster::block_on(noticed(&device, fault)) {
                Some(true) => None,
                Some(false) => Some(format!("{}: {}", fault.shader, fault.what)),
                None => Some(format!("{}: has no `{}`", fault.shader, fault.from)),
            }
        })
        .collect();
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
}
