//! The networks of PuLID-SDXL as graphs, in modules that read like their checkpoints.
//!
//! Each network is a struct of weights (read lazily) and sizes (read from the configuration or the tensors), and a
//! `graph` method that builds its graph for one call's extents. Graphs are channels last; [`run`] converts from and to
//! PyTorch's layout.

mod clip_block;
mod clip_vision;
mod config;
mod eva_clip;
mod eva_names;
pub mod face;
mod family;
#[cfg(not(target_arch = "wasm32"))]
pub mod golden;
#[cfg(not(target_arch = "wasm32"))]
pub mod inspect;
mod key_report;
mod layers;
pub mod onnx;
mod patch;
pub mod pulid;
#[cfg(not(target_arch = "wasm32"))]
pub mod run;
pub mod sdxl;
mod tokenizer;
pub mod training;
mod unread;
mod vars;
mod wrapped;

pub use clip_vision::{Clip, ClipVisionConfig, ClipVisionModel};
pub use config::PerBlock;
pub use eva_clip::{EvaClip, EvaSettings};
pub use family::{Kind, OnnxFamily, Role, family, kind, require};
pub use layers::Conv;
pub use patch::{Patch, Patches};
pub use tokenizer::{ClipTokenizer, Padding, TokenizerFiles, TokenizerKind};
pub use unread::Unread;
pub use vars::{Precision, Vars};
