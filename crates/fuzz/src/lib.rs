//! One function for each kind of file that comes from outside: it reads whatever it is given, as far as the program would
//! before anything runs on a device, and ends the process where that takes more memory than the file warrants.
//!
//! `fuzz/` lets libFuzzer look for files that break them; `tests/corpus.rs` feeds them the committed corpus and changed
//! copies of it in every test run.

mod targets;

use targets::{config, gguf, image, onnx, pickle, safetensors, zip};

use cap::Cap;
use std::alloc::System;

/// Counts what is allocated, and refuses what is over the limit.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// A kind of file.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the fuzz target and of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Reads such a file.
    pub read: fn(&[u8]),
    /// Bytes that may be allocated at a time, whatever the file.
    pub base: usize,
    /// Bytes that may be allocated for each byte of the file.
    pub factor: usize,
}

/// Every kind of file.
pub static TARGETS: [Target; 7] = [
    // A header's entry of 60 bytes becomes a name, a shape and a place in two maps.
    Target { name: "safetensors", read: safetensors, base: 1 << 20, factor: 64 },
    // As safetensors, with shorter entries; a block of 2 bits a weight becomes 32.
    Target { name: "gguf", read: gguf, base: 1 << 20, factor: 64 },
    // An instruction of one byte may put a value of some 64 on the stack, and a list grows to twice its size.
    Target { name: "pickle", read: pickle, base: 1 << 20, factor: 256 },
    Target { name: "zip", read: zip, base: 1 << 20, factor: 256 },
    // Constants are folded up to the builder's own limit, which is for all of a file together.
    Target { name: "onnx", read: onnx, base: 256 << 20, factor: 256 },
    // Sizes of a configuration are checked against the weights, of which there are none here; a tokenizer's patterns, which
    // are the same for every vocabulary, compile to some megabytes.
    Target { name: "config", read: config, base: 32 << 20, factor: 256 },
    // Few bytes may hold many pixels: the limit is the number of pixels, and the decoders' own tables.
    Target { name: "image", read: image, base: 96 << 20, factor: 16 },
];

impl Target {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Reads a file within its allowance. An allocation beyond it aborts the process: there is no other way out of an
    /// allocator, and a fuzzer takes that for the finding it is. Only one thread may do this at a time.
    pub fn feed(&self, bytes: &[u8]) {
        let allowance = self.base + self.factor * bytes.len();
        // No process has a higher limit than this, so it cannot fail.
        let _ = MEMORY.set_limit(MEMORY.allocated() + allowance);
        (self.read)(bytes);
        lift();
    }
}

/// Ends an allowance. A hook of panics does so before it reports one, which takes more memory than many a file.
pub fn lift() {
    let _ = MEMORY.set_limit(usize::MAX);
}
