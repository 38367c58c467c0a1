//! The drivers' statistics in the table's terms.

use crate::{Compiled, Kernel};
use serde::{Deserialize, Serialize};

/// What the table says of a kernel on a GPU. A driver does not tell everything: `None` then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Invocations of a subgroup.
    pub lanes: u32,
    /// Registers of an invocation: of 32 bits, on Apple's GPU of 16, on Adreno of four times 32.
    pub registers: Option<u64>,
    /// Registers that did not fit: how many were spilled, or how many instructions spill and fill.
    pub spills: u64,
    /// Bytes of memory that each invocation has to itself, for spilled registers and arrays indexed at run time.
    pub scratch: u64,
    /// Bytes of workgroup memory, as the shader declares it.
    pub workgroup: u64,
    /// Subgroups that may be resident together: on a SIMD (AMD), a multiprocessor (NVIDIA), a core (Adreno); invocations on a core (Apple).
    pub resident: Option<u64>,
    /// Bytes of code.
    pub code: Option<u64>,
    /// Instructions.
    pub instructions: Option<u64>,
    /// The compiler's estimate: AMD, cycles that a subgroup keeps its SIMD busy with an outermost loop taken 8 times, one in it 4 times
    /// and those further in twice; NVIDIA, cycles of all instructions once.
    pub cycles: Option<u64>,
    /// Instructions that multiply matrices.
    pub matrix: u64,
    /// AMD's cycles for each multiplication of an invocation, in hundredths; for kernels that are made of products.
    pub per_product: Option<u64>,
}

/// Reads a driver's statistics, by the names that RADV, NVK, Asahi and Turnip give them.
pub fn figures(kernel: &Kernel, compiled: &Compiled) -> Figures {
    let one = |name: &str| {
        let found = compiled.statistics.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| *value as u64)
    };
    let first = |names: &[&str]| names.iter().find_map(|name| one(name));
    let sum = |names: &[&str]| names.iter().filter_map(|name| one(name)).sum();
    let text = |part: &str| {
        let found = compiled.texts.iter().find(|(name, _)| name.contains(part));
        found.map_or("", |(_, text)| text.as_str())
    };
    let cycles = first(&["Inverse Throughput", "Static cycle count"]);
    let products = weighted_products(text("ACO IR"), compiled.subgroup_size);
    let of_products = ["matmul_", "conv2d_", "attention_"].iter().any(|prefix| kernel.shader.starts_with(prefix));
    Figures {
        lanes: compiled.subgroup_size,
        registers: first(&["VGPRs", "Number of GPRs", "GPRs", "Registers used"]),
        spills: sum(&[
            "Spilled VGPRs",
            "Spilled SGPRs",
            "Spills to memory",
            "Fills from memory",
            "Spills",
            "Fills",
            "STP Count",
            "LDP Count",
        ]),
        scratch: sum(&["Scratch size", "SLM size", "Scratch"]),
        workgroup: compiled.workgroup_bytes,
        resident: first(&["Subgroups per SIMD", "Max warps/SM", "Threads", "Max Waves Per Core"]),
        code: one("Code size"),
        instructions: first(&["Instructions", "Instruction count", "Instruction Count"]),
        cycles,
        matrix: ["v_wmma", "hmma."].iter().map(|word| text("ssembly").matches(word).count() as u64).sum(),
        per_product: cycles
            .filter(|_| of_products && products > 0.0)
            .map(|c| (c as f64 * 100.0 / products).round() as u64),
    }
}

