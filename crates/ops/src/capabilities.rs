//! What lowering must know of a device.

use crate::DeviceClass;
use serde::{Deserialize, Serialize};

/// What kind of processor executes the shaders; decides which kernel variants are tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A software implementation (lavapipe, SwiftShader, WARP): invocations are SIMD lanes, barriers are costly.
    Cpu,
    /// A GPU that shares main memory.
    Integrated,
    /// A GPU with its own memory.
    Discrete,
    /// A virtual or unknown GPU, or a browser that does not say.
    Other,
}

/// The limits and features of a device that lowering depends on. Plain data, so plans can be made without a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What executes the shaders.
    pub kind: DeviceKind,
    /// Whose it is.
    #[serde(default)]
    pub class: DeviceClass,
    /// WebGPU's `shader-f16`: f16 may be stored and loaded natively.
    pub shader_f16: bool,
    /// Largest storage buffer binding in bytes. WebGPU guarantees 128 MiB.
    pub max_binding_bytes: u64,
    /// Largest buffer in bytes, of which bindings are parts. WebGPU guarantees 256 MiB.
    #[serde(default)]
    pub max_buffer_bytes: u64,
    /// Workgroups per dispatch dimension. WebGPU guarantees 65,535.
    pub max_workgroups: u32,
    /// Workgroup memory in bytes. WebGPU guarantees 16 KiB.
    pub max_workgroup_bytes: u32,
    /// Invocations per workgroup. WebGPU guarantees 256.
    pub max_invocations: u32,
    /// Storage bindings per shader. WebGPU guarantees 8.
    pub max_storage_bindings: u32,
    /// Lanes of every subgroup where shaders may use subgroup operations and the size never varies; otherwise 0.
    pub subgroup_lanes: u32,
    /// Least and most lanes of a subgroup where the driver chooses for each shader, powers of two: AMD's have 32 or 64. Zeros
    /// elsewhere. Only kernels that read the size while they run may use subgroup operations there.
    #[serde(default)]
    pub varying_lanes: [u32; 2],
    /// Rows and columns of the matrices that a subgroup multiplies together, f16 by f16 with f32 sums: 8 or 16; 0 where it
    /// cannot. Then `shader_f16` is on and [`Capabilities::lanes`] are known.
    pub cooperative_size: u32,
    /// Whether such matrices of 16 x 16 may lie in memory as units of 16 bytes, by shaders with the feature `packed`: Vulkan devices,
    /// which the engine can hand what WGSL cannot say.
    #[serde(default)]
    pub packed_matrices: bool,
}

/// Workgroups along one dimension that every device takes: WebGPU's `maxComputeWorkgroupsPerDimension`.
pub const MAX_WORKGROUPS: u32 = 65_535;

impl Capabilities {
    /// Least and most lanes of a subgroup, where shaders may use subgroup operations.
    pub const fn lanes(&self) -> Option<[u32; 2]> {
        match (self.subgroup_lanes, self.varying_lanes) {
            (0, [0, _]) => None,
            (0, varying) => Some(varying),
            (lanes, _) => Some([lanes, lanes]),
        }
    }

    /// WebGPU's guaranteed limits on a device of the given kind: what plans and snapshots assume.
    pub const fn baseline(kind: DeviceKind) -> Self {
        Capabilities {
            kind,
            class: if matches!(kind, DeviceKind::Cpu) { DeviceClass::Cpu } else { DeviceClass::Unknown },
            shader_f16: false,
            max_binding_bytes: 128 << 20,
            max_buffer_bytes: 256 << 20,
            max_workgroups: MAX_WORKGROUPS,
            max_workgroup_bytes: 16 << 10,
            max_invocations: 256,
            max_storage_bindings: 8,
            subgroup_lanes: 0,
            varying_lanes: [0; 2],
            cooperative_size: 0,
            packed_matrices: false,
        }
    }
}
