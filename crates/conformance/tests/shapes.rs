//! Random shapes and attributes: every kernel variant agrees with its reference at sizes nobody picked, and operands of any
//! shape are either computed or refused, never a panic. The random numbers are the same in every run.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use pulid_conformance::{Check, variants};
use pulid_engine::{Device, DeviceOptions};
use pulid_ops::{
    Activation, Attention, AveragePool2d, BatchNorm, Binary, BinaryFunction, Capabilities, Case, Concat, Conv2d,
    Coordinates, Expand, Fill, Gather, GeGlu, GroupApply, GroupNorm, GroupStatistics, IdentityProjection,
    Interpolation, L2Normalize, LayerNorm, MatMul, MaxPool2d, Operand, Operator, Ortho, PRelu, Pad, Permute, Reduce,
    Reduction, Resize2d, Rotary, Rounding, Select, Slice, Softmax, Storage, SwiGlu, Tolerance, UpsampleNearest,
};
use pulid_tensor::{DType, TensorType};
use std::sync::OnceLock;

/// Shapes tried of each operator.
const SHAPES: u32 = 16;

fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
        pollster::block_on(Device::open(&selector, DeviceOptions::default())).expect("a device that runs shaders")
    })
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Runs every variant of every generated case, in f32 and in half precision: where there is a weight, half of the cases in f16 and
/// half with packed weights, else all in f16, if the device has it.
fn agree(cases: impl Strategy<Value = Case>) {
    agree_within(device().capabilities(), cases);
}

/// As [`agree`], lowered for a device of these capabilities.
fn agree_within(capabilities: &Capabilities, cases: impl Strategy<Value = Case>) {
    let run = |case: Case| {
        // Compiling is most of the work here. The same case always runs in the same types.
        let packed = case.has_weight() && (case.name.len() % 2 == 0 || !capabilities.shader_f16);
        let half = if packed { Storage::PackedWeights } else { Storage::F16 };
        let there = packed || capabilities.shader_f16;
        for storage in [Some(Storage::F32), there.then_some(half)].into_iter().flatten() {
            let found = variants(&case, storage, capabilities);
            for variant in found.map_err(|e| TestCaseError::fail(format!("{}: {e}", case.name)))? {
                let id = format!("{} {}: {}", variant.name, storage.name(), case.name);
                let check = Check { id: id.clone(), case: case.clone(), storage, variant, skipped: None };
                let result = pollster::block_on(check.run(device()));
                let result = result.map_err(|e| TestCaseError::fail(format!("{id}: {e}")))?;
                prop_assert!(result.passed(), "{}: {}", id, result);
            }
        }
        Ok(())
    };
    if let Err(e) = runner(SHAPES).run(&cases, run) {
        panic!("{e}");
    }
}

fn activation() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::None),
        Just(Activation::Silu),
        Just(Activation::Gelu),
        Just(Activation::LeakyRelu(0.1))
    ]
}

#[test]
fn matmul() {
    let sizes = (1..4usize, 1..70usize, 1..70usize, 1..70usize);
    agree((sizes, any::<[bool; 5]>(), activation()).prop_map(
        |((b, m, k, width), [t, bias, residual, batched, gated], activation)| {
            let operator = MatMul { transpose_b: t, bias, residual, activation, gated, ..MatMul::default() };
            let n = if gated { 2 * width } else { width };
            let right = if t { [n, k] } else { [k, n] };
            let right = match batched {
                true => Operand::activation([b, right[0], right[1]]),
                false => Operand::weight(right),
            };
            let mut operands = vec![Operand::activation([b, m, k]), right];
            operands.extend(bias.then(|| Operand::parameter([n])));
            operands.extend(residual.then(|| Operand::activation([b, m, width])));
            Case::new(format!("[{b}, {m}, {k}] {operator:?} n={n}"), operator, operands, Tolerance::Sum(k))
        },
    ));
}

#[test]
fn conv2d() {
    agree(convolutions());
    // So few workgroups that they fold into layers, as those of images of a megapixel do: the last layer is not full.
    agree_within(&Capabilities { max_workgroups: 3, ..device().capabilities().clone() }, convolutions());
}

