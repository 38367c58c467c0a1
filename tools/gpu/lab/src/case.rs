//! A version of a kernel, as a script writes it.

use half::f16;
use pulid_engine::{RuntimeChecks, Spirv, spirv};
use pulid_ops::Shader;
use serde::Deserialize;

/// The first words of a SPIR-V module: magic number, version, generator, bound of the ids, schema.
const HEADER: usize = 5;
const OP_COOPERATIVE_MATRIX_LOAD: u32 = 4457;
/// Words of that instruction with a stride and without memory operands.
const WITH_STRIDE: usize = 6;
/// Memory operands: an alignment follows.
const ALIGNED: u32 = 2;

/// One version of a kernel and the work it is given: bindings 0 and 1 are read, 2 is written, all of f16; the entry point is `main`.
#[derive(Deserialize)]
pub struct Case {
    /// What tells it from the others.
    pub name: String,
    /// The work. Cases of the same work get the same operands and have to give the same result.
    pub work: String,
    /// The text, without pipeline-overridable constants.
    pub wgsl: String,
    /// Factors are written as f32 and meant as f16: units of 16 bytes (`crates/engine/src/packed.rs`).
    #[serde(default)]
    pub packed: bool,
    /// Loads of cooperative matrices tell the driver that they are aligned to 16 bytes.
    #[serde(default)]
    pub aligned: bool,
    /// Workgroups on each axis.
    pub workgroups: [u32; 3],
    /// Elements of the bindings that are read.
    pub inputs: [usize; 2],
    /// Elements of the binding that is written.
    pub output: usize,
    /// Floating-point operations of the work, a multiplication and an addition each one.
    pub flops: f64,
}

impl Case {
    /// The kernel as the engine would hand it to a Vulkan driver.
    ///
    /// # Errors
    /// What naga says of the text, and factors that cannot be packed.
    pub fn translated(&self) -> Result<Spirv, String> {
        // Shaders are embedded in programs everywhere else; these live as long as this one, too.
        let shader = Shader {
            name: "main",
            features: if self.packed { &["packed"] } else { &[] },
            wgsl: self.wgsl.clone().leak(),
            workgroup_size: [1; 3],
            writable: &[false, false, true],
            params: &[],
            params_size: 0,
            overrides: &[],
        };
        let mut spirv = spirv(&shader, [], RuntimeChecks::None)?;
        if self.aligned {
            spirv.words = with_aligned_loads(&spirv.words)?;
        }
        Ok(spirv)
    }

    /// Operands in -1/2 .. 1/2, the same for the same lengths.
    pub fn operands(&self) -> [Vec<f16>; 2] {
        // Knuth's linear congruential generator, of which the upper 24 bits are taken.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f16::from_f32((state >> 40) as f32 / (1 << 24) as f32 - 0.5)
        };
        self.inputs.map(|length| (0..length).map(|_| next()).collect())
    }
}

/// A module whose loads of cooperative matrices have the memory operand `Aligned 16`, which WGSL cannot say.
///
/// # Errors
/// A module that is cut off.
fn with_aligned_loads(words: &[u32]) -> Result<Vec<u32>, String> {
    let (header, mut rest) = words.split_at_checked(HEADER).ok_or("a SPIR-V module without a header")?;
    let mut out = header.to_vec();
    while let Some(&first) = rest.first() {
        let (length, op) = ((first >> 16) as usize, first & 0xFFFF);
        let (instruction, next) =
            rest.split_at_checked(length).filter(|_| length > 0).ok_or("a SPIR-V module that is cut off")?;
        if op == OP_COOPERATIVE_MATRIX_LOAD && length == WITH_STRIDE {
            out.push(first + (2 << 16));
            out.extend(&instruction[1..]);
            out.extend([ALIGNED, 16]);
        } else {
            out.extend(instruction);
        }
        rest = next;
    }
    Ok(out)
}
