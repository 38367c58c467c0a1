//! The checks as files, for runners that know nothing of this program: `cases.json`, `data.bin` and the shaders' WGSL.
//!
//! `web/conformance.mjs` is such a runner; its comments say what each field means to it.

use crate::report::PROGRAM;
use crate::{Check, Expectation, Expectations, reference};
use pulid_checkpoint::write_folder_atomically;
use pulid_engine::GUARD;
use pulid_ops::{Slot, shader};
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::path::Path;

/// `cases.json`.
#[derive(Serialize)]
struct Suite<'a> {
    program: &'static str,
    /// Failures that are known.
    expected: &'a [Expectation],
    /// Bytes before and behind the result and each scratch buffer that no kernel may change; a multiple of every device's alignment.
    guard: usize,
    /// What these, the result and scratch buffers hold before.
    sentinel: u8,
    shaders: BTreeMap<String, ShaderFile>,
    checks: Vec<Exported>,
}

#[derive(Serialize)]
struct ShaderFile {
    file: String,
    entry: &'static str,
    /// Whether each storage binding (1, 2, ...) is written.
    writable: &'static [bool],
}

#[derive(Serialize)]
struct Exported {
    id: String,
    operands: Vec<Blob>,
    output: Output,
    /// Bytes of each scratch buffer.
    scratch: Vec<usize>,
    dispatches: Vec<Run>,
    /// Subgroups of exactly so many lanes are needed, if not 0.
    subgroup_lanes: u32,
}

/// A part of `data.bin`.
#[derive(Clone, Copy, Serialize)]
struct Blob {
    offset: u64,
    bytes: usize,
}

#[derive(Serialize)]
struct Output {
    /// `f32`, `f16` or `u32`.
    dtype: &'static str,
    count: usize,
    bytes: usize,
    /// The reference's values in f32, rounded to the type.
    want: Blob,
    /// |got - want| may be this much of |want| + rms(want).
    relative: f64,
}

#[derive(Serialize)]
struct Run {
    shader: String,
    constants: BTreeMap<&'static str, f64>,
    /// Bytes of the uniform at binding 0.
    params: Vec<u8>,
    bindings: Vec<Slot>,
    grid: [u32; 3],
}

/// Appends bytes once, however often they are asked for.
struct Data<W> {
    file: W,
    end: u64,
    known: HashMap<(u64, usize), u64>,
}

impl<W: Write> Data<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<Blob> {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let key = (hasher.finish(), bytes.len());
        if let Some(&offset) = self.known.get(&key) {
            return Ok(Blob { offset, bytes: bytes.len() });
        }
        let offset = self.end;
        self.file.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(16) - bytes.len();
        self.file.write_all(&[0; 16][..padding])?;
        self.end += (bytes.len() + padding) as u64;
        self.known.insert(key, offset);
        Ok(Blob { offset, bytes: bytes.len() })
    }
}

/// Writes the checks into a new folder; gives the bytes of their data.
///
/// # Errors
/// When the folder exists or cannot be written; then nothing is left of it.
pub fn export(folder: &Path, checks: &[Check], expected: &Expectations) -> Result<u64> {
    write_folder_atomically(folder, |root| {
        let io = |e| Error::io(folder, e);
        let file = std::fs::File::create(root.join("data.bin")).map_err(io)?;
        let mut data = Data { file: BufWriter::new(file), end: 0, known: HashMap::new() };
        let mut shaders = BTreeMap::new();
        let mut exported = Vec::with_capacity(checks.len());
        for check in checks {
            exported.push(one(check, &mut data, &mut shaders, root)?);
        }
        data.file.flush().map_err(io)?;
        let (expected, sentinel) = (expected.all(), pulid_engine::SENTINEL);
        let suite = Suite { program: PROGRAM, expected, guard: GUARD, sentinel, shaders, checks: exported };
        let text = serde_json::to_vec(&suite).map_err(|e| Error::invalid("cases.json", e.to_string()))?;
        std::fs::write(root.join("cases.json"), text).map_err(io)?;
        Ok(data.end)
    })
}

fn one<W: Write>(
    check: &Check,
    data: &mut Data<W>,
    shaders: &mut BTreeMap<String, ShaderFile>,
    root: &Path,
) -> Result<Exported> {
    let io = |e| Error::io(root, e);
    let inputs = check.case.inputs(check.storage)?;
    let types: Vec<TensorType> = inputs.iter().map(HostTensor::tensor_type).collect();
    let output = check.case.operator.infer(&types)?;
    let want = reference(&check.case, &inputs)?.cast(output.dtype);
    let mut dispatches = Vec::new();
    let mut subgroup_lanes = 0;
    for d in &check.variant.dispatches {
        let info = shader(d.shader, &d.features)
            .ok_or_else(|| Error::operator(d.shader, format!("no permutation with features {:?}", d.features)))?;
        let name = [&[d.shader][..], &d.features].concat().join("+");
        if !shaders.contains_key(&name) {
            let file = format!("{name}.wgsl");
            // naga takes subgroup operations without being asked to; WGSL wants the directive.
            let subgroups = if info.wgsl.contains("subgroup") { "enable subgroups;\n" } else { "" };
            std::fs::write(root.join(&file), format!("{subgroups}{}", info.wgsl)).map_err(io)?;
            shaders.insert(name.clone(), ShaderFile { file, entry: info.name, writable: info.writable });
        }
        if info.wgsl.contains("subgroup") {
            subgroup_lanes = 8;
        }
        let full = |short: &str| info.overrides.iter().find(|(name, _)| *name == short).map(|(_, full)| *full);
        let constants = d.constants.iter().filter_map(|(name, value)| Some((full(name)?, *value))).collect();
        let (params, bindings, grid) = (d.params.clone(), d.bindings.clone(), d.grid);
        dispatches.push(Run { shader: name, constants, params, bindings, grid });
    }
    let operands = inputs.iter().map(|tensor| data.put(tensor.bytes())).collect::<std::io::Result<_>>().map_err(io)?;
    let values: Vec<u8> = want.to_f32_vec().iter().flat_map(|v| v.to_le_bytes()).collect();
    let output = Output {
        dtype: match output.dtype {
            DType::F16 => "f16",
            DType::U32 => "u32",
            _ => "f32",
        },
        count: output.shape.count(),
        bytes: output.bytes(),
        want: data.put(&values).map_err(io)?,
        relative: check.case.tolerance.relative(output.dtype),
    };
    let scratch = check.variant.scratch.clone();
    Ok(Exported { id: check.id.clone(), operands, output, scratch, dispatches, subgroup_lanes })
}