/// Multiplications of an invocation in ACO's intermediate code, loops weighed as its estimate of cycles does: an outermost one 8 times,
/// one in it 4 times, those further in twice. A matrix instruction is 16 x 16 x 16 of them for a subgroup.
fn weighted_products(code: &str, lanes: u32) -> f64 {
    let (mut depth, mut products) = (0, 0.0);
    let times = |depth: i32| match depth {
        ..=0 => 1.0,
        1 => 8.0,
        deeper => 32.0 * 2f64.powi(deeper - 2),
    };
    for line in code.lines() {
        if line.contains("kind:") {
            depth += i32::from(line.contains("loop-header")) - i32::from(line.contains("loop-exit"));
        }
        let Some((_, operation)) = line.split_once(" = ") else { continue };
        let each = match operation.split_whitespace().next().unwrap_or_default() {
            name if name.starts_with("v_wmma") => 4096.0 / f64::from(lanes.max(1)),
            name if name.starts_with("v_pk_fma") || name.starts_with("v_dot2") => 2.0,
            name if name.starts_with("v_fma") || name.starts_with("v_mul_f32") => 1.0,
            _ => 0.0,
        };
        products += each * times(depth);
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_is_read_by_its_own_words() {
        let kernel =
            crate::kernels(&pulid_ops::Capabilities::baseline(pulid_ops::DeviceKind::Discrete)).unwrap().remove(0);
        let read = |statistics: &[(&str, f64)], texts: &[(&str, &str)]| {
            let statistics = statistics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            figures(&kernel, &Compiled { subgroup_size: 32, workgroup_bytes: 128, statistics, texts })
        };
        let amd =
            [("SGPRs", 108.0), ("VGPRs", 96.0), ("Spilled SGPRs", 1.0), ("Spilled VGPRs", 2.0), ("Scratch size", 16.0)];
        let wmma =
            [("ACO IR", "v4: %1 = v_wmma_f32_16x16x16_f16 %2"), ("Assembly", "\tv_wmma_f32_16x16x16_f16 v[0:7]")];
        let amd = read(&amd, &wmma);
        assert_eq!((amd.lanes, amd.registers, amd.spills, amd.scratch), (32, Some(96), 3, 16));
        assert_eq!((amd.matrix, amd.workgroup, amd.cycles, amd.resident), (1, 128, None, None));
        let told = [("Number of GPRs", 40.0), ("Spills to memory", 4.0), ("Spills to reg", 9.0), ("SLM size", 8.0)];
        let nvidia = read(&told, &[("NAK assembly", "r0 = hmma.m16n8k16.f32 r1\nr2 = hmma.m16n8k16.f32 r3")]);
        assert_eq!((nvidia.registers, nvidia.spills, nvidia.scratch, nvidia.matrix), (Some(40), 4, 8, 2));
        let apple = read(&[("GPRs", 35.0), ("Spills", 1.0), ("Fills", 2.0), ("Threads", 1024.0)], &[]);
        assert_eq!((apple.registers, apple.spills, apple.resident), (Some(35), 3, Some(1024)));
        let adreno = read(&[("Registers used", 12.0), ("STP Count", 1.0), ("LDP Count", 1.0)], &[]);
        assert_eq!((adreno.registers, adreno.spills), (Some(12), 2));
    }

    #[test]
    fn products_in_loops_weigh_as_cycles_do() {
        let code = "BB0\n/* kind: uniform, loop-preheader, */\n\tv1: %1 = v_mul_f32 %2, %3\n\
                    BB1\n/* kind: loop-header, */\n\tv1: %1 = v_fma_f32 %2, %3, %4\n\tv1: %1 = v_pk_fma_f16 %2, %3, %4\n\
                    BB2\n/* kind: loop-header, */\n\tv4: %1 = v_wmma_f32_16x16x16_f16 %2, %3, %4\n\tv1: %1 = v_add_f32 %2, %3\n\
                    BB3\n/* kind: loop-exit, */\nBB4\n/* kind: loop-exit, */\n\tv1: %1 = v_fma_f32 %2, %3, %4\n";
        assert_eq!(weighted_products(code, 64), 1.0 + 8.0 * 3.0 + 32.0 * 64.0 + 1.0);
        assert_eq!(weighted_products("", 64), 0.0);
    }
}
