//! The registry, the shaders and the Rust side agree with each other.

use pulid_ops::{Capabilities, DeviceKind, LowerContext, operators, shaders};
use std::collections::BTreeSet;

#[test]
fn every_shader_belongs_to_an_operator() {
    let built: BTreeSet<_> = shaders().iter().map(|s| s.name).collect();
    let owned: BTreeSet<_> = operators().flat_map(|(_, info)| info.shaders).copied().collect();
    assert_eq!(built, owned);
}

#[test]
fn every_operator_has_cases_under_its_own_name() {
    for (_, info) in operators() {
        let cases = (info.cases)();
        assert!(!cases.is_empty(), "{} has no cases", info.name);
        let mut names = BTreeSet::new();
        for case in cases {
            assert_eq!(case.operator.name(), info.name);
            assert!(names.insert(case.name.clone()), "{} has two cases {}", info.name, case.name);
        }
    }
}

/// Compilers keep what has a variable of its own in registers: `crates/ops/build/matrices.rs`.
#[test]
fn every_cooperative_matrix_has_a_variable_of_its_own() {
    use naga::TypeInner;
    let cooperative = shaders().iter().filter(|s| s.features.iter().any(|f| f.starts_with("coop")));
    let mut variables = BTreeSet::new();
    for shader in cooperative {
        let module = naga::front::wgsl::parse_str(shader.wgsl).unwrap();
        let is_matrix = |ty| matches!(module.types[ty].inner, TypeInner::CooperativeMatrix { .. });
        for (_, ty) in module.types.iter() {
            let held = match &ty.inner {
                TypeInner::Array { base, .. } | TypeInner::Pointer { base, .. } => is_matrix(*base),
                TypeInner::Struct { members, .. } => members.iter().any(|member| is_matrix(member.ty)),
                _ => false,
            };
            assert!(!held, "{} {:?}: {:?} holds matrices", shader.name, shader.features, ty.inner);
        }
        for (_, function) in module.functions.iter() {
            let passed = function.arguments.iter().any(|a| is_matrix(a.ty));
            assert!(!passed, "{} {:?}: {:?} takes a matrix", shader.name, shader.features, function.name);
        }
        let entry = &module.entry_points[0].function;
        let own = entry.local_variables.iter().filter(|(_, v)| is_matrix(v.ty)).count();
        variables.insert((shader.name, own));
    }
    let expected = [("attention_cooperative", 36), ("attention_cooperative", 40)];
    let sums = [("conv2d_cooperative", 16), ("matmul_cooperative", 16)];
    assert_eq!(variables, expected.into_iter().chain(sums).collect());
}

/// Lowers every case on every kind of device and checks each dispatch against its shader's reflection.
#[test]
fn dispatches_match_their_shaders() {
    let mut used = BTreeSet::new();
    for (_, info) in operators() {
        for case in (info.cases)() {
            for storage in case.storages() {
                for (kind, cooperative_size, packed_matrices) in [
                    (DeviceKind::Cpu, 0, false),
                    (DeviceKind::Cpu, 8, false),
                    (DeviceKind::Discrete, 16, false),
                    (DeviceKind::Discrete, 16, true),
                ] {
                    let id = format!("{}/{} {}", info.name, case.name, storage.name());
                    let inputs = case.types(storage);
                    let output = case.operator.infer(&inputs).unwrap_or_else(|e| panic!("{id}: {e}"));
                    let capabilities = Capabilities {
                        shader_f16: true,
                        subgroup_lanes: 8,
                        cooperative_size,
                        packed_matrices,
                        max_workgroup_bytes: 48 << 10,
                        ..Capabilities::baseline(kind)
                    };
                    let cx = LowerContext { capabilities: &capabilities, inputs: &inputs, output: &output };
                    let variants = case.operator.lower(&cx).unwrap_or_else(|e| panic!("{id}: {e}"));
                    assert!(!variants.is_empty(), "{id} has no variant");
                    for dispatch in variants.iter().flat_map(|v| &v.dispatches) {
                        let shader = dispatch.shader_info().unwrap_or_else(|e| panic!("{id}: {e}"));
                        assert!(info.shaders.contains(&shader.name), "{id} uses {}, not its own", shader.name);
                        assert_eq!(dispatch.params_fields, shader.params, "{id}: parameters of {}", shader.name);
                        assert_eq!(dispatch.bindings.len(), shader.writable.len(), "{id}: bindings of {}", shader.name);
                        for (name, _) in &dispatch.constants {
                            let known = shader.overrides.iter().any(|(short, _)| short == name);
                            assert!(known, "{id}: {} has no override {name}", shader.name);
                        }
                        for axis in dispatch.grid {
                            assert!((1..=65_535).contains(&axis), "{id}: grid {:?}", dispatch.grid);
                        }
                        used.insert((shader.name, shader.features));
                    }
                }
            }
        }
    }
    for shader in shaders() {
        assert!(
            used.contains(&(shader.name, shader.features)),
            "no case reaches {} with features {:?}",
            shader.name,
            shader.features
        );
    }
}
