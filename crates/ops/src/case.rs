//! Cases: the one list that tests, benchmarks, the conformance page and the operator table read.

use crate::Operator;
use pulid_tensor::{DType, Data, HostTensor, Result, Shape, TensorType};

/// How an operand is stored when a case runs in half precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// A value that flows through the network: follows the storage type.
    Activation,
    /// A large weight (matrix, filter, embedding): f16 in half precision and with packed weights.
    Weight,
    /// A small vector (bias, gain, statistics): always f32.
    Parameter,
    /// Indices below the given bound.
    Index(u32),
}

/// What fills an operand; always the same numbers for the same case.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// Normal deviates, mean and standard deviation.
    Normal(f32, f32),
    /// Uniform in a range.
    Uniform(f32, f32),
    /// These values, repeated.
    Values(Vec<f32>),
}

impl Fill {
    /// Every class of number: NaN, infinities, the largest and smallest normal numbers of f32 and f16, denormals of both, zeros of
    /// both signs, and some ordinary ones. A prime number of them, so that they fall on every lane.
    pub fn every_class() -> Fill {
        let denormal = f32::MIN_POSITIVE / 8.0;
        let half = |exponent: i32| 2f32.powi(exponent);
        let below = [-2.5, -0.0, -f32::MIN_POSITIVE, -denormal, -65504.0, f32::MIN, f32::NEG_INFINITY, f32::NAN];
        let above = [1.0, 0.0, f32::MIN_POSITIVE, denormal, 65504.0, f32::MAX, f32::INFINITY, half(-14), half(-24)];
        Fill::Values(above.into_iter().chain(below).collect())
    }

    /// [`Fill::every_class`] without denormals of f32 or f16: for functions that map them to something else than zero.
    ///
    /// WGSL lets implementations take them for zero ("Floating Point Evaluation"): a comparison can then allow for a flushed
    /// result, not for the function of a flushed operand.
    pub fn normal_classes() -> Fill {
        Fill::every_class().only(|v| !v.is_subnormal() && (v == 0.0 || v.abs() != 2f32.powi(-24)))
    }

    /// [`Fill::normal_classes`] to divide by: WGSL leaves the sign of zero to implementations, and quotients by more than 2^126.
    /// What half precision rounds to zero has no sign either.
    pub fn divisors() -> Fill {
        let open = |v: f32| v.is_sign_negative() && v.abs() < 2f32.powi(-14) || v.abs() > 65504.0 && v.is_finite();
        Fill::normal_classes().only(|v| !open(v))
    }

    /// The values of a list that pass a test; other contents as they are.
    pub fn only(self, keep: impl Fn(f32) -> bool) -> Fill {
        match self {
            Fill::Values(values) => Fill::Values(values.into_iter().filter(|&v| keep(v)).collect()),
            other => other,
        }
    }
}

/// One operand of a case.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Extents.
    pub shape: Shape,
    /// Storage rule.
    pub role: Role,
    /// Contents.
    pub fill: Fill,
}

impl Operand {
    fn new(shape: impl Into<Shape>, role: Role) -> Self {
        Operand { shape: shape.into(), role, fill: Fill::Normal(0.0, 1.0) }
    }

    /// A standard normal activation.
    pub fn activation(shape: impl Into<Shape>) -> Self {
        Self::new(shape, Role::Activation)
    }

    /// A normal weight.
    pub fn weight(shape: impl Into<Shape>) -> Self {
        Self::new(shape, Role::Weight)
    }

    /// A normal f32 vector.
    pub fn parameter(shape: impl Into<Shape>) -> Self {
        Self::new(shape, Role::Parameter)
    }

    /// Indices below `bound`.
    pub fn index(shape: impl Into<Shape>, bound: u32) -> Self {
        Self::new(shape, Role::Index(bound))
    }

    /// The same operand with other contents.
    pub fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    /// Type under a storage mode.
    pub fn tensor_type(&self, storage: Storage) -> TensorType {
        let half = match self.role {
            Role::Activation => storage.half_activations(),
            Role::Weight => match storage.quantized() {
                Some(dtype) => return TensorType::new(dtype, self.shape.clone()),
                None => storage != Storage::F32,
            },
            Role::Parameter => false,
            Role::Index(_) => return TensorType::new(DType::U32, self.shape.clone()),
        };
        TensorType::new(if half { DType::F16 } else { DType::F32 }, self.shape.clone())
    }
}

