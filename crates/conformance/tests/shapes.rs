//! Random shapes and attributes: every kernel variant agrees with its reference at sizes nobody picked, and operands of any
//! shape are either computed or refused, never a panic. The random numbers are the same in every run.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use pulid_conformance::{Check, variants};
use pulid_engine::{Device, DeviceOptions};
use pulid_ops::{
    Activation, Attention, Binary, BinaryFunction, Capabilities, Case, Concat, Conv2d, Coordinates, GroupNorm,
    Interpolation, LayerNorm, MatMul, Operand, Operator, Pad, Permute, Resize2d, Slice, Softmax, Storage, Tolerance,
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

/// Runs every variant of every generated case, in f32 and (where there is a weight) with packed weights.
fn agree(cases: impl Strategy<Value = Case>) {
    agree_within(device().capabilities(), cases);
}

/// As [`agree`], lowered for a device of these capabilities.
fn agree_within(capabilities: &Capabilities, cases: impl Strategy<Value = Case>) {
    let run = |case: Case| {
        let storages: &[Storage] =
            if case.has_weight() { &[Storage::F32, Storage::PackedWeights] } else { &[Storage::F32] };
        for &storage in storages {
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
    agree((sizes, any::<[bool; 4]>(), activation()).prop_map(
        |((b, m, k, n), [t, bias, residual, batched], activation)| {
            let operator = MatMul { transpose_b: t, bias, residual, activation, ..MatMul::default() };
            let right = if t { [n, k] } else { [k, n] };
            let right = match batched {
                true => Operand::activation([b, right[0], right[1]]),
                false => Operand::weight(right),
            };
            let mut operands = vec![Operand::activation([b, m, k]), right];
            operands.extend(bias.then(|| Operand::parameter([n])));
            operands.extend(residual.then(|| Operand::activation([b, m, n])));
            Case::new(format!("[{b}, {m}, {k}] {operator:?} n={n}"), operator, operands, Tolerance::Sum(k))
        },
    ));
}

#[test]
fn conv2d() {
    agree(convolutions());
    // So few workgroups that they fold into layers, as those of pictures of a megapixel do: the last layer is not full.
    agree_within(&Capabilities { max_workgroups: 3, ..device().capabilities().clone() }, convolutions());
}

fn convolutions() -> impl Strategy<Value = Case> {
    let sizes = (1..3usize, 1..14usize, 1..14usize, 1..4usize, 1..9usize, 1..9usize);
    let window = (1..4usize, 1..4usize, 1..3usize, 1..3usize, any::<[u8; 4]>());
    let flags = (any::<[bool; 3]>(), activation());
    (sizes, window, flags).prop_filter_map("the window is larger than the picture", |(sizes, window, flags)| {
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
fn resize() {
    let ways = prop_oneof![Just(Interpolation::Bilinear), Just(Interpolation::Bicubic(-0.75))];
    let places = prop_oneof![Just(Coordinates::HalfPixel), Just(Coordinates::AlignCorners)];
    let sizes = (1..3usize, 1..12usize, 1..12usize, 1..9usize, 1..25usize, 1..25usize);
    agree((sizes, ways, places).prop_map(|((b, h, w, c, rows, columns), interpolation, coordinates)| {
        let operator = Resize2d { size: [rows, columns], interpolation, coordinates, scales: None };
        let name = format!("[{b}, {h}, {w}, {c}] {operator:?}");
        Case::new(name, operator, vec![Operand::activation([b, h, w, c])], Tolerance::Sum(16))
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
