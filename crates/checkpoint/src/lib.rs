//! Checkpoints: named tensors in files, read lazily.
//!
//! A [`Source`] gives random access to bytes: a mapped file, bytes in memory, or whatever the browser offers. A format
//! ([`safetensors`], GGUF, PyTorch's two) turns a source into an [`Index`] of where each tensor lies, reading nothing but the
//! header. A [`Checkpoint`] joins the indices of one or several sources and reads a tensor when asked for it. [`onnx`] reads
//! a whole graph with its weights.
//!
//! Nothing here trusts a file: every size is checked against the bytes that are there before memory is taken for it.

mod checkpoint;
mod element;
#[cfg(not(target_arch = "wasm32"))]
mod file;
pub mod files;
mod folder;
mod fp8;
mod gguf;
mod hash;
mod index;
pub mod json;
pub mod onnx;
mod pickle;
pub mod safetensors;
mod scale;
mod source;
mod stranger;
mod view;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use element::ElementType;
#[cfg(not(target_arch = "wasm32"))]
pub use file::{FileSet, write_atomically, write_folder_atomically};
pub use gguf::BlockType;
pub use hash::{sha256_file, sha256_hex, sha256_values};
pub use index::{Entry, Format, Index};
#[cfg(not(target_arch = "wasm32"))]
pub use safetensors::{write_safetensors, write_safetensors_one_by_one};
#[cfg(not(target_arch = "wasm32"))]
pub use source::MappedFile;
pub use source::{MemorySource, Source, unique_identity};
pub use view::View;

/// Reference-counted bytes: a slice of a mapped file or of memory.
pub use bytes::Bytes;
