use crate::element::{host_tensor, in_order, integers};
use crate::scale::{self, Scale};
use crate::{BlockType, ElementType, Entry, Index, Source, View};
use bytes::Bytes;
use pulid_tensor::{BLOCK, DType, Error, HostTensor, Result, Shape, TensorType};
use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Shape and element type of a tensor in a checkpoint. The shape is PyTorch's, of quantised blocks too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The extents.
    pub shape: Shape,
    /// The elements' type in the file.
    pub element: ElementType,
    /// The elements' type once read by [`Checkpoint::tensor`].
    pub dtype: DType,
    /// The quantised type as which [`Checkpoint::blocks`] reads the same values.
    pub blocks: Option<DType>,
}

/// Tensors by name in one or several files. Clones and views share the files.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Arc<Files>,
    /// What every key of this view begins with in the files.
    prefix: String,
}

#[derive(Debug)]
struct Files {
    name: String,
    sources: Vec<Arc<dyn Source>>,
    entries: BTreeMap<String, Place>,
    metadata: BTreeMap<String, String>,
    /// Keys of scales and marks, which are no tensors of their own.
    consumed: BTreeSet<String>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Number of the source.
    pub source: usize,
    /// The place there.
    pub entry: Entry,
    /// What its elements are multiplied by.
    pub scale: Option<Scale>,
}

impl Place {
    /// The type that the tensor has once read.
    fn dtype(&self) -> DType {
        // A product with a scale is no number in half precision.
        if self.scale.is_some() { DType::F32 } else { self.entry.element.dtype() }
    }

    /// The type in which kernels read these blocks as they are, and the blocks': of a matrix [N, K] as [K, N], of filters
    /// [O, I, 1, 1] as [1, 1, I, O].
    fn blocks(&self) -> Option<(TensorType, BlockType)> {
        let Entry { element: ElementType::Ggml(block), shape, strides: None, .. } = &self.entry else { return None };
        let (shape, inner) = match shape[..] {
            [n, k] => (vec![k, n], k),
            [o, i, 1, 1] => (vec![1, 1, i, o], i),
            _ => return None,
        };
        let whole = inner > 0 && inner.is_multiple_of(BLOCK) && self.scale.is_none();
        Some((TensorType::new(block.kernels().filter(|_| whole)?, shape), *block))
    }
}

