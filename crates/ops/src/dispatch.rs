//! What an operator lowers to: dispatches as plain data.

use crate::shader::{Shader, shader};
use crate::{Activation, MAX_WORKGROUPS};
use pulid_tensor::{DType, Error, Result};
use serde::Serialize;

/// Plain parameters of a shader, laid out as its uniform struct. Implemented by [`params!`](crate::params).
pub trait Params: bytemuck::Pod {
    /// (name, byte offset, WGSL type) of each field; held against the shader's reflection by a unit test.
    const FIELDS: &'static [(&'static str, u32, &'static str)];
}

/// WGSL name of a Rust parameter type.
pub trait ParamType {
    /// For example `u32`.
    const WGSL: &'static str;
}
impl ParamType for u32 {
    const WGSL: &'static str = "u32";
}
impl ParamType for i32 {
    const WGSL: &'static str = "i32";
}
impl ParamType for f32 {
    const WGSL: &'static str = "f32";
}
impl ParamType for [u32; 4] {
    const WGSL: &'static str = "vec4<u32>";
}
impl ParamType for [f32; 4] {
    const WGSL: &'static str = "vec4<f32>";
}

/// Declares a `#[repr(C)]` parameter struct, its fields as visible as itself, and its field table. Put `[u32; 4]` fields first: they align to 16 bytes.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$fmeta])* $vis $field: $ty),* }
        impl $crate::dispatch::Params for $name {
            const FIELDS: &'static [(&'static str, u32, &'static str)] = &[
                $((stringify!($field), std::mem::offset_of!($name, $field) as u32,
                   <$ty as $crate::dispatch::ParamType>::WGSL)),*
            ];
        }
    };
}

/// What a storage binding refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Operand `i` of the operator.
    Input(usize),
    /// The operator's result.
    Output,
    /// Scratch buffer `i` of the variant.
    Scratch(usize),
    /// Any valid buffer: the shader declares the binding but these constants never read it.
    Unused,
}

/// One compute dispatch.
#[derive(Clone, Debug, Serialize)]
pub struct Dispatch {
    /// Shader name.
    pub shader: &'static str,
    /// Shader features, sorted.
    pub features: Vec<&'static str>,
    /// Values of pipeline-overridable constants.
    pub constants: Vec<(&'static str, f64)>,
    /// Storage bindings 1, 2, ... in order.
    pub bindings: Vec<Slot>,
    /// Bytes of the uniform at binding 0.
    #[serde(skip)]
    pub params: Vec<u8>,
    /// Readable form of `params`, for plans.
    #[serde(rename = "params")]
    pub params_text: String,
    /// The Rust side's field table, compared with the shader's by a unit test.
    #[serde(skip)]
    pub params_fields: &'static [(&'static str, u32, &'static str)],
    /// Workgroups in x, y, z.
    pub grid: [u32; 3],
}

impl Dispatch {
    /// A dispatch of `shader` with the given parameters; complete it with the builder methods.
    pub fn new<P: Params + std::fmt::Debug>(shader: &'static str, params: P) -> Self {
        Dispatch {
            shader,
            features: Vec::new(),
            constants: Vec::new(),
            bindings: Vec::new(),
            params: bytemuck::bytes_of(&params).to_vec(),
            params_text: format!("{params:?}"),
            params_fields: P::FIELDS,
            grid: [1, 1, 1],
        }
    }

    /// Adds the features that the storage type asks for: `f16` when activations are stored in half precision.
    pub fn storage(mut self, activations: DType) -> Self {
        if activations == DType::F16 {
            self.features.push("f16");
            self.features.sort_unstable();
        }
        self
    }

