//! Which kernels a device would run at the sizes of real networks.

use crate::Outcome;
use pulid_ops::{Capabilities, Dispatch, LowerContext, Shader, operators};
use pulid_tensor::TensorType;
use std::collections::BTreeSet;

/// A permutation of a shader with its constants: what a pipeline is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    /// Shader name.
    pub shader: &'static str,
    /// Shader features, sorted.
    pub features: Vec<&'static str>,
    /// Values of pipeline-overridable constants by their bits, sorted by name.
    constants: Vec<(&'static str, u64)>,
}

impl Kernel {
    fn new(dispatch: &Dispatch) -> Kernel {
        let mut constants: Vec<_> = dispatch.constants.iter().map(|(name, v)| (*name, v.to_bits())).collect();
        constants.sort_unstable();
        Kernel { shader: dispatch.shader, features: dispatch.features.clone(), constants }
    }

    /// The kernel's constants.
    pub fn constants(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.constants.iter().map(|(name, bits)| (*name, f64::from_bits(*bits)))
    }

    /// Its name in the table: `shader+feature NAME=value`.
    pub fn name(&self) -> String {
        let features = self.features.iter().map(|f| format!("+{f}"));
        let constants = self.constants().map(|(name, value)| format!(" {name}={value}"));
        [self.shader.to_owned()].into_iter().chain(features).chain(constants).collect()
    }

    /// Whether its products are of cooperative matrices.
    pub fn is_cooperative(&self) -> bool {
        self.features.iter().any(|f| f.starts_with("coop"))
    }

    /// The permutation.
    ///
    /// # Errors
    /// When no such permutation was built.
    pub fn shader_info(&self) -> Outcome<&'static Shader> {
        pulid_ops::shader(self.shader, &self.features).ok_or_else(|| format!("{} was not built", self.name()))
    }
}

/// The distinct kernels of every variant that a device with these capabilities may choose, in every storage mode, at the benchmark's
/// sizes, which are those of SDXL's networks; sorted. Where its matrices may be packed, the kernels without that are among them, to be compared.
///
/// # Errors
/// When a case cannot be lowered, which is a fault of the operator.
pub fn kernels(capabilities: &Capabilities) -> Outcome<Vec<Kernel>> {
    let mut found = BTreeSet::new();
    if capabilities.packed_matrices {
        found.extend(kernels(&Capabilities { packed_matrices: false, ..capabilities.clone() })?);
    }
    for (_, info) in operators() {
        for case in (info.cases)().into_iter().filter(|case| case.benchmark) {
            for storage in case.storages() {
                if storage.half_activations() && !capabilities.shader_f16 {
                    continue;
                }
                let at = |e: pulid_tensor::Error| format!("{}/{}: {e}", info.name, case.name);
                let inputs: Vec<TensorType> = case.types(storage);
                let output = case.operator.infer(&inputs).map_err(at)?;
                let context = LowerContext { capabilities, inputs: &inputs, output: &output };
                let variants = case.operator.lower(&context).map_err(at)?;
                let dispatches = variants.iter().flat_map(|variant| &variant.dispatches);
                // A result alone may be in half precision, too.
                let able = dispatches.filter(|d| capabilities.shader_f16 || !d.features.contains(&"f16"));
                found.extend(able.map(Kernel::new));
            }
        }
    }
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_ops::DeviceKind;

    #[test]
    fn kernels_are_those_of_the_device() {
        let plain = Capabilities::baseline(DeviceKind::Discrete);
        let names = |capabilities: &Capabilities| {
            kernels(capabilities).unwrap().iter().map(Kernel::name).collect::<BTreeSet<_>>()
        };
        let without = names(&plain);
        assert!(without.iter().any(|name| name.starts_with("matmul_workgroup_tile")));
        assert!(without.iter().all(|name| !name.contains("coop") && !name.contains("+f16")));
        let able = Capabilities {
            shader_f16: true,
            subgroup_lanes: 32,
            cooperative_size: 16,
            max_workgroup_bytes: 48 << 10,
            ..plain
        };
        let with = names(&able);
        assert!(without.is_subset(&with));
        for shader in ["matmul_cooperative", "conv2d_cooperative", "attention_cooperative"] {
            assert!(with.iter().any(|name| name.starts_with(shader) && name.contains("coop16")), "{shader}");
        }
        let both = names(&Capabilities { packed_matrices: true, ..able });
        assert!(with.is_subset(&both), "to be compared");
        for name in with.iter().filter(|name| name.starts_with("matmul_coop") || name.starts_with("conv2d_coop")) {
            assert!(both.contains(&name.replace("+f16", "+f16+packed")), "{name}");
        }
    }
}