impl Checkpoint {
    /// Opens a file, an index of shards (`*.index.json`) or a folder laid out as diffusers or transformers do.
    ///
    /// A file is in safetensors, GGUF or one of PyTorch's formats. In a folder the first of these is taken:
    /// `model.safetensors`, `diffusion_pytorch_model.safetensors`, their index files, the same with `fp16`, the only
    /// `.safetensors` file there is, then `pytorch_model.bin` and `diffusion_pytorch_model.bin` likewise, and last the only
    /// `.gguf` file. Files are mapped and only their headers are read.
    ///
    /// # Errors
    /// When nothing is found, or a file is of an unknown format or malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        crate::folder::open(path.as_ref())
    }

    /// The checkpoint in one source.
    ///
    /// # Errors
    /// When the source is of an unknown format or malformed.
    pub fn from_source(source: Arc<dyn Source>) -> Result<Self> {
        let name = source.path().display().to_string();
        Self::from_sources(name, vec![source])
    }

    /// The checkpoint in several sources (shards); `name` is used in messages.
    ///
    /// # Errors
    /// When a source is of an unknown format or malformed, or two of them hold the same key.
    pub fn from_sources(name: impl Into<String>, sources: Vec<Arc<dyn Source>>) -> Result<Self> {
        let mut files = Files {
            name: name.into(),
            sources: Vec::new(),
            entries: BTreeMap::new(),
            metadata: BTreeMap::new(),
            consumed: BTreeSet::new(),
        };
        for source in sources {
            let index = Index::read(&*source)?;
            files.add(source, index)?;
        }
        // A weight and its scale may lie in two shards.
        files.consumed = scale::attach(&files.name, &files.sources, &files.metadata, &mut files.entries)?;
        Ok(Checkpoint { files: Arc::new(files), prefix: String::new() })
    }

    /// The tensors of both checkpoints in one.
    ///
    /// # Errors
    /// When both hold the same key.
    pub fn merge(&self, other: &Checkpoint) -> Result<Self> {
        let mut files = Files {
            name: format!("{} and {}", self.files.name, other.files.name),
            sources: self.files.sources.iter().chain(&other.files.sources).cloned().collect(),
            entries: BTreeMap::new(),
            metadata: other.files.metadata.clone(),
            consumed: self.files.consumed.union(&other.files.consumed).cloned().collect(),
        };
        files.metadata.extend(self.files.metadata.clone());
        for (checkpoint, first_source) in [(self, 0), (other, self.files.sources.len())] {
            for (key, place) in checkpoint.entries() {
                let mut place = place.clone();
                place.source += first_source;
                if let Some(scale) = &mut place.scale {
                    scale.source += first_source;
                }
                if files.entries.insert(key.to_owned(), place).is_some() {
                    return Err(weight_error(key, &files.name, "is in both".into()));
                }
            }
        }
        Ok(Checkpoint { files: Arc::new(files), prefix: String::new() })
    }

    /// The tensors under other keys: `rename` gives each key's new name, or `None` to leave the tensor out.
    ///
    /// # Errors
    /// When two tensors get the same key.
    pub fn rename(&self, mut rename: impl FnMut(&str) -> Option<String>) -> Result<Self> {
        self.remap(|key, _| rename(key).map(|new| (new, View::Whole)).into_iter().collect())
    }

    /// The tensors under other keys and seen otherwise: `remap` gives for each key and shape what is seen of the tensor and
    /// under which keys. Nothing is read or copied.
    ///
    /// # Errors
    /// When two tensors get the same key, or one cannot be seen as is wanted.
    pub fn remap(&self, mut remap: impl FnMut(&str, &Shape) -> Vec<(String, View)>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (key, Place { source, entry, scale }) in self.entries() {
            for (new, view) in remap(key, &entry.shape) {
                let fail = |detail| weight_error(&self.full(key), self.name(), detail);
                let seen = view.of(entry).map_err(fail)?;
                let scale = scale.as_ref().map(|scale| scale.of(&view)).transpose().map_err(fail)?;
                match entries.entry(new) {
                    btree_map::Entry::Vacant(slot) => {
                        slot.insert(Place { source: *source, entry: seen, scale });
                    }
                    btree_map::Entry::Occupied(slot) => {
                        let detail = format!("and another key are both renamed to `{}`", slot.key());
                        return Err(weight_error(key, &self.files.name, detail));
                    }
                }
            }
        }
        let files = Files {
            name: self.files.name.clone(),
            sources: self.files.sources.clone(),
            entries,
            metadata: self.files.metadata.clone(),
            consumed: self.files.consumed.clone(),
        };
        Ok(Checkpoint { files: Arc::new(files), prefix: String::new() })
    }

    /// A view of the tensors whose keys begin with `prefix`, by the rest of their keys. It may be empty.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        Checkpoint { files: self.files.clone(), prefix: format!("{}{prefix}", self.prefix) }
    }

    /// [`Checkpoint::with_prefix`] if any key begins so, else the same view: some files hold the bare module.
    pub fn with_optional_prefix(&self, prefix: &str) -> Self {
        let view = self.with_prefix(prefix);
        if view.is_empty() { self.clone() } else { view }
    }

    /// What messages call this checkpoint: its file or folder.
    pub fn name(&self) -> &str {
        &self.files.name
    }

    /// Free text stored beside the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.files.metadata
    }

    /// The keys in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|(key, _)| key)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries().count()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    /// Whether there is a tensor of this key.
    pub fn contains(&self, key: &str) -> bool {
        self.files.entries.contains_key(&self.full(key))
    }

    /// Whether a file has this key for the scale of a weight or a mark, which is no tensor of its own here.
    pub(crate) fn consumes(&self, key: &str) -> bool {
        self.files.consumed.contains(&self.full(key))
    }

    /// Shape and element type, without reading the tensor.
    ///
    /// # Errors
    /// When the key is missing; the message names the closest keys.
    pub fn info(&self, key: &str) -> Result<TensorInfo> {
        let place = self.place(key)?;
        let (entry, dtype) = (&place.entry, place.dtype());
        let shape = match *entry.shape.extents() {
            [k, n] if dtype.is_quantized() => Shape::from([n, k]),
            [kh, kw, i, o] if dtype.is_quantized() => Shape::from([o, i, kh, kw]),
            _ => entry.shape.clone(),
        };
        Ok(TensorInfo { shape, element: entry.element, dtype, blocks: place.blocks().map(|(ty, _)| ty.dtype) })
    }

    /// The file in which a tensor lies: of several shards its own.
    ///
    /// # Errors
    /// When the key is missing.
    pub fn file_of(&self, key: &str) -> Result<&Path> {
        Ok(self.files.sources[self.place(key)?.source].path())
    }

    /// What tells a tensor's bytes from all others: its file, its place there and how it is seen. Equal under every name and view.
    ///
    /// # Errors
    /// When the key is missing.
    pub fn identity(&self, key: &str) -> Result<String> {
        let Place { source, entry: Entry { element, shape, bytes, strides }, scale } = self.place(key)?;
        let file = self.files.sources[*source].identity();
        let scale = scale.as_ref().map_or(String::new(), |scale| format!(" {}", scale.identity(&self.files.sources)));
        Ok(format!("{file} {}..{} {element:?} {shape} {strides:?}{scale}", bytes.start, bytes.end))
    }

    /// Reads a tensor: f16 stays f16 and fp8 becomes it, other floats, ggml's blocks and all that has a scale become f32, integers
    /// and booleans u32. Our own quantised blocks keep the order in which kernels read them: [K, N] of a matrix [N, K],
    /// [KH, KW, I, O] of filters [O, I, KH, KW].
    ///
    /// # Errors
    /// When the key is missing, the file cannot be read, or an integer is negative or needs more than 32 bits.
    pub fn tensor(&self, key: &str) -> Result<HostTensor> {
        let Place { source, entry, scale } = self.place(key)?;
        let tensor = match (&entry.strides, entry.element) {
            (Some(strides), ElementType::Ggml(block)) => {
                let bytes = self.files.sources[*source].read(entry.bytes.clone())?;
                let values = block.dequantize(&bytes);
                let values = HostTensor::from_f32([values.len()], values)?;
                in_order(values.bytes(), 4, &entry.shape, strides)
                    .and_then(|bytes| host_tensor(ElementType::F32, &entry.shape, &bytes))
            }
            _ => host_tensor(entry.element, &entry.shape, &self.bytes(key)?),
        };
        let scaled = |tensor| match scale {
            Some(scale) => scale.apply(tensor, &self.files.sources),
            None => Ok(tensor),
        };
        tensor.and_then(scaled).map_err(|e| self.explain(key, e))
    }

    /// Reads the blocks of a matrix or of filters of 1 x 1 as kernels read them, where [`TensorInfo::blocks`] says that they can be:
    /// nothing is rounded, and it takes as many bits an element as the file.
    ///
    /// # Errors
    /// When the key is missing, its tensor is no such blocks, or the file cannot be read.
    pub fn blocks(&self, key: &str) -> Result<HostTensor> {
        let Some((ty, block)) = self.place(key)?.blocks() else {
            return Err(weight_error(&self.full(key), self.name(), "is in no blocks that kernels read".into()));
        };
        let bytes = self.bytes(key)?;
        let size = block.bytes();
        // Blocks of one column follow one another, as its elements do.
        let column = ty.shape[ty.shape.rank() - 2] / BLOCK * size;
        HostTensor::from_blocks(ty.dtype, ty.shape, |c, number, codes| {
            block.codes(&bytes[c * column + number * size..][..size], codes)
        })
        .map_err(|e| self.explain(key, e))
    }

    /// [`Checkpoint::tensor`] of a known shape.
    ///
    /// # Errors
    /// Also when the tensor has another shape.
    pub fn tensor_of_shape(&self, key: &str, shape: impl Into<Shape>) -> Result<HostTensor> {
        let expected = shape.into();
        let entry = &self.place(key)?.entry;
        if entry.element.dtype().is_quantized() {
            return Err(weight_error(&self.full(key), self.name(), "is quantised, which is not read here".into()));
        }
        if entry.shape != expected {
            let detail = format!("has shape {}, expected {expected}; is this the right file?", entry.shape);
            return Err(weight_error(&self.full(key), self.name(), detail));
        }
        self.tensor(key)
    }

    /// Reads some rows of a table [N, ..] and nothing else of it: the result is [rows, ..], of the type
    /// [`Checkpoint::tensor`] gives.
    ///
    /// # Errors
    /// When the key is missing, the tensor is no table, a row is beyond its end or the file cannot be read.
    pub fn rows(&self, key: &str, rows: &[u32]) -> Result<HostTensor> {
        let Place { entry, scale, .. } = self.place(key)?;
        let Some((&count, row)) = entry.shape.split_first() else {
            return Err(weight_error(&self.full(key), self.name(), "is a single number, not a table".into()));
        };
        if let Some(&index) = rows.iter().find(|&&index| index as usize >= count) {
            let detail = format!("has {count} rows, row {index} is wanted");
            return Err(weight_error(&self.full(key), self.name(), detail));
        }
        let shape = Shape::new([rows.len()].iter().chain(row).copied().collect::<Vec<_>>());
        let elements = Shape::from(row).checked_count()? as u64;
        let mut bytes = Vec::new();
        match entry.element.run_bytes(elements) {
            Some(row_bytes) if entry.strides.is_none() && scale.is_none() => {
                for &index in rows {
                    let start = u64::from(index) * row_bytes;
                    bytes.extend_from_slice(&self.bytes_range(key, start..start + row_bytes)?);
                }
                host_tensor(entry.element, &shape, &bytes).map_err(|e| self.explain(key, e))
            }
            // Rows that are scattered over the file, under a scale or across blocks are read with all others.
            _ => {
                let whole = self.tensor(key)?;
                let row_bytes = whole.bytes().len() / count;
                for &index in rows {
                    bytes.extend_from_slice(&whole.bytes()[index as usize * row_bytes..][..row_bytes]);
                }
                HostTensor::from_bytes(&TensorType::new(whole.dtype(), shape), &bytes)
            }
        }
    }

    /// Reads an integer or boolean tensor as signed 64-bit integers.
    ///
    /// # Errors
    /// When the key is missing, the file cannot be read, or the elements are floats.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        let entry = &self.place(key)?.entry;
        integers(entry.element, &entry.shape, &self.bytes(key)?).map_err(|e| self.explain(key, e))
    }

    /// The tensor's little-endian bytes in row-major order as they are stored, without their scale, and without a copy where the
    /// file has them so and the source allows it.
    ///
    /// # Errors
    /// When the key is missing, the file cannot be read, or a view reorders what is stored in blocks.
    pub fn bytes(&self, key: &str) -> Result<Bytes> {
        let Place { source, entry, .. } = self.place(key)?;
        let bytes = self.files.sources[*source].read(entry.bytes.clone())?;
        match &entry.strides {
            None => Ok(bytes),
            Some(_) if matches!(entry.element, ElementType::Ggml(_)) => {
                let detail = format!("is stored in blocks of {}, whose bytes have no other order", entry.element);
                Err(weight_error(&self.full(key), self.name(), detail))
            }
            Some(strides) => in_order(&bytes, entry.element.size(), &entry.shape, strides)
                .map(Bytes::from)
                .map_err(|e| self.explain(key, e)),
        }
    }

    /// Part of [`Checkpoint::bytes`], for tensors that are passed on piece by piece.
    ///
    /// # Errors
    /// When the key is missing, the range ends past the tensor or the file cannot be read.
    pub fn bytes_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let Place { source, entry, .. } = self.place(key)?;
        let whole = &entry.bytes;
        let length = entry.element.bytes(&entry.shape).unwrap_or(u64::MAX);
        if range.start > range.end || range.end > length {
            let detail = format!("has {length} bytes, not {} to {}", range.start, range.end);
            return Err(weight_error(&self.full(key), self.name(), detail));
        }
        if entry.strides.is_some() {
            return Ok(self.bytes(key)?.slice(range.start as usize..range.end as usize));
        }
        self.files.sources[*source].read(whole.start + range.start..whole.start + range.end)
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The entries of this view by the keys of this view.
    fn entries(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.files
            .entries
            .range(self.prefix.clone()..)
            .map_while(|(key, place)| Some((key.strip_prefix(&self.prefix)?, place)))
    }

    fn place(&self, key: &str) -> Result<&Place> {
        let full = self.full(key);
        match self.files.entries.get(&full) {
            Some(place) => Ok(place),
            None => Err(weight_error(&full, self.name(), self.missing(&full))),
        }
    }

    fn missing(&self, key: &str) -> String {
        let near = nearest(key, self.files.entries.keys());
        if near.is_empty() {
            return "is missing: there are no tensors at all".into();
        }
        let list: Vec<String> = near.iter().map(|k| format!("`{k}`")).collect();
        format!("is missing; closest are {} ({} tensors in all)", list.join(", "), self.files.entries.len())
    }

    fn explain(&self, key: &str, error: Error) -> Error {
        match error {
            Error::Invalid { detail, .. } => weight_error(&self.full(key), self.name(), detail),
            other => other,
        }
    }
}

