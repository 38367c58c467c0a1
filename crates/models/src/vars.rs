//! Weights of a network by checkpoint key, as graph nodes.

use crate::key_report::{self, KeyReport};
use crate::patch::{Patch, Patches};
use crate::wrapped::unwrapped;
use pulid_checkpoint::{Checkpoint, unique_identity};
use pulid_graph::{Graph, NodeId, Weight, WeightKey};
use pulid_ops::{fits_quantized, padded_matrix};
use pulid_tensor::{BLOCK, DType, Data, Error, HostTensor, MaybeSendSync, Result, Shape, TensorType};
use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

/// Element types a network runs with. Small vectors (biases, norms' gains) are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Precision {
    /// Type of the values between operators.
    pub activations: DType,
    /// Type of large weights (matrices, filters, embeddings); `None` keeps f16 files f16 and reads the rest as f32.
    /// Quantised types take matrices and filters of whole blocks; what is left is f16. Blocks of a file stay as they are, unless
    /// fewer bits or f32 are asked for.
    pub weights: Option<DType>,
}

impl Precision {
    /// f32 values over weights as the file stores them.
    pub const F32: Precision = Precision { activations: DType::F32, weights: None };
    /// f16 throughout, for devices with `shader-f16`.
    pub const F16: Precision = Precision { activations: DType::F16, weights: Some(DType::F16) };

    /// The type of a large weight that the file stores as `stored`. Kernels take no f32 weights under f16 values.
    pub fn weight(self, stored: DType) -> DType {
        match self.weights {
            Some(dtype) if self.activations != DType::F16 && !dtype.is_quantized() => dtype,
            None if self.activations != DType::F16 => stored,
            _ => DType::F16,
        }
    }

    /// Whether blocks of a file are read as they are by a product with a matrix or filters of the given graph shape.
    fn keeps(self, blocks: DType, shape: &Shape) -> bool {
        let wanted = match self.weights {
            Some(DType::F32) => false,
            Some(DType::Q4) => blocks == DType::Q4,
            _ => true,
        };
        wanted && fits_quantized(&TensorType::new(blocks, shape.clone()))
    }

    /// The type of a matrix or filters of the given graph shape, rows of the product first.
    fn product(self, stored: DType, shape: &Shape) -> DType {
        match self.weights {
            _ if stored.is_quantized() => stored,
            Some(dtype) if dtype.is_quantized() => {
                let inputs = shape[shape.rank() - 2];
                let whole = match shape[..] {
                    // Odd ones get zeros around them, see [`pulid_ops::Operator::padded`].
                    [k, n] => fits_quantized(&TensorType::new(dtype, padded_matrix(k, n).unwrap_or([k, n]))),
                    _ => inputs.is_multiple_of(BLOCK) && fits_quantized(&TensorType::new(dtype, shape.clone())),
                };
                if whole { dtype } else { DType::F16 }
            }
            _ => self.weight(stored),
        }
    }
}

/// How a tensor of the checkpoint becomes a weight of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As it is.
    Same,
    /// Linear layers: [N, K] to [K, N].
    Transposed,
    /// Filters: [O, I, KH, KW] to [KH, KW, I, O].
    ChannelsLast,
}

impl Layout {
    /// The name in keys.
    const fn name(self) -> &'static str {
        match self {
            Layout::Same => "same",
            Layout::Transposed => "transposed",
            Layout::ChannelsLast => "channels last",
        }
    }

    /// The layout of a name in keys.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn named(name: &str) -> Option<Layout> {
        [Layout::Same, Layout::Transposed, Layout::ChannelsLast].into_iter().find(|layout| layout.name() == name)
    }

    /// A tensor of the graph as the file stores it.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn to_stored(self, tensor: HostTensor) -> Result<HostTensor> {
        match self {
            Layout::Same => Ok(tensor),
            Layout::Transposed => transpose(&tensor),
            Layout::ChannelsLast => tensor.permute(&[3, 2, 0, 1]),
        }
    }

    /// The graph's shape of a tensor of the file.
    fn of(self, stored: &Shape) -> Shape {
        match self {
            Layout::Same => stored.clone(),
            Layout::Transposed => Shape::from([stored[1], stored[0]]),
            Layout::ChannelsLast => Shape::from([stored[2], stored[3], stored[1], stored[0]]),
        }
    }
}