fn convolutions() -> impl Strategy<Value = Case> {
    let sizes = (1..3usize, 1..14usize, 1..14usize, 1..4usize, 1..9usize, 1..9usize);
    let window = (1..4usize, 1..4usize, 1..3usize, 1..3usize, any::<[u8; 4]>());
    let flags = (any::<[bool; 3]>(), activation());
    (sizes, window, flags).prop_filter_map("the window is larger than the image", |(sizes, window, flags)| {
        let (batch, h, w, groups, ci, co) = sizes;
        let (kh, kw, stride, dilation, padding) = window;
        let ([bias, residual, quads], activation) = flags;
        // The tiled kernels take whole vec4 of channels and one group.
        let (groups, ci, co) = if quads { (1, 4 * ci, 4 * co) } else { (groups, ci, co) };
        let padding = padding.map(|p| usize::from(p) % 3);
        let operator =
            Conv2d { stride: [stride, 1], dilation: [1, dilation], padding, groups, bias, activation, residual };
        let x = Operand::activation([batch, h, w, ci * groups]);
        let mut operands = vec![x, Operand::weight([kh, kw, ci, co * groups])];
        operands.extend(bias.then(|| Operand::parameter([co * groups])));
        let out = |size: usize, before: usize, after: usize, window: usize, stride: usize| {
            Some((size + before + after).checked_sub(window)? / stride + 1)
        };
        let rows = out(h, padding[0], padding[2], kh, stride)?;
        let columns = out(w, padding[1], padding[3], (kw - 1) * dilation + 1, 1)?;
        operands.extend(residual.then(|| Operand::activation([batch, rows, columns, co * groups])));
        let name = format!("[{batch}, {h}, {w}, {ci}x{groups}] {operator:?} {kh}x{kw} to {co}x{groups}");
        Some(Case::new(name, operator, operands, Tolerance::Sum(kh * kw * ci)))
    })
}

#[test]
fn attention() {
    let sizes = (1..3usize, 1..40usize, 1..90usize, 1..4usize, 1..21usize);
    agree((sizes, any::<[bool; 2]>(), 0..9u32).prop_map(|((b, tq, tk, heads, quads), [causal, mask], zero_keys)| {
        let (tk, width) = (if causal { tq } else { tk }, heads * quads * 4);
        let operator = Attention { causal, mask, zero_keys, ..Attention::new(heads) };
        let mut operands = vec![
            Operand::activation([b, tq, width]),
            Operand::activation([b, tk, width]),
            Operand::activation([b, tk, width]),
        ];
        operands.extend(mask.then(|| Operand::activation([1, heads, tq, tk])));
        Case::new(format!("[{b}, {tq}, {width}] tk={tk} {operator:?}"), operator, operands, Tolerance::Transcendental)
    }));
}

/// A software driver makes 65,535 turns of an invocation's loops at most: sums over more are shared by a workgroup.
#[test]
fn reductions_are_longer_than_a_loop_may_be() {
    // The last in two loops, neither of which is that long.
    for (shape, axes) in [(vec![3, 70_001], vec![1]), (vec![3, 70_001], vec![0, 1]), (vec![40_001, 3, 2], vec![0, 2])] {
        let operator = Reduce { reduction: Reduction::Mean, axes, keep_dims: false };
        let case = Case::new("long", operator, vec![Operand::activation(shape)], Tolerance::Sum(210_003));
        let found = variants(&case, Storage::F32, device().capabilities()).unwrap();
        assert!(!found.is_empty());
        for variant in found {
            let (id, storage) = (variant.name.to_owned(), Storage::F32);
            let check = Check { id: id.clone(), case: case.clone(), storage, variant, skipped: None };
            let result = pollster::block_on(check.run(device())).unwrap();
            assert!(result.passed(), "{id}: {result}");
        }
    }
}