impl Files {
    fn add(&mut self, source: Arc<dyn Source>, index: Index) -> Result<()> {
        let number = self.sources.len();
        for (key, entry) in index.entries {
            if let Some(first) = self.entries.get(&key) {
                let detail =
                    format!("is in {} and {}", self.sources[first.source].path().display(), source.path().display());
                return Err(weight_error(&key, &self.name, detail));
            }
            self.entries.insert(key, Place { source: number, entry, scale: None });
        }
        self.metadata.extend(index.metadata);
        self.sources.push(source);
        Ok(())
    }
}

fn weight_error(key: &str, source_name: &str, detail: String) -> Error {
    Error::Weight { key: key.to_owned(), source_name: source_name.to_owned(), detail }
}

/// The three keys with the fewest edits from `wanted`.
fn nearest<'a>(wanted: &str, keys: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    // Edit distance is quadratic in the lengths; a hostile header must not make an error message slow.
    const KEYS: usize = 20_000;
    const LENGTH: usize = 300;
    if wanted.len() > LENGTH {
        return keys.take(3).map(String::as_str).collect();
    }
    let mut scored: Vec<(usize, &str)> =
        keys.filter(|k| k.len() <= LENGTH).take(KEYS).map(|k| (strsim::levenshtein(wanted, k), k.as_str())).collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, k)| k).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemorySource, safetensors};

    fn checkpoint(name: &str, keys: &[(&str, f32)]) -> Checkpoint {
        let tensors: Vec<(&str, HostTensor)> =
            keys.iter().map(|(k, v)| (*k, HostTensor::from_f32([1], vec![*v]).unwrap())).collect();
        let bytes =
            safetensors::to_bytes(tensors.iter().map(|(k, t)| (*k, t)), &BTreeMap::from([("a".into(), name.into())]))
                .unwrap();
        Checkpoint::from_source(Arc::new(MemorySource::new(name, bytes))).unwrap()
    }

    #[test]
    fn a_missing_key_names_its_neighbours() {
        let c =
            checkpoint("unet.safetensors", &[("conv_in.weight", 1.0), ("conv_in.bias", 2.0), ("z", 3.0), ("zz", 4.0)]);
        let message = c.tensor("conv_im.weight").unwrap_err().to_string();
        let expected = "weight `conv_im.weight` in unet.safetensors: is missing; closest are `conv_in.weight`, \
                        `conv_in.bias`, `z` (4 tensors in all)";
        assert_eq!(message, expected);
    }

    #[test]
    fn prefixes_narrow_and_messages_keep_the_full_key() {
        let c = checkpoint("p", &[("a.x", 1.0), ("a.y", 2.0), ("ab", 3.0), ("b.x", 4.0)]);
        let a = c.with_prefix("a.");
        assert_eq!(a.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(a.tensor("y").unwrap().as_f32().unwrap(), &[2.0]);
        assert!(a.contains("x") && !a.contains("b"));
        assert!(a.tensor("z").unwrap_err().to_string().contains("`a.z`"));
        assert_eq!(c.with_optional_prefix("b.").len(), 1);
        assert_eq!(c.with_optional_prefix("visual.").len(), 4);
        assert!(c.with_prefix("visual.").is_empty());
    }

    #[test]
    fn merging_joins_and_refuses_duplicates() {
        let a = checkpoint("a", &[("x", 1.0)]);
        let b = checkpoint("b", &[("y", 2.0)]);
        let both = a.merge(&b).unwrap();
        assert_eq!(both.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(both.tensor("y").unwrap().as_f32().unwrap(), &[2.0]);
        assert_eq!(both.metadata()["a"], "a");
        assert!(both.merge(&b).unwrap_err().to_string().contains("is in both"));
    }

    #[test]
    fn renaming_maps_drops_and_refuses_collisions() {
        let c = checkpoint("a", &[("x", 1.0), ("y", 2.0)]);
        let renamed = c.rename(|k| (k == "y").then(|| "z".to_owned())).unwrap();
        assert_eq!(renamed.keys().collect::<Vec<_>>(), ["z"]);
        assert_eq!(renamed.tensor("z").unwrap().as_f32().unwrap(), &[2.0]);
        assert!(c.rename(|_| Some("same".into())).is_err());
    }

    #[test]
    fn shapes_and_ranges_are_checked() {
        let c = checkpoint("a", &[("x", 1.0)]);
        assert!(c.tensor_of_shape("x", [1]).is_ok());
        assert!(c.tensor_of_shape("x", [2]).unwrap_err().to_string().contains("expected [2]"));
        assert_eq!(&c.bytes_range("x", 2..4).unwrap()[..], &1.0f32.to_le_bytes()[2..]);
        assert!(c.bytes_range("x", 2..5).is_err());
    }

    #[test]
    fn identities_are_those_of_bytes() {
        let a = checkpoint("a", &[("m.x", 1.0), ("m.y", 2.0)]);
        let id = |c: &Checkpoint, key: &str| c.identity(key).unwrap();
        assert_eq!(id(&a, "m.x"), id(&a.with_prefix("m."), "x"));
        let renamed = a.rename(|k| Some(k.replace("m.", "n."))).unwrap();
        assert_eq!(id(&a, "m.x"), id(&renamed, "n.x"));
        assert_ne!(id(&a, "m.x"), id(&a, "m.y"));
        assert_ne!(id(&a, "m.x"), id(&checkpoint("a", &[("m.x", 1.0)]), "m.x"), "other bytes in memory");
        assert!(a.identity("z").is_err());
        let matrix = HostTensor::from_fn([2, 3], |i| i as f32);
        let bytes = safetensors::to_bytes([("w", &matrix)], &BTreeMap::new()).unwrap();
        let matrix = Checkpoint::from_source(Arc::new(MemorySource::new("w", bytes))).unwrap();
        let views = matrix.remap(|_, _| {
            [("whole", View::Whole), ("rows", View::Rows(0..1)), ("turned", View::Transposed)]
                .map(|(n, v)| (n.into(), v))
                .into()
        });
        let views = views.unwrap();
        assert_eq!(id(&views, "whole"), id(&matrix, "w"));
        assert!(id(&views, "rows") != id(&matrix, "w") && id(&views, "turned") != id(&matrix, "w"));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let write = |value: f32| {
            let tensor = HostTensor::from_f32([1], vec![value]).unwrap();
            std::fs::write(&path, safetensors::to_bytes([("x", &tensor)], &BTreeMap::new()).unwrap()).unwrap();
        };
        write(1.0);
        // Each is closed again: Windows keeps what is mapped from being written.
        let first = id(&Checkpoint::open(&path).unwrap(), "x");
        let again = id(&Checkpoint::open(folder.path().join(".").join("w.safetensors")).unwrap(), "x");
        assert_eq!(first, again);
        write(2.0);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_ne!(first, id(&Checkpoint::open(&path).unwrap(), "x"), "a changed file");
    }

    #[test]
    fn rows_are_read_alone() {
        let table = HostTensor::from_fn([3, 2], |i| i as f32).cast(DType::F16);
        let bytes = safetensors::to_bytes([("t", &table)], &BTreeMap::new()).unwrap();
        let c = Checkpoint::from_source(Arc::new(MemorySource::new("t", bytes))).unwrap();
        let rows = c.rows("t", &[2, 0, 2]).unwrap();
        assert_eq!(rows, HostTensor::from_f32([3, 2], vec![4.0, 5.0, 0.0, 1.0, 4.0, 5.0]).unwrap().cast(DType::F16));
        assert!(c.rows("t", &[3]).unwrap_err().to_string().contains("row 3"));
    }

    #[test]
    fn other_files_are_told_apart() {
        let refuse = |bytes: &[u8]| {
            let source = MemorySource::new("w", bytes.to_vec());
            Checkpoint::from_source(Arc::new(source)).unwrap_err().to_string()
        };
        assert!(refuse(b"").contains("empty"));
        assert!(refuse(b"PK\x03\x04....").contains("zip archive"));
        assert!(refuse(b"\x80\x02}q\x00.").contains("not one that PyTorch wrote"));
        assert!(refuse(b"version https://git-lfs.github.com/spec/v1\noid").contains("LFS"));
        assert!(refuse(b"<!DOCTYPE html><html>").contains("web page"));
    }
}
