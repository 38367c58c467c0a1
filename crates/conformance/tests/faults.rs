//! Faults planted on purpose: each of these changes of a shader must fail some check of its operator.

use pulid_conformance::{checks, compare, reference};
use pulid_engine::{Device, DeviceOptions, run_single_edited};
use pulid_ops::Storage;
use pulid_tensor::{HostTensor, TensorType};

/// A change of one shader's text.
struct Fault {
    what: &'static str,
    storage: Storage,
    /// A part of the names of the cases that must notice: of all by the empty one.
    cases: &'static str,
    shader: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn fault(what: &'static str, shader: &'static str, from: &'static str, to: &'static str) -> Fault {
    stored(Storage::F32, what, shader, from, to)
}

/// A fault of what reads weights of a storage mode.
const fn stored(
    storage: Storage,
    what: &'static str,
    shader: &'static str,
    from: &'static str,
    to: &'static str,
) -> Fault {
    Fault { what, storage, cases: "", shader, from, to }
}

/// A fault of what is added for each image and channel, the time embedding.
const fn per_image(storage: Storage, shader: &'static str, from: &'static str, to: &'static str) -> Fault {
    Fault { cases: "per_image", ..stored(storage, "every image has the first one's residual", shader, from, to) }
}

const BARRIER_IN_SUM: &str = "partial[lane + half];\n        }\n        workgroupBarrier();";
const NO_BARRIER_IN_SUM: &str = "partial[lane + half];\n        }";

const BLOCK: &str = "(row >> 5u)";
const NIBBLES: &str = "vec4(half, half >> 4u, half >> 8u, half >> 12u)";
const SWAPPED_NIBBLES: &str = "vec4(half >> 4u, half, half >> 12u, half >> 8u)";

const BY_IMAGE: &str = "return p / (package_shared__1conv2d_tile_params.out_height";
const BY_THE_FIRST: &str = "return 0u * p / (package_shared__1conv2d_tile_params.out_height";

const FAULTS: [Fault; 84] = [
    fault("one element too many is written", "permute", "if i < params.count", "if i <= params.count"),
    fault("near and far axes are swapped", "permute", "params.x_near, params.x_far", "params.x_far, params.x_near"),
    fault("the padding in front is forgotten", "pad", "p.near - params.before_near", "p.near"),
    fault("the last row is never taken", "gather", "params.rows - 1u", "params.rows - 2u"),
    fault("operands begin where the first does", "concat", "+ params.start ", ""),
    fault(
        "no barrier before a tile is read",
        "matmul_workgroup_tile",
        "r.w3);\n    }\n    workgroupBarrier();",
        "r.w3);\n    }",
    ),
    fault(
        "all copies of a tile lie where the first does",
        "matmul_workgroup_tile",
        "cell(index) + i * package_shared__1workgroup_tile_INVOCATIONS",
        "cell(index)",
    ),
    fault(
        "rows below the last are stored",
        "matmul_workgroup_tile",
        "row < package_shared__1matmul_tile_params.m && ",
        "",
    ),
    fault("the last steps of a product are left out", "matmul_workgroup_tile", "step < p.end4", "step + 4u < p.end4"),
    fault("values are gates and gates values", "matmul_workgroup_tile", "sum.low, sum.high", "sum.high, sum.low"),
    fault(
        "a transposed operand's steps are all the first",
        "matmul_workgroup_tile",
        "let at = first ^ k;",
        "let at = first;",
    ),
    fault("steps past the end count", "matmul_workgroup_tile", "l.keep = rows < vec4(4u * end4);", ""),
    fault("a transposed operand's rows lie apart", "matmul_workgroup_tile", "return 4u * lane.y;", "return lane.y;"),
    fault("the gradient's taps are not flipped", "conv2d_workgroup_tile", "(last - min(t.number, last))", "t.number"),
    fault("nothing lies between a stride's rows", "conv2d_workgroup_tile", " && !between", ""),
    fault("a window's rows of taps follow each other in x", "conv2d_workgroup_tile", "n.at += a.after_row;", ""),
    fault("the last part of the inner axis is left out", "split_k_reduce", "p < params.parts", "p < params.parts - 1u"),
    fault(
        "values are their own gates",
        "matmul_register_tile",
        "column4 + package_shared__1matmul_tile_width4(), g)",
        "column4, g)",
    ),
    fault("upper rows are the lower ones", "matmul_register_tile", "sums.high, gates.high", "sums.low, gates.high"),
    fault("upper pixels are the lower ones", "conv2d_register_tile", "o4, high)", "o4, low)"),
    fault("pixels beside the image count", "conv2d_winograd_input", "column < ", "column <= "),
    fault("the middle taps are left out", "conv2d_winograd_weight", "let inner = 0.5 * r1", "let inner = 0.0 * r1"),
    fault("pixels past the edge are stored", "conv2d_winograd_output", "column >= ", "column > "),
    fault("values are their own gates", "matmul_strided", "column + width, g", "column, g"),
    fault("strides are swapped", "conv2d_direct", "out_y * params.stride_y", "out_y * params.stride_x"),
    per_image(Storage::F32, "conv2d_register_tile", BY_IMAGE, BY_THE_FIRST),
    per_image(Storage::F32, "conv2d_workgroup_tile", BY_IMAGE, BY_THE_FIRST),
    per_image(Storage::F32, "conv2d_few_outputs", BY_IMAGE, BY_THE_FIRST),
    per_image(Storage::F32, "conv2d_direct", "residual[n * params.out_channels + o]", "residual[o]"),
    per_image(Storage::F32, "split_k_reduce", "row / params.image * width4 + ", ""),
    fault("one row below the image counts", "conv2d_direct", "in_y >= params.height", "in_y > params.height"),
    fault("windows of negative values have a largest value of 0", "max_pool2d", "v, unseen", "max(v, 0.0), unseen"),
    fault("no barrier between the levels of a sum", "softmax_workgroup", BARRIER_IN_SUM, NO_BARRIER_IN_SUM),
    fault("the largest value is not taken out", "softmax_workgroup", "let top = ", "let top = 0.0 * "),
    fault("deviations are not squared", "layer_norm_workgroup", "squares += d * d", "squares += d"),
    fault("some elements count twice", "reduce_workgroup", "j += 64u", "j += 63u"),
    fault("both halves are the first", "geglu", "x[first + params.width]", "x[first]"),
    fault("rotated the other way round", "rotary", "vec2(-v.y, v.x)", "vec2(v.y, -v.x)"),
    fault(
        "the softmax's sum has no gradient",
        "attention_query_gradient_tile",
        "slope - dots[statistics + query]",
        "slope",
    ),
    fault("a chunk of queries is left out", "attention_key_value_combine", "chunk = 1u", "chunk = 2u"),
    fault("keys of zeros do not count", "attention_log_sum", "var sum = params.zero_keys", "var sum = 0.0"),
    fault("the ratio's divisor has no gradient", "identity_gradient_apply", " - 2.0 * ratio * base", ""),
    fault("the softmax's sum has no gradient", "identity_score_gradient", "own - first / sum", "own"),
    fault("a cosine's slope has a sine's sign", "time_embedding_gradient", "- of_cosine", "+ of_cosine"),
    fault("steps are taken for columns", "matmul_transposed_register_tile", "transpose(", "("),
    fault("a row of the left operand is another", "matmul_left_transposed_tile", "x.z * w", "x.y * w"),
    fault(
        "steps past the last four are left out",
        "matmul_left_transposed_subgroup_tile",
        "; k < params.k;",
        "; k + 4u < params.k;",
    ),
    fault("a query does not see its own key", "attention_tile", "key <= vec4(row)", "key < vec4(row)"),
    fault("a query does not see its own key", "attention_workgroup_tile", "key <= vec4(row)", "key < vec4(row)"),
    fault("keys that are read again count again", "attention_workgroup_tile", "key >= vec4(first)", "key >= vec4(0u)"),
    fault("sums are not rescaled", "attention_workgroup_tile", "exp2(before.low - top.low)", "exp2(top.low - top.low)"),
    fault("both halves of the values weigh the same", "attention_workgroup_tile", "4u * half + i", "i"),
    fault(
        "a lane's row is another's",
        "matmul_subgroup_tile",
        "subgroupBroadcast(own, 7u)",
        "subgroupBroadcast(own, 6u)",
    ),
    fault("the last row of a tile is that before it", "matmul_subgroup_tile", "r == 7u", "r == 8u"),
    fault(
        "a tile's last row is not stored",
        "matmul_subgroup_tile",
        "let end = min(row + 8u, ",
        "let end = min(row + 7u, ",
    ),
    fault(
        "values are their own gates",
        "matmul_subgroup_tile",
        "column4 + package_shared__1matmul_tile_width4(), g, lane)",
        "column4, g, lane)",
    ),
    fault(
        "a lane's pixel is another's",
        "conv2d_subgroup_tile",
        "subgroupBroadcast(own, 3u)",
        "subgroupBroadcast(own, 2u)",
    ),
    fault("pixels beside the image count", "conv2d_subgroup_tile", ", low_in)", ", true)"),
    fault(
        "the upper half of a tall tile is the lower",
        "conv2d_subgroup_tile",
        "row_of(high_sums, ",
        "row_of(low_sums, ",
    ),
    fault(
        "sums keep what an earlier maximum made of them",
        "attention_subgroup_tile",
        "let keep = exp(top - next)",
        "let keep = exp(0.0 * (top - next))",
    ),
    fault(
        "a query's sum is another's",
        "attention_subgroup_tile",
        "subgroupShuffle(scale, i)",
        "subgroupShuffle(scale, 0u)",
    ),
    fault("the second block of columns is the first", "attention_subgroup_tile", "min(lane + 8u, ", "min(lane, "),
    fault(
        "the last keys are those before them",
        "attention_subgroup_tile",
        "min(first + 24u + lane, past)",
        "min(first + 16u + lane, past)",
    ),
    fault("rows of a chunk are left out", "identity_sums", "t++", "t += 2u"),
    fault("values are not squared", "identity_sums", "square += v * v", "square += v"),
    fault("the first chunk stands for all", "identity_ratio", "k < params.chunks", "k < min(params.chunks, 1u)"),
    fault("a ratio by nothing", "identity_ratio", "square > 0.0", "square >= 0.0"),
    fault("six keys are first", "identity_weight", "vec4(5u)", "vec4(6u)"),
    fault("keys past the end count", "identity_weight", "index <= vec4(last)", "index <= vec4(last + 3u)"),
    fault("keys of zeros are forgotten", "identity_weight", "var sum = params.zero_keys", "var sum = 0.0"),
    fault("every image has the first one's strength", "identity_apply", "scale[b]", "scale[0]"),
    fault("every image has the first one's ratio", "identity_apply", "ratio[b * params.width + ", "ratio["),
    stored(Storage::Q8Weights, "blocks take the scale before theirs", "matmul_register_tile", BLOCK, "(row >> 6u)"),
    stored(Storage::Q8Weights, "blocks take the scale before theirs", "conv2d_workgroup_tile", BLOCK, "(row >> 6u)"),
    stored(Storage::Q8Weights, "taps take the first one's scales", "conv2d_workgroup_tile", "(rows >> 5u)", "0u"),
    stored(Storage::Q8Weights, "columns take their neighbours' scales", "conv2d_register_tile", "[at + 1u]", "[at]"),
    stored(Storage::Q4Weights, "blocks take the scale before theirs", "matmul_subgroup_tile", BLOCK, "(row >> 6u)"),
    stored(Storage::Q4Weights, "nibbles are swapped", "matmul_register_tile", NIBBLES, SWAPPED_NIBBLES),
    stored(Storage::Q4Weights, "odd rows are even ones", "matmul_workgroup_tile", "(row & 1u)", "0u"),
    fault(
        "the last element of a tensor is left out",
        "sum_of_squares_partial",
        "params.chunk, params.count)",
        "params.chunk, params.count - 1u)",
    ),
    fault("all tensors' sums lie where the first's do", "sum_of_squares_partial", "params.first + i", "i"),
    fault("elements that are not finite are summed", "sum_of_squares_partial", "2139095040u)", "0u)"),
    fault("a sum that overflows is not told", "sum_of_squares_combine", "select(broken, 1.0", "select(broken, broken"),
    fault("an operand of weight zero is read", "weighted_sum", "weights[1] != 0.0", "true"),
];

const BARRIER_AFTER_COPY: &str = "index);\n        workgroupBarrier();\n";
const NO_BARRIER_AFTER_COPY: &str = "index);\n";

/// A fault of a kernel with cooperative matrices.
const fn cooperative(what: &'static str, shader: &'static str, from: &'static str, to: &'static str) -> Fault {
    stored(Storage::F16, what, shader, from, to)
}

const ZERO_KEYS: &str = "package_shared_attention_params.zero_keys, 0.0";

const COOPERATIVE_FAULTS: [Fault; 19] = [
    cooperative("no barrier before a tile is read", "matmul_cooperative", BARRIER_AFTER_COPY, NO_BARRIER_AFTER_COPY),
    cooperative(
        "every step multiplies the first columns",
        "matmul_cooperative",
        "LEFTWIDTH + k8,",
        "LEFTWIDTH * 0u + k8,",
    ),
    cooperative(
        "a matrix takes its neighbour's columns",
        "matmul_cooperative",
        "(a1_in2, b1_in2, ",
        "(a1_in2, b0_in2, ",
    ),
    cooperative("the second row of matrices is the first", "matmul_cooperative", "= sums_4;", "= sums_0;"),
    cooperative(
        "values are their own gates",
        "matmul_cooperative",
        "staged(t.subgroup, r, c + package_shared__1cooperative_tile_SIZE / 4u)",
        "staged(t.subgroup, r, c)",
    ),
    cooperative(
        "rows below the last are stored",
        "matmul_cooperative",
        "row < package_shared__1matmul_tile_params.m && ",
        "",
    ),
    cooperative("no barrier before a tile is read", "conv2d_cooperative", BARRIER_AFTER_COPY, NO_BARRIER_AFTER_COPY),
    cooperative(
        "pixels below the image count",
        "conv2d_cooperative",
        "w.y + t.dy < package_shared__1conv2d_tile_params.height && ",
        "",
    ),
    per_image(Storage::F16, "conv2d_cooperative", BY_IMAGE, BY_THE_FIRST),
    cooperative(
        "the gradient's taps are not flipped",
        "conv2d_cooperative",
        "params.kernel_width - 1u - t)",
        "params.kernel_width - 1u - 0u * t)",
    ),
    cooperative(
        "a transposed operand's columns are the first ones",
        "matmul_cooperative",
        "column * package_shared__1cooperative_tile_COLUMNS + index",
        "index",
    ),
    stored(
        Storage::F16Q8Weights,
        "blocks take the scale before theirs",
        "matmul_cooperative",
        "row_of(p, i) >> 5u)",
        "row_of(p, i) >> 6u)",
    ),
    cooperative("a tap begins where the last one ended", "conv2d_cooperative", "next.channel8 = 0u;", ""),
    cooperative("a row of taps begins where the last one ended", "conv2d_cooperative", "next.dx = 0u;", ""),
    cooperative("keys past the end count", "attention_cooperative", "first + BLOCK > end", "first > end"),
    cooperative("a query does not see its own key", "attention_cooperative", "key <= vec4(row)", "key < vec4(row)"),
    cooperative("keys of zeros are forgotten", "attention_cooperative", ZERO_KEYS, "0.0, 0.0"),
    cooperative("some keys weigh what their neighbours do", "attention_cooperative", "FOUR, s.s7,", "FOUR, s.s6,"),
    cooperative(
        "sums keep what an earlier maximum made of them",
        "attention_cooperative",
        "put_score(at_in2, score(at_in2) * kept(r_in2).z)",
        "put_score(at_in2, score(at_in2))",
    ),
];

/// Whether any check in the fault's storage fails with the fault; `None` where no check's shader has the text.
async fn noticed(device: &Device, fault: &Fault) -> Option<bool> {
    let mut there = false;
    for check in checks(device.capabilities()).unwrap() {
        let uses = check.variant.dispatches.iter().any(|d| {
            let has = d.shader_info().is_ok_and(|shader| shader.wgsl.contains(fault.from));
            d.shader == fault.shader && has
        });
        // The other tiles of cooperative kernels are the same text, which takes a second to compile for each.
        let other_tile = fault.shader.ends_with("_cooperative") && check.variant.name != "small_cooperative";
        let other_case = !check.case.name.contains(fault.cases);
        if !uses || other_tile || other_case || check.storage != fault.storage || check.skipped.is_some() {
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

fn open() -> Device {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    pollster::block_on(Device::open(&selector, DeviceOptions::default())).unwrap()
}

/// The faults, in words, that no check notices.
fn missed(faults: &[Fault]) -> Vec<String> {
    faults
        .iter()
        .filter_map(|fault| {
            // Each on a device of its own, which it may spoil.
            let device = open();
            // No check runs these kernels elsewhere.
            if fault.shader.ends_with("_subgroup_tile") && device.capabilities().subgroup_lanes != 8 {
                return None;
            }
            println!("{}: {}", fault.shader, fault.what);
            match pollster::block_on(noticed(&device, fault)) {
                Some(true) => None,
                Some(false) => Some(format!("{} in {}: {}", fault.shader, fault.storage.name(), fault.what)),
                None => Some(format!("{}: has no `{}`", fault.shader, fault.from)),
            }
        })
        .collect()
}

#[test]
fn every_planted_fault_is_noticed() {
    let missed = missed(&FAULTS);
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
}

/// Few devices have cooperative matrices; `cargo xtask coop` brings one, and says so by `PULID_TEST_COOPERATIVE`.
#[test]
fn every_planted_fault_of_cooperative_kernels_is_noticed() {
    let has_matrices = open().capabilities().cooperative_size > 0;
    if !has_matrices && std::env::var_os("PULID_TEST_COOPERATIVE").is_none() {
        println!("left out: the device has no cooperative matrices");
        return;
    }
    assert!(has_matrices, "the device has no cooperative matrices");
    let missed = missed(&COOPERATIVE_FAULTS);
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
}