#[test]
fn norms_and_softmax() {
    let sizes = (1..3usize, 1..9usize, 1..9usize, 1..6usize, 1..12usize);
    agree((sizes, any::<bool>(), activation()).prop_map(|((b, h, w, groups, each), affine, activation)| {
        let channels = groups * each;
        let operator = GroupNorm { groups, eps: 1e-5, affine, activation };
        let mut operands = vec![Operand::activation([b, h, w, channels])];
        let parameters = if affine { 2 } else { 0 };
        operands.extend((0..parameters).map(|_| Operand::parameter([channels])));
        let name = format!("[{b}, {h}, {w}, {channels}] {operator:?}");
        Case::new(name, operator, operands, Tolerance::Sum(h * w * each))
    }));
    agree((1..30usize, 1..300usize, any::<[bool; 2]>()).prop_map(|(rows, width, [gain, bias])| {
        let operator = LayerNorm { eps: 1e-5, gain, bias };
        let mut operands = vec![Operand::activation([rows, width])];
        operands.extend((0..usize::from(gain) + usize::from(bias)).map(|_| Operand::parameter([width])));
        Case::new(format!("[{rows}, {width}] {operator:?}"), operator, operands, Tolerance::Sum(width))
    }));
    agree((1..30usize, 1..300usize).prop_map(|(rows, width)| {
        let operands = vec![Operand::activation([rows, width])];
        Case::new(format!("[{rows}, {width}]"), Softmax, operands, Tolerance::Transcendental)
    }));
}

#[test]
fn broadcasting() {
    let functions = prop_oneof![
        Just(BinaryFunction::Add),
        Just(BinaryFunction::Sub),
        Just(BinaryFunction::Mul),
        Just(BinaryFunction::Max)
    ];
    agree((vec((1..7usize, 0..3u8), 1..5), functions, activation()).prop_map(|(axes, function, activation)| {
        // Each axis is full on both sides, or 1 on one of them.
        let side = |one: u8| axes.iter().map(|&(n, kind)| if kind == one { 1 } else { n }).collect::<Vec<_>>();
        let (a, b) = (side(1), side(2));
        let operator = Binary { function, activation };
        let name = format!("{a:?} {operator:?} {b:?}");
        let operands = vec![Operand::activation(a), Operand::activation(b)];
        Case::new(name, operator, operands, Tolerance::Transcendental)
    }));
}

#[test]
fn movement() {
    agree((vec(1..6usize, 1..5), 0..4usize, 1..6usize).prop_map(|(shape, axis, other)| {
        let axis = axis % shape.len();
        let mut second = shape.clone();
        second[axis] = other;
        let name = format!("{shape:?} and {second:?} along {axis}");
        let operands = vec![Operand::activation(shape), Operand::activation(second)];
        Case::new(name, Concat { axis }, operands, Tolerance::Exact)
    }));
    agree((vec(1..9usize, 4), Just(vec![0, 1, 2, 3]).prop_shuffle()).prop_map(|(shape, order)| {
        let name = format!("{shape:?} by {order:?}");
        Case::new(name, Permute { order }, vec![Operand::activation(shape)], Tolerance::Exact)
    }));
    agree((vec((1..9usize, 0..9usize, 1..3usize), 1..5)).prop_map(|axes| {
        let shape: Vec<_> = axes.iter().map(|a| a.0).collect();
        let starts: Vec<_> = axes.iter().map(|a| a.1 % a.0).collect();
        let steps: Vec<_> = axes.iter().map(|a| a.2).collect();
        let sizes = (0..axes.len()).map(|i| (shape[i] - starts[i]).div_ceil(steps[i])).collect();
        let operator = Slice { starts, sizes, steps };
        Case::new(format!("{shape:?} {operator:?}"), operator, vec![Operand::activation(shape)], Tolerance::Exact)
    }));
    agree((vec((1..6usize, 0..4usize, 0..4usize), 1..5)).prop_map(|axes| {
        let shape: Vec<_> = axes.iter().map(|a| a.0).collect();
        let operator =
            Pad { before: axes.iter().map(|a| a.1).collect(), after: axes.iter().map(|a| a.2).collect(), value: 0.5 };
        Case::new(format!("{shape:?} {operator:?}"), operator, vec![Operand::activation(shape)], Tolerance::Exact)
    }));
}