/// Storage mode under which a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Everything in f32.
    F32,
    /// Activations and weights in f16 (needs `shader-f16`).
    F16,
    /// Activations in f32, weights in packed f16.
    PackedWeights,
    /// Activations in f32, weights in 8-bit blocks.
    Q8Weights,
    /// Activations in f32, weights in 4-bit blocks.
    Q4Weights,
    /// Activations in f16, weights in 8-bit blocks (needs `shader-f16`).
    F16Q8Weights,
    /// Activations in f16, weights in 4-bit blocks (needs `shader-f16`).
    F16Q4Weights,
}

impl Storage {
    /// Every mode.
    pub const ALL: [Storage; 7] = [
        Storage::F32,
        Storage::F16,
        Storage::PackedWeights,
        Storage::Q8Weights,
        Storage::Q4Weights,
        Storage::F16Q8Weights,
        Storage::F16Q4Weights,
    ];

    /// The name in case ids.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::PackedWeights => "w16",
            Storage::Q8Weights => "q8",
            Storage::Q4Weights => "q4",
            Storage::F16Q8Weights => "f16+q8",
            Storage::F16Q4Weights => "f16+q4",
        }
    }

    /// Type of quantised weights.
    pub const fn quantized(self) -> Option<DType> {
        match self {
            Storage::Q8Weights | Storage::F16Q8Weights => Some(DType::Q8),
            Storage::Q4Weights | Storage::F16Q4Weights => Some(DType::Q4),
            _ => None,
        }
    }

    /// Whether activations are half precision.
    pub const fn half_activations(self) -> bool {
        matches!(self, Storage::F16 | Storage::F16Q8Weights | Storage::F16Q4Weights)
    }
}

/// How far a kernel's result may be from the reference. Limits follow from WGSL's accuracy rules and the length of sums:
/// |got - want| <= r·|want| + r·rms(want), with r from [`Tolerance::relative`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Data movement: bit for bit (after rounding to the storage type).
    Exact,
    /// A few arithmetic steps per element.
    Pointwise,
    /// Functions that WGSL specifies loosely (exp, sin, tanh), a handful per element.
    Transcendental,
    /// A sum of this many products.
    Sum(usize),
    /// A sum of this many products, one factor of which is rounded to half precision before.
    RoundedSum(usize),
}

impl Tolerance {
    /// Relative limit for results stored as `dtype`.
    pub fn relative(self, dtype: DType) -> f64 {
        // Rounding to the storage type: half a unit in the last place, doubled for ties in the reference's own rounding.
        let storage = if dtype == DType::F16 { 2f64.powi(-10) } else { 2f64.powi(-23) };
        let arithmetic = match self {
            Tolerance::Exact => return 0.0,
            Tolerance::Pointwise => 2f64.powi(-20),
            // WGSL: exp within 3 + 2|x| units, tanh and erf by composition.
            Tolerance::Transcendental => 2f64.powi(-16),
            // Rounding errors of an f32 sum grow like the root of its length for random signs; 8 units of head room.
            Tolerance::Sum(n) => 8.0 * 2f64.powi(-23) * (n.max(1) as f64).sqrt() + 2f64.powi(-20),
            // Half a unit in the last place of each product; both grow like the root of the length. 2 units of head room.
            Tolerance::RoundedSum(n) => return Tolerance::Sum(n).relative(dtype) + 2f64.powi(-10),
        };
        storage + arithmetic
    }
}

/// One operator on given operands.
#[derive(Clone, Debug)]
pub struct Case {
    /// Attributes and sizes, `key=value;key=value`; unique per operator.
    pub name: String,
    /// The operator.
    pub operator: Box<dyn Operator>,
    /// Operands.
    pub operands: Vec<Operand>,
    /// Accepted error.
    pub tolerance: Tolerance,
    /// Real network size: run by the benchmark, skipped by the quick tests (the reference would take too long).
    pub benchmark: bool,
    /// A tensor as large as a binding may be by WebGPU's guarantee: left out where checks are kept as files.
    pub large: bool,
}

/// The bytes that every WebGPU device takes as one binding.
pub const LARGEST_BINDING: usize = 128 << 20;