/// A view of a checkpoint below one module: declares its weights and places its operators.
#[derive(Clone, Debug)]
pub struct Vars {
    checkpoint: Checkpoint,
    path: String,
    precision: Precision,
    patches: Option<Arc<dyn Patches>>,
    key_report: KeyReport,
}

impl Vars {
    /// All of a checkpoint.
    pub fn new(checkpoint: Checkpoint, precision: Precision) -> Self {
        Vars { checkpoint, path: String::new(), precision, patches: None, key_report: KeyReport::default() }
    }

    /// The tensors below `module`, or all where there are none: some files hold the bare module.
    pub fn optional(checkpoint: &Checkpoint, precision: Precision, module: &str) -> Self {
        let vars = Vars::new(checkpoint.clone(), precision);
        if checkpoint.with_prefix(&format!("{module}.")).is_empty() { vars } else { vars.pp(module) }
    }

    /// All of a checkpoint without what a wrapper put before its names. Behind DataParallel's alone, in which networks are published, weights
    /// keep the file's names.
    pub(crate) fn unwrapped(checkpoint: &Checkpoint, precision: Precision) -> Self {
        const PARALLEL: &str = "module";
        let inner = checkpoint.with_prefix(&format!("{PARALLEL}."));
        match !inner.is_empty() && matches!(unwrapped(&inner), Cow::Borrowed(_)) {
            true => Vars::new(checkpoint.clone(), precision).pp(PARALLEL),
            false => Vars::new(unwrapped(checkpoint).into_owned(), precision),
        }
    }

    /// The view of a submodule, for example `vs.pp("conv_in")`.
    pub fn pp(&self, part: impl Display) -> Vars {
        Vars { path: self.key(&part.to_string()), ..self.clone() }
    }

    /// Builds a submodule: its weights from below `part`, its operators labelled with it.
    ///
    /// # Errors
    /// The builder's own.
    pub fn scope<T>(
        &self,
        g: &mut Graph,
        part: impl Display,
        build: impl FnOnce(&Vars, &mut Graph) -> Result<T>,
    ) -> Result<T> {
        let part = part.to_string();
        let vs = self.pp(&part);
        g.scoped(part, |g| build(&vs, g))
    }

    /// Builds a network's graph. Where its tensors are missing or mismatched the error tells of all of them at once.
    ///
    /// # Errors
    /// The builder's own, and tensors that do not fit.
    pub fn complete(&self, build: impl FnOnce() -> Result<Graph>) -> Result<Graph> {
        self.key_report.clear();
        let built = build();
        self.key_report.check(&self.checkpoint, built.is_ok())?;
        built
    }

    /// The file's tensors that the last graph built by [`Vars::complete`] has no use for.
    pub(crate) fn unread(&self) -> Vec<String> {
        self.key_report.unread(&self.checkpoint)
    }