    /// Adds `w16` when weights are half precision and activations are not: the shader then unpacks them from `u32`.
    /// With half-precision activations weights are read natively. Adds `w8` or `w4` for quantised weights.
    pub fn weight_storage(self, activations: DType, weights: DType) -> Self {
        let feature = match (weights, activations) {
            (DType::Q8, _) => "w8",
            (DType::Q4, _) => "w4",
            (DType::F16, DType::F32) => "w16",
            _ => return self.storage(activations),
        };
        self.feature(feature, true).storage(activations)
    }

    /// Adds a shader feature when `on`: `vec4` (four elements a cell) or `wide` (one operand is f32 under f16 activations).
    pub fn feature(mut self, name: &'static str, on: bool) -> Self {
        if on {
            self.features.push(name);
            self.features.sort_unstable();
        }
        self
    }

    /// Sets the constants of `shared/activation.wgsl`, which the shader must import.
    pub fn activation(mut self, activation: Activation) -> Self {
        if activation != Activation::None {
            let (a, b) = activation.constants();
            self.constants.push(("ACTIVATION", f64::from(activation.code())));
            if (a, b) != (0.0, 0.0) {
                self.constants.push(("FIRST", f64::from(a)));
                self.constants.push(("SECOND", f64::from(b)));
            }
        }
        self
    }

    /// Sets a pipeline-overridable constant.
    pub fn constant(mut self, name: &'static str, value: impl Into<f64>) -> Self {
        self.constants.push((name, value.into()));
        self
    }

    /// Sets the storage bindings, in order.
    pub fn bind(mut self, slots: impl Into<Vec<Slot>>) -> Self {
        self.bindings = slots.into();
        self
    }

    /// Sets the number of workgroups.
    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x, y, z].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        self
    }

    /// Enough workgroups of the shader's x size for `count` invocations, folded into two dimensions when one is too
    /// short; pair it with `flat_index` of `shared/grid.wgsl` in the shader.
    pub fn over(mut self, count: usize) -> Self {
        let size = self.shader_info().map_or(64, |s| s.workgroup_size[0] as usize);
        let groups = count.div_ceil(size).max(1);
        let rows = groups.div_ceil(MAX_WORKGROUPS as usize);
        self.grid = [groups.div_ceil(rows) as u32, rows as u32, 1];
        self
    }

    /// One workgroup per item, folded into two dimensions when one is too short: item `group.y * groups.x + group.x`.
    pub fn groups(mut self, count: usize) -> Self {
        let rows = count.div_ceil(MAX_WORKGROUPS as usize).max(1);
        self.grid = [count.div_ceil(rows).max(1) as u32, rows as u32, 1];
        self
    }

    /// The shader permutation this dispatch runs.
    ///
    /// # Errors
    /// When no such permutation was built.
    pub fn shader_info(&self) -> Result<&'static Shader> {
        shader(self.shader, &self.features).ok_or_else(|| {
            Error::operator(self.shader, format!("no permutation with features {:?} was built", self.features))
        })
    }
}

/// One way to compute an operator: its dispatches run in order.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// Name shown in plans and cached by autotune, for example `register_tile`.
    pub name: &'static str,
    /// The dispatches.
    pub dispatches: Vec<Dispatch>,
    /// Bytes of each scratch buffer.
    pub scratch: Vec<usize>,
}

impl Variant {
    /// A variant of one dispatch without scratch.
    pub fn single(name: &'static str, dispatch: Dispatch) -> Self {
        Variant { name, dispatches: vec![dispatch], scratch: Vec::new() }
    }

    /// The same variant with a pipeline-overridable constant set in every dispatch.
    pub fn constant(mut self, name: &'static str, value: impl Into<f64> + Copy) -> Self {
        self.dispatches.iter_mut().for_each(|d| d.constants.push((name, value.into())));
        self
    }
}

/// Operations from which on a CPU device's driver wins back the time it takes to compile a kernel's larger tile.
pub const LONG: u64 = 1 << 30;

/// The same for the register tiles of CPU devices whose subgroups are too small for others.
pub const LONG_IN_REGISTERS: u64 = 1 << 27;
