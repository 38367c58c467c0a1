//! Scales that lie beside 8-bit weights, and the marks of the programs that write them.
//!
//! * ComfyUI's first scaled fp8: `NAME.scale_weight` beside `NAME.weight`, one number for the tensor, and a tensor `scaled_fp8` in
//!   the whole file that says so.
//! * Others, and ComfyUI's later files: `NAME.weight_scale`, one number for the tensor or for each row of it; `NAME.comfy_quant` is
//!   the JSON of a format's name, or the metadata `_quantization_metadata` has it for all layers.
//!
//! `weight = stored · scale` in f32. Scales of activations (`scale_input`, `input_scale`) are for products in 8 bits, which are
//! not computed here: values keep their precision without them.

use crate::checkpoint::Place;
use crate::element::{host_tensor, in_order};
use crate::{ElementType, Entry, Source, View};
use pulid_tensor::{Data, Error, HostTensor, Result, Shape};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where the scale of a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    /// Number of the source.
    pub source: usize,
    /// One number, or one for each index of the axis.
    entry: Entry,
    /// The axis of the tensor along which the scale differs.
    axis: Option<usize>,
}

impl Scale {
    /// The scale `entry` of a tensor of this shape, or why it is none.
    fn new(source: usize, entry: &Entry, shape: &Shape) -> std::result::Result<Self, String> {
        let unusable =
            || format!("has a scale of shape {}, which is neither one number nor one for each row", entry.shape);
        let count = entry.shape.checked_count().map_err(|_| unusable())?;
        let wide: Vec<usize> = (0..entry.shape.rank()).filter(|&i| entry.shape[i] != 1).collect();
        if !entry.element.is_float() {
            return Err(format!("has a scale of {}, which is no floating-point number", entry.element));
        }
        let axis = match wide.as_slice() {
            [] => None,
            // A row of a single column, or a list: one number for each row of the tensor.
            [0] if shape.first() == Some(&count) => Some(0),
            _ => return Err(unusable()),
        };
        let strides = entry.strides.as_ref().and_then(|s| axis.map(|a| vec![s[a]]));
        let shape = Shape::from([count]);
        Ok(Scale { source, entry: Entry { shape, strides, ..entry.clone() }, axis })
    }

    /// The scale of what is seen of the tensor.
    pub fn of(&self, view: &View) -> std::result::Result<Self, String> {
        let mut seen = self.clone();
        match (view, self.axis) {
            (View::Rows(_), Some(0)) => seen.entry = view.of(&self.entry)?,
            (View::Transposed, Some(axis)) => seen.axis = Some(1 - axis),
            _ => {}
        }
        Ok(seen)
    }

    /// What tells this scale from all others.
    pub fn identity(&self, sources: &[Arc<dyn Source>]) -> String {
        let Entry { element, bytes, shape, strides } = &self.entry;
        let file = sources[self.source].identity();
        format!("times {file} {}..{} {element:?} {shape} {strides:?} along {:?}", bytes.start, bytes.end, self.axis)
    }

    /// The tensor times its scale, in f32.
    pub fn apply(&self, tensor: HostTensor, sources: &[Arc<dyn Source>]) -> Result<HostTensor> {
        let Entry { element, bytes, shape, strides } = &self.entry;
        let bytes = sources[self.source].read(bytes.clone())?;
        let scale = match strides {
            None => host_tensor(*element, shape, &bytes)?,
            Some(strides) => host_tensor(*element, shape, &in_order(&bytes, element.size(), shape, strides)?)?,
        };
        let scale = scale.to_f32_vec();
        let shape = tensor.shape().clone();
        let mut values = tensor.to_f32_vec();
        match self.axis {
            None => values.iter_mut().for_each(|v| *v *= scale[0]),
            Some(axis) => {
                let inner: usize = shape[axis + 1..].iter().product();
                let rows = values.chunks_exact_mut(inner.max(1)).zip(scale.iter().cycle());
                rows.for_each(|(row, scale)| row.iter_mut().for_each(|v| *v *= scale));
            }
        }
        HostTensor::new(shape, Data::F32(values))
    }
}

/// What `NAME.comfy_quant` and the metadata say of a layer.
#[derive(Deserialize)]
struct Quantization {
    format: String,
}

/// All layers' formats in a file's metadata.
#[derive(Deserialize)]
struct Layers {
    #[serde(default)]
    layers: BTreeMap<String, Quantization>,
}

/// The metadata key of [`Layers`].
const METADATA: &str = "_quantization_metadata";

/// The longest text of a layer's format that is read.
const MAX_FORMAT: u64 = 1 << 16;