impl Case {
    /// A test case.
    pub fn new(
        name: impl Into<String>,
        operator: impl Operator + 'static,
        operands: Vec<Operand>,
        tolerance: Tolerance,
    ) -> Self {
        Case { name: name.into(), operator: Box::new(operator), operands, tolerance, benchmark: false, large: false }
    }

    /// The same case, for the benchmark only.
    pub fn benchmark(mut self) -> Self {
        self.benchmark = true;
        self
    }

    /// The same case, whose tensors fill a binding.
    pub fn large(mut self) -> Self {
        self.large = true;
        self
    }

    /// Operand types under a storage mode.
    pub fn types(&self, storage: Storage) -> Vec<TensorType> {
        self.operands.iter().map(|o| o.tensor_type(storage)).collect()
    }

    /// Operands under a storage mode: deterministic, already rounded to their storage type.
    pub fn inputs(&self, storage: Storage) -> Result<Vec<HostTensor>> {
        self.operands
            .iter()
            .enumerate()
            .map(|(index, operand)| {
                let name = format!("{}:{};dtype={};{index}", self.operator.name(), self.name, storage.name());
                let mut random = Random::named(&name);
                let count = operand.shape.count();
                if let Role::Index(bound) = operand.role {
                    let values = (0..count).map(|_| (random.uniform() * f64::from(bound)) as u32).collect();
                    return HostTensor::new(operand.shape.clone(), Data::U32(values));
                }
                let values = (0..count)
                    .map(|i| match &operand.fill {
                        Fill::Normal(mean, deviation) => mean + deviation * random.normal(),
                        Fill::Uniform(low, high) => low + (high - low) * random.uniform() as f32,
                        Fill::Values(v) => v[i % v.len()],
                    })
                    .collect();
                Ok(HostTensor::from_f32(operand.shape.clone(), values)?.cast(operand.tensor_type(storage).dtype))
            })
            .collect()
    }

    /// The storage modes that make a difference and that the operator takes.
    pub fn storages(&self) -> Vec<Storage> {
        use Storage::*;
        let mut storages = vec![F32, F16];
        if self.has_weight() {
            storages.extend([PackedWeights, Q8Weights, Q4Weights, F16Q8Weights, F16Q4Weights]);
        }
        storages.retain(|s| {
            let types = self.types(*s);
            let taken = |(i, t): (usize, &TensorType)| !t.dtype.is_quantized() || self.operator.takes_quantized(i);
            types.iter().enumerate().all(taken) && (s.quantized().is_none() || self.operator.infer(&types).is_ok())
        });
        storages
    }

    /// Whether some operand is a weight, so that packed weights make a difference.
    pub fn has_weight(&self) -> bool {
        self.operands.iter().any(|o| o.role == Role::Weight)
    }
}

/// A small generator for case contents (xorshift64*); quality is no concern here, sameness everywhere is.
struct Random(u64);

impl Random {
    /// The generator of a name: its FNV-1a hash, mixed (the last step of MurmurHash3) so that names that differ in their last
    /// letter begin apart.
    fn named(name: &str) -> Self {
        let mut z = name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        z = (z ^ (z >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        z = (z ^ (z >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        // Zero would stay zero.
        Random((z ^ (z >> 33)).max(1))
    }

    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Binary, MatMul};

    #[test]
    fn every_part_of_a_name_decides_what_is_drawn() {
        let two = || vec![Operand::activation([4, 4]), Operand::activation([4, 4])];
        let case = |name: &str| Case::new(name, MatMul::default(), two(), Tolerance::Sum(4));
        let drawn = |case: &Case, storage: Storage| {
            let inputs = case.inputs(storage).unwrap();
            inputs.iter().map(HostTensor::to_f32_vec).collect::<Vec<_>>()
        };
        let first = drawn(&case("m=1"), Storage::F32);
        assert_eq!(first, drawn(&case("m=1"), Storage::F32), "the same case, the same numbers");
        let others = [
            ("the case, of the same length", drawn(&case("m=2"), Storage::F32)),
            ("the operator", drawn(&Case::new("m=1", Binary::add(), two(), Tolerance::Pointwise), Storage::F32)),
            ("the storage", drawn(&case("m=1"), Storage::PackedWeights)),
        ];
        for (what, other) in others {
            assert_ne!(first[0], other[0], "{what}");
        }
        assert_ne!(first[0], first[1], "the operand");
    }
}
