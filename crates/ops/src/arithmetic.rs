//! Arithmetic on paper: what the main kernels move for each multiply-add, by the constants of their tiles, and the bound that follows for
//! GPUs by what their makers say of them. `docs/gpu-stats.md` shows it, beside what compilers make of the kernels.

use crate::attention::tile_traffic;
use crate::cooperative::CooperativeTile;
use crate::workgroup_tile::WorkgroupTile;
use std::fmt::Write as _;

/// What a GPU reaches at its best.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    /// As its maker calls it.
    pub name: &'static str,
    /// TFLOP/s of f16 matrices with f32 sums; 0 where wgpu has none of a size that the kernels use.
    pub matrices: f64,
    /// TFLOP/s in f32.
    pub single: f64,
    /// TB/s of its memory.
    pub memory: f64,
    /// Units that have workgroup memory, bytes that each reads of it a clock, and GHz.
    pub workgroup: [f64; 3],
    /// Where these figures are from.
    pub source: &'static str,
}

/// The GPUs of the table.
pub const GPUS: [Gpu; 6] = [
    Gpu {
        name: "H100 SXM",
        matrices: 989.4,
        single: 66.9,
        memory: 3.35,
        workgroup: [132.0, 128.0, 1.83],
        source: "NVIDIA H100 Tensor Core GPU Architecture, dense; shared memory by the CUDA programming guide",
    },
    Gpu {
        name: "RTX 4090",
        matrices: 165.2,
        single: 82.6,
        memory: 1.008,
        workgroup: [128.0, 128.0, 2.52],
        source: "NVIDIA Ada GPU Architecture, dense; shared memory by the CUDA programming guide",
    },
    Gpu {
        name: "RX 7900 XTX",
        matrices: 122.8,
        single: 61.4,
        memory: 0.96,
        workgroup: [96.0, 128.0, 2.5],
        source: "AMD's product page; f32 by dual issue; LDS by the RDNA 3 ISA guide",
    },
    Gpu {
        name: "M2 Max, 38 cores",
        matrices: 13.6,
        single: 13.6,
        memory: 0.4,
        workgroup: [38.0, 128.0, 1.4],
        source: "Apple's press release; matrices run on the same units; workgroup memory assumed",
    },
    Gpu {
        name: "Arc A770",
        matrices: 0.0,
        single: 17.2,
        memory: 0.56,
        workgroup: [32.0, 128.0, 2.1],
        source: "Intel ARK; its matrices are 8 x 16 x 16; SLM by the Xe-HPG guide",
    },
    Gpu {
        name: "Adreno 740",
        matrices: 0.0,
        single: 2.1,
        memory: 0.067,
        workgroup: [6.0, 128.0, 0.68],
        source: "Qualcomm's memory (LPDDR5X, 64 bits); 1,536 units at 680 MHz and workgroup memory assumed",
    },
];

/// Bytes that a kernel moves for each multiply-add, operands stored in f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// Whether its products are of cooperative matrices.
    pub(crate) matrices: bool,
    /// From the device's memory, or the cache before it: each workgroup reads its operands once.
    pub(crate) memory: f64,
    /// From and to workgroup memory.
    pub(crate) workgroup: f64,
    /// From and to registers: operands and sums of each instruction.
    pub(crate) registers: f64,
}

impl Gpu {
    /// TFLOP/s that a kernel reaches at most, and what keeps it there; `None` where it does not run.
    pub(crate) fn bound(&self, t: &Traffic) -> Option<(f64, &'static str)> {
        let arithmetic = if t.matrices { self.matrices } else { self.single };
        // Two operations for each multiply-add.
        let workgroup = self.workgroup.iter().product::<f64>() / 1e3;
        let bounds = [(arithmetic, "a"), (2.0 * workgroup / t.workgroup, "w"), (2.0 * self.memory / t.memory, "m")];
        (arithmetic > 0.0).then(|| bounds.into_iter().fold(bounds[0], |low, b| if b.0 < low.0 { b } else { low }))
    }
}

/// Every main kernel by the name of its variant.
fn kernels() -> Vec<(String, Traffic)> {
    let workgroup = WorkgroupTile::all().map(|t| (format!("matmul, conv2d: `{}`", t.name(None)), t.traffic()));
    let cooperative = CooperativeTile::all(16).map(|t| (format!("matmul, conv2d: `{}`", t.name(None)), t.traffic()));
    let attention = tile_traffic().into_iter().map(|(name, t)| (format!("attention, 64 wide: `{name}`"), t));
    workgroup.chain(cooperative).chain(attention).collect()
}

/// The tables, as Markdown.
pub fn tables() -> String {
    let mut text = String::from("| kernel | memory | workgroup memory | registers |");
    GPUS.iter().for_each(|gpu| text += &format!(" {} |", gpu.name));
    text += "\n|---|---:|---:|---:|";
    GPUS.iter().for_each(|_| text += "---:|");
    for (name, t) in kernels() {
        let _ = write!(text, "\n| {name} | {:.4} | {:.3} | {:.2} |", t.memory, t.workgroup, t.registers);
        for gpu in &GPUS {
            let _ = match gpu.bound(&t) {
                Some((bound, by)) => write!(text, " {bound:.1} {by} |"),
                None => write!(text, " – |"),
            };
        }
    }
    text += "\n\n| GPU | matrices, TFLOP/s | f32, TFLOP/s | memory, TB/s | workgroup memory, TB/s | source |\n|---|---:|---:|---:|---:|---|\n";
    for gpu in &GPUS {
        let [units, bytes, clock] = gpu.workgroup;
        let matrices = if gpu.matrices > 0.0 { format!("{:.1}", gpu.matrices) } else { "–".into() };
        let _ = writeln!(
            text,
            "| {} | {matrices} | {:.1} | {:.3} | {:.1} = {units} x {bytes} B x {clock} GHz | {} |",
            gpu.name,
            gpu.single,
            gpu.memory,
            units * bytes * clock / 1e3,
            gpu.source
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bound_is_told_with_its_cause() {
        let gpu = Gpu { matrices: 100.0, single: 10.0, memory: 1.0, workgroup: [10.0, 100.0, 1.0], ..GPUS[0] };
        let t = Traffic { matrices: true, memory: 0.01, workgroup: 0.01, registers: 1.0 };
        assert_eq!(gpu.bound(&t), Some((100.0, "a")));
        assert_eq!(gpu.bound(&Traffic { memory: 0.5, ..t }), Some((4.0, "m")));
        assert_eq!(gpu.bound(&Traffic { workgroup: 0.5, ..t }), Some((4.0, "w")));
        assert_eq!(gpu.bound(&Traffic { matrices: false, ..t }), Some((10.0, "a")));
        assert_eq!(Gpu { matrices: 0.0, ..gpu }.bound(&t), None);
    }

    #[test]
    fn larger_tiles_move_less() {
        let all = kernels();
        let of = |name: &str| all.iter().find(|(n, _)| n.contains(&format!("`{name}`"))).unwrap().1;
        // 128 x 128 results of 64 sums an invocation: 16 + 16 reads of 4 bytes and copies of 256 elements for 16384 products.
        let large = of("workgroup_tile_128x128");
        assert_eq!((large.memory, large.workgroup), (2.0 * 256.0 / 16384.0, 1.0 + 4.0 * 256.0 / 16384.0));
        assert!(of("workgroup_tile_32x32").memory > large.memory);
        assert!(of("wide_cooperative").workgroup < of("small_cooperative").workgroup);
        assert!(of("wide_cooperative").workgroup < large.workgroup);
    }
}
