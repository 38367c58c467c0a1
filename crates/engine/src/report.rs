//! What devices can do, for people.

use crate::DeviceOptions;
use crate::device::{AdapterSummary, all_adapters, cooperative_size, summary};
use pulid_ops::DeviceKind;

/// The least binding (bytes) that SDXL's largest tensors take: larger ones are cut into such portions.
const ENOUGH_BINDING: u64 = 128 << 20;

/// A product of matrices that a subgroup computes together: M x K by K x N, added to M x N.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CooperativeMatrices {
    /// M, N and K.
    pub size: [u32; 3],
    /// Type of the factors: `f16`, `f32`, `i32` or `u32`.
    pub factors: &'static str,
    /// Type of the sums.
    pub sums: &'static str,
}

/// An adapter with what plans look at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    /// Name, driver and kind.
    #[serde(flatten)]
    pub summary: AdapterSummary,
    /// Arithmetic and storage in half precision.
    pub shader_f16: bool,
    /// Exchange between the lanes of a subgroup.
    pub subgroups: bool,
    /// Lanes of a subgroup, least and most.
    pub subgroup_lanes: [u32; 2],
    /// What subgroups multiply together, as the driver lists it.
    pub cooperative_matrices: Vec<CooperativeMatrices>,
    /// Rows and columns of the matrices among them that kernels use; 0 for none.
    pub cooperative_size: u32,
    /// Bytes of the largest buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of the largest range a shader sees at once.
    pub max_binding_bytes: u64,
    /// Buffers a shader sees at once.
    pub max_storage_bindings: u32,
    /// Workgroups along one dimension.
    pub max_workgroups: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Bytes that a workgroup shares.
    pub max_workgroup_bytes: u32,
}

impl AdapterReport {
    /// What a person should know before choosing this device; empty for one without flaws.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.summary.kind == DeviceKind::Cpu {
            remarks.push("runs on the CPU: right results, but minutes where a GPU takes seconds".into());
        }
        if !self.shader_f16 {
            remarks.push("computes no half precision: with dtype f16 weights are kept small and widened in use".into());
        }
        if self.max_binding_bytes < ENOUGH_BINDING {
            let mib = self.max_binding_bytes >> 20;
            remarks.push(format!("sees {mib} MiB at once, where large images may want 128; try smaller ones"));
        }
        if self.summary.backend == "gl" {
            remarks.push("OpenGL: a Vulkan, Metal or DX12 driver is faster and better tested".into());
        }
        remarks
    }
}

/// Every adapter that can run shaders, best first, with its limits and features.
pub async fn adapter_reports() -> Vec<AdapterReport> {
    all_adapters().await.iter().map(report).collect()
}

fn report(adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    AdapterReport {
        summary: summary(adapter),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        subgroup_lanes: [info.subgroup_min_size, info.subgroup_max_size],
        cooperative_matrices: cooperative_matrices(adapter),
        cooperative_size: cooperative_size(adapter, DeviceOptions::default()),
        max_buffer_bytes: limits.max_buffer_size,
        max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        max_storage_bindings: limits.max_storage_buffers_per_shader_stage,
        max_workgroups: limits.max_compute_workgroups_per_dimension,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
    }
}

fn cooperative_matrices(adapter: &wgpu::Adapter) -> Vec<CooperativeMatrices> {
    let name = |ty| match ty {
        wgpu::CooperativeScalarType::F32 => "f32",
        wgpu::CooperativeScalarType::F16 => "f16",
        wgpu::CooperativeScalarType::I32 => "i32",
        wgpu::CooperativeScalarType::U32 => "u32",
    };
    let listed = adapter.cooperative_matrix_properties().into_iter().map(|p| CooperativeMatrices {
        size: [p.m_size, p.n_size, p.k_size],
        factors: name(p.ab_type),
        sums: name(p.cr_type),
    });
    // Drivers list some of them once for each way to round or saturate.
    let mut distinct: Vec<CooperativeMatrices> = Vec::new();
    for matrices in listed {
        if !distinct.contains(&matrices) {
            distinct.push(matrices);
        }
    }
    distinct
}