#[test]
fn gathering_and_repeating() {
    let tables = (1..9usize, vec(1..5usize, 0..3), vec(1..6usize, 0..3), any::<bool>());
    agree(tables.prop_map(|(rows, row, indices, widened)| {
        let shape = [&[rows], &row[..]].concat();
        let operator = if widened { Gather::to_f32() } else { Gather::default() };
        let name = format!("{shape:?} by {indices:?} {operator:?}");
        let table = if widened { Operand::weight(shape) } else { Operand::activation(shape) };
        Case::new(name, operator, vec![table, Operand::index(indices, rows as u32)], Tolerance::Exact)
    }));
    agree((vec((1..6usize, any::<bool>()), 1..6), 0..2usize).prop_map(|(axes, new)| {
        let to: Vec<_> = axes.iter().map(|a| a.0).collect();
        let from: Vec<_> = axes.iter().skip(new).map(|&(n, repeated)| if repeated { 1 } else { n }).collect();
        let operands = vec![Operand::activation(from.clone())];
        Case::new(format!("{from:?} to {to:?}"), Expand::new(to), operands, Tolerance::Exact)
    }));
}

#[test]
fn resize() {
    let round = [Rounding::Floor, Rounding::Ceil, Rounding::RoundPreferFloor, Rounding::RoundPreferCeil];
    let ways = prop_oneof![
        prop::sample::select(round.to_vec()).prop_map(Interpolation::Nearest),
        Just(Interpolation::Bilinear),
        Just(Interpolation::Bicubic(-0.75))
    ];
    let places =
        prop_oneof![Just(Coordinates::HalfPixel), Just(Coordinates::AlignCorners), Just(Coordinates::Asymmetric)];
    let sizes = (1..3usize, 1..12usize, 1..12usize, 1..9usize, 1..25usize, 1..25usize);
    agree((sizes, ways, places).prop_map(|((b, h, w, c, rows, columns), interpolation, coordinates)| {
        let operator = Resize2d { size: [rows, columns], interpolation, coordinates, scales: None };
        let name = format!("[{b}, {h}, {w}, {c}] {operator:?}");
        let tolerance = match interpolation {
            Interpolation::Nearest(_) => Tolerance::Exact,
            _ => Tolerance::Sum(16),
        };
        Case::new(name, operator, vec![Operand::activation([b, h, w, c])], tolerance)
    }));
    agree((1..3usize, 1..9usize, 1..9usize, 1..14usize, 1..5usize).prop_map(|(b, h, w, c, factor)| {
        let name = format!("[{b}, {h}, {w}, {c}] by {factor}");
        Case::new(name, UpsampleNearest { factor }, vec![Operand::activation([b, h, w, c])], Tolerance::Exact)
    }));
}

#[test]
fn pools() {
    let sizes = (1..3usize, 1..14usize, 1..14usize, 1..9usize);
    let window = (1..4usize, 1..4usize, 1..4usize, 1..4usize, 1..3usize, any::<[u8; 4]>());
    let flags = any::<[bool; 3]>();
    agree((sizes, window, flags).prop_filter_map("the window is larger than the image", |(sizes, window, flags)| {
        let (b, h, w, c) = sizes;
        let (kh, kw, sy, sx, dilation, padding) = window;
        let [largest, ceil_mode, count_include_pad] = flags;
        let (kernel, stride) = ([kh, kw], [sy, sx]);
        let dilation = if largest { dilation } else { 1 };
        // Less than a window on each side: top, left, bottom, right.
        let padding = std::array::from_fn(|side| usize::from(padding[side]) % ((kernel[side % 2] - 1) * dilation + 1));
        let x = vec![Operand::activation([b, h, w, c])];
        let case = match largest {
            true => {
                let operator = MaxPool2d { kernel, stride, dilation: [dilation; 2], padding, ceil_mode };
                Case::new(format!("[{b}, {h}, {w}, {c}] {operator:?}"), operator, x, Tolerance::Exact)
            }
            false => {
                let operator = AveragePool2d { kernel, stride, padding, ceil_mode, count_include_pad };
                Case::new(format!("[{b}, {h}, {w}, {c}] {operator:?}"), operator, x, Tolerance::Sum(kh * kw))
            }
        };
        case.operator.infer(&case.types(Storage::F32)).is_ok().then_some(case)
    }));
}

