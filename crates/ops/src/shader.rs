//! The translated shaders, embedded at build time.

/// One permutation of a shader: WGSL text and what reflection knows of it.
#[derive(Debug)]
pub struct Shader {
    /// File name without extension; also the entry point.
    pub name: &'static str,
    /// Features that were on when it was translated, sorted.
    pub features: &'static [&'static str],
    /// Plain WGSL.
    pub wgsl: &'static str,
    /// Workgroup size as written (overrides not applied).
    pub workgroup_size: [u32; 3],
    /// Whether each storage binding (1, 2, ...) is written.
    pub writable: &'static [bool],
    /// (name, byte offset, WGSL type) of each field of the parameters at binding 0.
    pub params: &'static [(&'static str, u32, &'static str)],
    /// Bytes of the parameters.
    pub params_size: u32,
    /// (name used from Rust, name in the WGSL text) of the pipeline-overridable constants.
    pub overrides: &'static [(&'static str, &'static str)],
}

impl Shader {
    /// Whether its matrices lie in memory as units of 16 bytes, which WGSL cannot say: the text says f32 where f16 is meant, and only the engine
    /// makes a kernel of it, for Vulkan.
    pub fn is_packed(&self) -> bool {
        self.features.contains(&"packed")
    }
}

include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// Every permutation of every shader.
pub fn shaders() -> &'static [Shader] {
    SHADERS
}

/// The permutation of a shader with exactly these (sorted) features.
pub fn shader(name: &str, features: &[&str]) -> Option<&'static Shader> {
    SHADERS.iter().find(|s| s.name == name && s.features == features)
}