    /// A tensor's name in this module, if it is in it.
    pub(crate) fn name_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        match self.path.is_empty() {
            true => Some(key),
            false => key.strip_prefix(&self.path)?.strip_prefix('.'),
        }
    }

    /// The same view with no quantised weights: for small layers whose error reaches every value.
    pub fn unquantized(&self) -> Vars {
        let mut vars = self.clone();
        if vars.precision.weights.is_some_and(DType::is_quantized) {
            vars.precision.weights = Some(DType::F16);
        }
        vars
    }

    /// The same view of weights that are changed while they load.
    pub fn with_patches(self, patches: Arc<dyn Patches>) -> Vars {
        Vars { patches: Some(patches), ..self }
    }

    /// What is added to a tensor of this module.
    fn patch(&self, key: &str) -> Option<Patch> {
        self.patches.as_ref()?.of(key)
    }

    /// Element types in use.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Type of the values between operators.
    pub fn dtype(&self) -> DType {
        self.precision.activations
    }

    /// The checkpoint's name, for messages.
    pub fn source_name(&self) -> &str {
        self.checkpoint.name()
    }

    /// Whether this module has a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.key(name))
    }

    /// Extents of a tensor in the file.
    ///
    /// # Errors
    /// When it is missing.
    pub fn shape(&self, name: &str) -> Result<Shape> {
        let key = self.key(name);
        self.checkpoint.info(&key).map(|info| info.shape).map_err(|error| {
            self.key_report.note_missing(&key);
            let Error::Weight { key, source_name, detail } = error else { return error };
            let detail = format!("{detail}{}", key_report::looks_like(&self.checkpoint));
            Error::Weight { key, source_name, detail }
        })
    }

    /// One extent of a tensor of known rank.
    ///
    /// # Errors
    /// When it is missing or has another rank.
    pub fn extent(&self, name: &str, rank: usize, axis: usize) -> Result<usize> {
        let shape = self.shape(name)?;
        if shape.rank() != rank {
            return Err(self.error(name, format!("expected {rank} axes, found {shape}")));
        }
        Ok(shape[axis])
    }

    /// [`Vars::extent`], or the usual one where the tensor is missing, which [`Vars::complete`] reports.
    ///
    /// # Errors
    /// When the tensor has another rank.
    pub fn extent_or(&self, name: &str, rank: usize, axis: usize, usual: usize) -> Result<usize> {
        if self.contains(name) {
            return self.extent(name, rank, axis);
        }
        self.key_report.note_missing(&self.key(name));
        Ok(usual)
    }

    /// How many modules `name.0`, `name.1`, ... there are, told by the given tensor of each.
    pub fn count(&self, name: &str, tensor: &str) -> usize {
        (0..).take_while(|i| self.contains(&format!("{name}.{i}.{tensor}"))).count()
    }

    /// Reads a tensor at once, for what must be computed on the host.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: impl Into<Shape>) -> Result<HostTensor> {
        let key = self.key(name);
        let tensor = self.checkpoint.tensor_of_shape(&key, shape)?;
        match self.patch(&key) {
            Some(patch) => patch.apply(tensor.into_dtype(DType::F32)),
            None => Ok(tensor),
        }
    }

    /// Reads some rows of a table of the given shape as f32, and nothing else of it.
    ///
    /// # Errors
    /// When the table is missing or has another shape, a row is beyond its end or holds NaN or infinity.
    pub fn rows(&self, name: &str, shape: impl Into<Shape>, rows: &[u32]) -> Result<HostTensor> {
        let (expected, found) = (shape.into(), self.shape(name)?);
        if found != expected {
            return Err(self.error(name, format!("expected {expected}, found {found}")));
        }
        let found = self.checkpoint.rows(&self.key(name), rows)?.cast(DType::F32);
        // What is looked up on the host is no weight of the graph, in which a search for such values would find it.
        if found.as_f32()?.iter().any(|value| !value.is_finite()) {
            return Err(self.error(name, "holds NaN or infinity; fetch the file again or take another"));
        }
        Ok(found)
    }

    /// An error about a tensor of this module.
    pub fn error(&self, name: &str, detail: impl Into<String>) -> Error {
        Error::Weight { key: self.key(name), source_name: self.source_name().to_owned(), detail: detail.into() }
    }

    /// A small vector or table that stays f32.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn parameter(&self, g: &mut Graph, name: &str, shape: impl Into<Shape>) -> Result<NodeId> {
        let shape = shape.into();
        self.declare(g, name, &shape, Layout::Same, DType::F32)
    }

    /// A large tensor as it is.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn weight(&self, g: &mut Graph, name: &str, shape: impl Into<Shape>) -> Result<NodeId> {
        let (shape, dtype) = (shape.into(), self.declared_dtype(name));
        self.declare(g, name, &shape, Layout::Same, dtype)
    }

    /// A tensor as it is, of the given type.
    pub(crate) fn constant_of(&self, g: &mut Graph, name: &str, shape: &Shape, dtype: DType) -> Result<NodeId> {
        self.declare(g, name, shape, Layout::Same, dtype)
    }

    /// The matrix of a linear layer, [N, K] in the file, [K, N] in the graph.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn matrix(&self, g: &mut Graph, name: &str, k: usize, n: usize) -> Result<NodeId> {
        self.product(g, name, &Shape::from([n, k]), Layout::Transposed)
    }

    /// The filters of a convolution, [O, I, KH, KW] in the file, [KH, KW, I, O] in the graph.
    ///
    /// # Errors
    /// When they are missing or have another shape.
    pub fn filters(&self, g: &mut Graph, name: &str, oihw: [usize; 4]) -> Result<NodeId> {
        self.product(g, name, &Shape::from(oihw), Layout::ChannelsLast)
    }

    /// A weight that products read, quantised where the precision asks for it and the kernels can read it.
    fn product(&self, g: &mut Graph, name: &str, stored: &Shape, layout: Layout) -> Result<NodeId> {
        let key = self.key(name);
        // Of a missing weight any type will do: [`Vars::complete`] reports it.
        let info = self.checkpoint.contains(&key).then(|| self.checkpoint.info(&key)).transpose()?;
        let (found, blocks) = info.map_or((DType::F32, None), |info| (info.dtype, info.blocks));
        let shape = layout.of(stored);
        let dtype = match blocks {
            // Values that are changed while they load are in blocks no more.
            Some(_) if self.patch(&key).is_some() => self.precision.product(DType::F16, &shape),
            Some(blocks) if self.precision.keeps(blocks, &shape) => blocks,
            _ => self.precision.product(found, &shape),
        };
        self.declare(g, name, stored, layout, dtype)
    }

    /// A weight computed from the tensors `reads` of this module when it is loaded. `recipe` says how: beside these tensors and its
    /// type it decides what the weight is.
    pub fn computed(
        &self,
        g: &mut Graph,
        name: &str,
        reads: &[&str],
        recipe: &'static str,
        ty: TensorType,
        load: impl Fn(&Vars) -> Result<HostTensor> + MaybeSendSync + 'static,
    ) -> NodeId {
        let (vs, dtype) = (self.clone(), ty.dtype);
        reads.iter().for_each(|name| self.key_report.note_read(self.key(name)));
        let keys: Vec<_> = reads.iter().map(|name| self.weight_key(&self.key(name), recipe)).collect();
        let patches: Vec<_> = keys.iter().filter_map(|key| key.patch.as_deref()).collect();
        let key = WeightKey {
            source: keys.iter().map(|key| key.source.as_str()).collect::<Vec<_>>().join(" and "),
            layout: recipe.into(),
            patch: (!patches.is_empty()).then(|| patches.join(" and ").into()),
        };
        let file = self.file_of(&self.key(reads.first().unwrap_or(&name)));
        g.weight(Weight::new(self.key(name), key, move || Ok(load(&vs)?.cast(dtype))).in_file(file), ty)
    }

    /// The key of a tensor; of a missing one, which [`Vars::complete`] reports, one that no other has.
    fn weight_key(&self, key: &str, layout: &'static str) -> WeightKey {
        // An error would look for the closest keys, which takes its time.
        let found = self.checkpoint.contains(key).then(|| self.checkpoint.identity(key));
        let source = found.and_then(Result::ok).unwrap_or_else(|| unique_identity(self.source_name().as_ref()));
        let mut weight = WeightKey::new(source, layout);
        weight.patch = self.patch(key).map(|patch| patch.id().clone());
        weight
    }

    /// The file of a tensor, or what messages call the checkpoint where it has none of this key.
    fn file_of(&self, key: &str) -> String {
        match self.checkpoint.contains(key).then(|| self.checkpoint.file_of(key)) {
            Some(Ok(file)) => file.display().to_string(),
            _ => self.source_name().to_owned(),
        }
    }

    /// The graph's type of a large weight.
    ///
    /// # Errors
    /// When it is missing.
    pub fn weight_dtype(&self, name: &str) -> Result<DType> {
        let stored = self.checkpoint.info(&self.key(name))?.dtype;
        Ok(self.precision.weight(stored))
    }

    /// [`Vars::weight_dtype`], or any type for a weight that is missing, which [`Vars::complete`] reports.
    fn declared_dtype(&self, name: &str) -> DType {
        let missing = self.precision.weight(DType::F32);
        // An error would look for the closest keys, which takes its time.
        if self.contains(name) { self.weight_dtype(name).unwrap_or(missing) } else { missing }
    }

    fn declare(&self, g: &mut Graph, name: &str, stored: &Shape, layout: Layout, dtype: DType) -> Result<NodeId> {
        let key = self.key(name);
        self.key_report.note(&self.checkpoint, &key, stored)?;
        let found = if self.checkpoint.contains(&key) { self.checkpoint.info(&key)?.dtype } else { dtype };
        // Integers without a scale are no weights, whatever type was declared for them.
        if found == DType::U32 || (!found.is_float() && found != dtype) {
            let element = self.checkpoint.info(&key)?.element;
            return Err(self.error(name, format!("expected floating-point numbers, found elements of {element}")));
        }
        let shape = layout.of(stored);
        let (weight_key, patch) = (self.weight_key(&key, layout.name()), self.patch(&key));
        if patch.is_some() && found.is_quantized() {
            return Err(self.error(name, "is stored in quantised blocks, which cannot be changed while they load"));
        }
        let checkpoint = self.checkpoint.clone();
        let load = {
            let (key, stored) = (key.clone(), stored.clone());
            move || {
                let info = checkpoint.info(&key)?;
                if info.dtype.is_quantized() {
                    return checkpoint.tensor(&key);
                }
                if info.blocks == Some(dtype) && info.shape == stored && patch.is_none() {
                    return checkpoint.blocks(&key);
                }
                let mut tensor = checkpoint.tensor_of_shape(&key, stored.clone())?;
                if let Some(patch) = &patch {
                    tensor = patch.apply(tensor.into_dtype(DType::F32))?;
                }
                // Blocks are made of values in their final order.
                let tensor = if dtype.is_quantized() { tensor } else { tensor.into_dtype(dtype) };
                let tensor = match layout {
                    Layout::Same => tensor,
                    Layout::Transposed => transpose(&tensor)?,
                    Layout::ChannelsLast => channels_last(&tensor)?,
                };
                Ok(tensor.into_dtype(dtype))
            }
        };
        let file = self.file_of(&key);
        Ok(g.weight(Weight::new(key, weight_key, load).in_file(file), TensorType::new(dtype, shape)))
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// [N, K] to [K, N].
///
/// # Errors
/// When there are not two axes.
pub fn transpose(t: &HostTensor) -> Result<HostTensor> {
    let &[n, k] = t.shape().extents() else {
        return Err(Error::invalid("weight", format!("expected a matrix, found {}", t.shape())));
    };
    reorder(t, n, &(0..k).collect::<Vec<_>>(), [k, n].into())
}

/// [O, I, KH, KW] to [KH, KW, I, O].
///
/// # Errors
/// When there are not four axes.
pub fn channels_last(t: &HostTensor) -> Result<HostTensor> {
    let &[o, i, kh, kw] = t.shape().extents() else {
        return Err(Error::invalid("weight", format!("expected filters [O, I, KH, KW], found {}", t.shape())));
    };
    let columns: Vec<usize> = (0..kh * kw).flat_map(|tap| (0..i).map(move |i| i * kh * kw + tap)).collect();
    reorder(t, o, &columns, [kh, kw, i, o].into())
}

/// The transpose of a matrix with `rows` rows whose columns are taken in the given order.
fn reorder(t: &HostTensor, rows: usize, columns: &[usize], shape: Shape) -> Result<HostTensor> {
    fn gather<T: Copy + Default>(from: &[T], rows: usize, columns: &[usize]) -> Vec<T> {
        // Blocks of rows keep both sides in cache; a full-size UNet has 2.6 billion elements.
        const BLOCK: usize = 32;
        let width = columns.len();
        let mut to = vec![T::default(); from.len()];
        for first in (0..rows).step_by(BLOCK) {
            let block = first..rows.min(first + BLOCK);
            for (position, &column) in columns.iter().enumerate() {
                let to = &mut to[position * rows + block.start..position * rows + block.end];
                for (to, row) in to.iter_mut().zip(block.clone()) {
                    *to = from[row * width + column];
                }
            }
        }
        to
    }
    let data = match t.data() {
        Data::F32(v) => Data::F32(gather(v, rows, columns)),
        Data::F16(v) => Data::F16(gather(v, rows, columns)),
        Data::U32(v) => Data::U32(gather(v, rows, columns)),
        Data::Q8(_) | Data::Q4(_) => return Err(Error::invalid("weight", "quantised blocks do not move")),
    };
    HostTensor::new(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reorders_like_permute() {
        let matrix = HostTensor::from_fn([37, 70], |i| i as f32);
        assert_eq!(transpose(&matrix).unwrap(), matrix.permute(&[1, 0]).unwrap());
        let filters = HostTensor::from_fn([35, 5, 3, 2], |i| i as f32).cast(DType::F16);
        assert_eq!(channels_last(&filters).unwrap(), filters.permute(&[2, 3, 1, 0]).unwrap());
        assert!(transpose(&filters).is_err());
    }

    #[test]
    fn half_values_need_half_weights() {
        assert_eq!(Precision::F32.weight(DType::F16), DType::F16);
        assert_eq!(Precision::F32.weight(DType::F32), DType::F32);
        assert_eq!(Precision::F16.weight(DType::F32), DType::F16);
        let wide = Precision { weights: Some(DType::F32), ..Precision::F32 };
        assert_eq!(wide.weight(DType::F16), DType::F32);
    }
}