#[test]
fn reductions() {
    let functions = [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Product];
    let axes = vec((1..7usize, any::<bool>()), 1..6);
    let long = (1..5usize, 60..200usize).prop_map(|(rows, width)| vec![(rows, false), (width, true)]);
    let shapes = prop_oneof![3 => axes, 1 => long];
    agree((shapes, prop::sample::select(functions.to_vec()), any::<bool>()).prop_map(
        |(axes, reduction, keep_dims)| {
            let shape: Vec<_> = axes.iter().map(|a| a.0).collect();
            let reduced = (0..axes.len()).filter(|&i| axes[i].1).collect::<Vec<_>>();
            let length: usize = reduced.iter().map(|&i| shape[i]).product();
            let operator = Reduce { reduction, axes: reduced, keep_dims };
            let name = format!("{shape:?} {operator:?}");
            // Sums that do not cancel, and products that stay in range.
            let x = Operand::activation(shape).fill(match reduction {
                Reduction::Product => Fill::Uniform(0.9, 1.1),
                _ => Fill::Uniform(0.1, 2.0),
            });
            let tolerance = if reduction == Reduction::Max { Tolerance::Exact } else { Tolerance::Sum(length) };
            Case::new(name, operator, vec![x], tolerance)
        },
    ));
}

#[test]
fn gates_and_slopes() {
    let shapes = || vec(1..9usize, 1..5);
    agree(shapes().prop_map(|mut shape| {
        *shape.last_mut().unwrap() *= 2;
        Case::new(format!("{shape:?}"), GeGlu, vec![Operand::activation(shape)], Tolerance::Transcendental)
    }));
    agree(shapes().prop_map(|shape| {
        let operands = vec![Operand::activation(shape.clone()); 2];
        Case::new(format!("{shape:?}"), SwiGlu, operands, Tolerance::Transcendental)
    }));
    agree(shapes().prop_map(|shape| {
        let slope = Operand::parameter([shape[shape.len() - 1]]);
        let operands = vec![Operand::activation(shape.clone()), slope];
        Case::new(format!("{shape:?}"), PRelu, operands, Tolerance::Pointwise)
    }));
    // The condition and both sides are full along each axis, or 1.
    agree(vec((1..7usize, any::<[bool; 3]>()), 1..5).prop_map(|axes| {
        let side = |i: usize| axes.iter().map(|&(n, shared)| if shared[i] { 1 } else { n }).collect::<Vec<usize>>();
        let [condition, a, b] = [0, 1, 2].map(side);
        let name = format!("{condition:?} ? {a:?} : {b:?}");
        let condition = Operand::activation(condition).fill(Fill::Values(vec![0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]));
        Case::new(name, Select, vec![condition, Operand::activation(a), Operand::activation(b)], Tolerance::Exact)
    }));
}

#[test]
fn rotary() {
    agree((1..4usize, 1..20usize, 1..5usize, 1..9usize).prop_map(|(b, t, heads, pairs)| {
        let table = || Operand::parameter([t, 2 * pairs]).fill(Fill::Uniform(-1.0, 1.0));
        let operands = vec![Operand::activation([b, t, heads * 2 * pairs]), table(), table()];
        Case::new(format!("[{b}, {t}, {heads} x {}]", 2 * pairs), Rotary { heads }, operands, Tolerance::Pointwise)
    }));
}