/// Whether `NAME.weight` of this format is a tensor of 8-bit floats under a scale.
///
/// # Errors
/// The text of what is wrong.
fn known(format: &str) -> std::result::Result<ElementType, String> {
    match format {
        "float8_e4m3fn" => Ok(ElementType::F8E4M3),
        "float8_e5m2" => Ok(ElementType::F8E5M2),
        other => Err(format!(
            "is quantised to `{other}`, which is not read; read are float8_e4m3fn and float8_e5m2, or use a file in F16"
        )),
    }
}

/// Joins weights and their scales. Gives the keys that are no tensors of their own then, which are taken out.
///
/// # Errors
/// When a scale does not fit its weight, or weights are quantised in a way that is not read.
pub(crate) fn attach(
    name: &str,
    sources: &[Arc<dyn Source>],
    metadata: &BTreeMap<String, String>,
    entries: &mut BTreeMap<String, Place>,
) -> Result<BTreeSet<String>> {
    let fail = |key: &str, detail: String| Error::Weight { key: key.to_owned(), source_name: name.to_owned(), detail };
    let mut consumed = BTreeSet::new();
    let mut scales: Vec<(String, String)> = Vec::new();
    let mut formats: Vec<(String, ElementType)> = Vec::new();
    let listed = metadata.get(METADATA).and_then(|text| serde_json::from_str::<Layers>(text).ok());
    for (layer, Quantization { format }) in listed.into_iter().flat_map(|l| l.layers) {
        let weight = format!("{layer}.weight");
        let element = known(&format).map_err(|detail| fail(&weight, detail))?;
        formats.push((weight, element));
    }
    for (key, place) in entries.iter() {
        let weight = |layer: &str| Some(format!("{layer}.weight")).filter(|weight| entries.contains_key(weight));
        if key.contains(".quant_state.bitsandbytes__") {
            return Err(fail(key, "is of bitsandbytes' quantisation, which is not read; use a file in F16".into()));
        }
        if key.strip_suffix("_scale_inv").is_some_and(|weight| entries.contains_key(weight)) {
            return Err(fail(key, "is a scale of square blocks, which is not read; use a file in F16".into()));
        }
        if let Some(layer) = key.strip_suffix(".comfy_quant") {
            let Entry { element, bytes, .. } = &place.entry;
            if *element != ElementType::U8 || bytes.end - bytes.start > MAX_FORMAT {
                return Err(fail(key, "should be the text of a format".into()));
            }
            let text = sources[place.source].read(bytes.clone())?;
            let quantization: Quantization = serde_json::from_slice(&text)
                .map_err(|e| fail(key, format!("should be the text of a format ({e})")))?;
            let element = known(&quantization.format).map_err(|detail| fail(key, detail))?;
            formats.extend(weight(layer).map(|weight| (weight, element)));
            consumed.insert(key.clone());
        } else if key == "scaled_fp8" || key.ends_with(".scaled_fp8") {
            consumed.insert(key.clone());
        } else if let Some(weight) = key.strip_suffix(".scale_weight").and_then(weight) {
            scales.push((key.clone(), weight));
        } else if let Some(layer) = key.strip_suffix(".weight_scale").and_then(weight) {
            scales.push((key.clone(), layer));
        }
    }
    for (weight, named) in formats {
        let Some(place) = entries.get_mut(&weight) else { continue };
        match place.entry.element {
            // Bytes whose type only the format's name tells.
            ElementType::U8 => place.entry.element = named,
            is if is == named => {}
            is => return Err(fail(&weight, format!("has elements of {is}, but is said to be {named}"))),
        }
    }
    for (key, weight) in scales {
        let Some(Place { source, entry, .. }) = entries.get(&key).cloned() else { continue };
        let Some(place) = entries.get_mut(&weight) else { continue };
        if !place.entry.element.is_float() {
            let detail = format!("has elements of {} under a scale, which are not read", place.entry.element);
            return Err(fail(&weight, detail));
        }
        if place.scale.is_some() {
            return Err(fail(&weight, "has two scales; the file is malformed".into()));
        }
        let scale = Scale::new(source, &entry, &place.entry.shape).map_err(|detail| fail(&weight, detail))?;
        place.scale = Some(scale);
        consumed.insert(key);
    }
    for key in entries.keys() {
        let Some(layer) = key.strip_suffix(".scale_input").or(key.strip_suffix(".input_scale")) else { continue };
        let eight_bits = |place: &Place| {
            place.scale.is_some() || matches!(place.entry.element, ElementType::F8E4M3 | ElementType::F8E5M2)
        };
        if entries.get(&format!("{layer}.weight")).is_some_and(eight_bits) {
            consumed.insert(key.clone());
        }
    }
    entries.retain(|key, _| !consumed.contains(key));
    Ok(consumed)
}
