//! Which share of what the device reaches at its best a kernel reaches: S. Williams and others, "Roofline", 2009.

use pulid_engine::Peaks;
use pulid_ops::{Cost, Variant};

/// How a kernel stands to what the device can do.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Roofline {
    /// What a kernel that wastes nothing would wait for: `memory` or `arithmetic`.
    pub bound: &'static str,
    /// The time that this would take, of the time that was measured; above 1 where caches serve what is counted as memory.
    pub share: f64,
}

/// Places a kernel that took so many seconds.
pub(super) fn place(peaks: &Peaks, variant: &Variant, cost: Cost, seconds: f64) -> Roofline {
    let cooperative = variant.dispatches.iter().any(|d| d.features.iter().any(|f| f.starts_with("coop")));
    let flops = peaks.cooperative_flops.filter(|_| cooperative).unwrap_or(peaks.flops);
    let (memory, arithmetic) = (cost.bytes as f64 / peaks.bytes, cost.flops as f64 / flops);
    let bound = if memory > arithmetic { "memory" } else { "arithmetic" };
    Roofline { bound, share: memory.max(arithmetic) / seconds }
}

/// The peaks in a line.
pub(super) fn describe(peaks: &Peaks) -> String {
    let giga = |value: f64| format!("{:.1}", value / 1e9);
    let matrices = peaks.cooperative_flops.map_or(String::new(), |f| format!(", {} by cooperative matrices", giga(f)));
    format!("reaches {} GB/s copying and {} GFLOP/s in f32{matrices}", giga(peaks.bytes), giga(peaks.flops))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_ops::{Capabilities, DeviceKind, LowerContext, MatMul, Operator};
    use pulid_tensor::{DType, TensorType};

    #[test]
    fn a_kernel_is_placed_below_the_roof_over_it() {
        let capabilities = Capabilities {
            shader_f16: true,
            subgroup_lanes: 32,
            cooperative_size: 16,
            max_workgroup_bytes: 48 << 10,
            ..Capabilities::baseline(DeviceKind::Discrete)
        };
        let inputs = [[512, 512], [512, 512]].map(|shape| TensorType::new(DType::F16, shape));
        let output = MatMul::default().infer(&inputs).unwrap();
        let context = LowerContext { capabilities: &capabilities, inputs: &inputs, output: &output };
        let variants = MatMul::default().lower(&context).unwrap();
        let of = |name: &str| variants.iter().find(|v| v.name == name).unwrap();
        let peaks = Peaks { bytes: 100.0, flops: 1000.0, cooperative_flops: Some(8000.0) };
        let cost = |flops, bytes| Cost { flops, bytes };
        let plain = of(variants.last().unwrap().name);
        assert_eq!(place(&peaks, plain, cost(4000, 100), 8.0), Roofline { bound: "arithmetic", share: 0.5 });
        assert_eq!(place(&peaks, plain, cost(4000, 1600), 32.0), Roofline { bound: "memory", share: 0.5 });
        let matrices = of("cooperative");
        assert_eq!(place(&peaks, matrices, cost(4000, 10), 1.0), Roofline { bound: "arithmetic", share: 0.5 });
        let without = Peaks { cooperative_flops: None, ..peaks };
        assert_eq!(place(&without, matrices, cost(4000, 10), 8.0).share, 0.5);
        assert_eq!(describe(&without), "reaches 0.0 GB/s copying and 0.0 GFLOP/s in f32");
        assert!(
            describe(&Peaks { cooperative_flops: Some(2.5e11), ..peaks }).ends_with(", 250.0 by cooperative matrices")
        );
    }
}