#[test]
fn identity_projection() {
    let modes = [Ortho::Off, Ortho::V1, Ortho::V2];
    let sizes = (1..3usize, 1..40usize, 1..25usize);
    let keys = (1..40usize, 1..4usize, 1..17usize, 0..21u32);
    agree((sizes, keys, prop::sample::select(modes.to_vec())).prop_map(
        |((b, t, c), (keys, heads, d, zero_keys), mode)| {
            let operator = IdentityProjection { mode, heads, zero_keys };
            let mut operands = vec![Operand::activation([b, t, c]); 2];
            operands.push(Operand::parameter([b]).fill(Fill::Uniform(0.0, 1.5)));
            if mode == Ortho::V2 {
                let part = |tokens| Operand::activation([b, tokens, heads * d]).fill(Fill::Normal(0.0, 0.7));
                operands.extend([part(t), part(keys)]);
            }
            let name = format!("[{b}, {t}, {c}] keys={keys} d={d} {operator:?}");
            Case::new(name, operator, operands, Tolerance::Transcendental)
        },
    ));
}

#[test]
fn norms_of_other_kinds() {
    agree((1..9usize, 1..300usize).prop_map(|(rows, width)| {
        let operands = vec![Operand::activation([rows, width])];
        Case::new(format!("[{rows}, {width}]"), L2Normalize::default(), operands, Tolerance::Sum(width))
    }));
    agree((vec(1..9usize, 1..5), activation()).prop_map(|(shape, activation)| {
        let vector = || Operand::parameter([shape[shape.len() - 1]]);
        let variance = vector().fill(Fill::Uniform(0.1, 3.0));
        let operands = vec![Operand::activation(shape.clone()), vector(), vector(), vector(), variance];
        let operator = BatchNorm { activation, ..BatchNorm::new(1e-5) };
        Case::new(format!("{shape:?} {operator:?}"), operator, operands, Tolerance::Transcendental)
    }));
    // Bands of one height but for the last, of one image; or whole images.
    let bands = (1..4usize, 1..12usize, 0..12usize, 1..9usize, 1..5usize, 1..9usize);
    agree(bands.prop_map(|(count, height, last, w, groups, each)| {
        let channels = groups * each;
        let band = |h: usize| Operand::activation([1, h, w, channels]);
        let mut operands: Vec<_> = (1..count).map(|_| band(height)).collect();
        operands.push(band(1 + last % height));
        operands.extend([Operand::parameter([channels]), Operand::parameter([channels])]);
        let operator = GroupStatistics { groups, eps: 1e-5 };
        let name = format!("{count} of {height}, last {}, {w}, {channels} {operator:?}", 1 + last % height);
        Case::new(name, operator, operands, Tolerance::Sum(count * height * w * each))
    }));
    agree((1..3usize, 1..99usize, 1..25usize, activation()).prop_map(|(b, rows, channels, activation)| {
        let operands = vec![Operand::activation([b, rows, channels]), Operand::parameter([2, b, channels])];
        let operator = GroupApply { activation };
        Case::new(format!("[{b}, {rows}, {channels}] {operator:?}"), operator, operands, Tolerance::Transcendental)
    }));
}

/// Every operator of the registry on operands it was not made for: wrong ranks, zero extents, other types, too few or many.
#[test]
fn any_operands_are_computed_or_refused() {
    let operators: Vec<Box<dyn Operator>> =
        pulid_ops::operators().flat_map(|(_, info)| (info.cases)().into_iter().map(|c| c.operator).take(4)).collect();
    let types = (vec(0..7usize, 0..6), prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::U32)])
        .prop_map(|(shape, dtype)| TensorType::new(dtype, shape));
    let operands = vec(types, 0..5);
    let refused_or_computed = |operands: Vec<TensorType>| {
        for operator in &operators {
            match operator.infer(&operands) {
                Ok(output) => prop_assert!(output.shape.count() < 1 << 40, "{} gives {}", operator.name(), output),
                Err(e) => prop_assert!(e.to_string().contains(operator.name()), "{} says {}", operator.name(), e),
            }
        }
        Ok(())
    };
    if let Err(e) = runner(400).run(&operands, refused_or_computed) {
        panic!("{e}");
    }
}
