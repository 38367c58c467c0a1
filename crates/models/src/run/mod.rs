//! One network alone, by name: the contract of `pulid run`.
//!
//! Tensors of the contract are f32 in PyTorch's layout (images and latents [N, C, H, W], indices as integers). A
//! network prepares a graph and that graph's inputs from them; whoever executes the graph hands the results to
//! [`GraphRun::finish`], which gives the contract's outputs.

mod gradient;

pub use gradient::block;

use crate::face::{BiSeNet, RetinaFace};
use crate::onnx::{OnnxInput, OnnxNetwork};
use crate::pulid::{IdEncoder, IdFormer, IdentityAdapter, IdentitySettings};
use crate::sdxl::{ClipTextModel, SdxlModel, TextEncoder, Unet, UnetSize, Vae};
use crate::{ClipTokenizer, ClipVisionModel, EvaClip, EvaSettings, Padding, Precision, TokenizerKind};
use pulid_checkpoint::Checkpoint;
pub use pulid_graph::Checkpointing;
use pulid_graph::Graph;
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::str::FromStr;

/// Tensors of the contract by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The weights: a file or a folder, as the network's line in [`NETWORKS`] says.
    pub weights: PathBuf,
    /// A PuLID file, for the UNet.
    pub adapter: Option<PathBuf>,
    /// `--set KEY=VALUE`.
    pub settings: BTreeMap<String, String>,
    /// Integer inputs with their signs and all their bits, by name; [`Tensors`] hold them modulo 2^32. Only `onnx` takes
    /// integers that are no indices.
    pub integers: BTreeMap<String, Vec<i64>>,
    /// Element types.
    pub precision: Precision,
    /// Gradients beside the outputs: see [`GRADIENT`].
    pub gradient: Option<Checkpointing>,
}

/// What `pulid run --gradient` gives, for people.
pub const GRADIENT: &str = "Inputs add `upstream.OUTPUT` for each output; the loss is the sum of upstream times output. Outputs add `d.INPUT` for each \
                            float input and `d.PARAMETER` for trained parts; unet also gives `k.N`, `v.N`, `d.k.N` and `d.v.N`";

impl RunOptions {
    /// f32, no adapter and no settings.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        let (adapter, settings, integers) = (None, BTreeMap::new(), BTreeMap::new());
        RunOptions { weights: weights.into(), adapter, settings, integers, precision: Precision::F32, gradient: None }
    }

    /// Element types of the parts that are trained: f32 where gradients are wanted, since a gradient has its parameter's type.
    fn trained(&self) -> Precision {
        let full = Precision { activations: DType::F32, weights: Some(DType::F32) };
        if self.gradient.is_some() { full } else { self.precision }
    }

    /// The value of a setting, if it is given.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn setting<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        let parse = |text: &String| {
            let detail = || format!("`{text}` is no {}", std::any::type_name::<T>());
            text.parse().map_err(|_| Error::invalid(format!("--set {key}"), detail()))
        };
        self.settings.get(key).map(parse).transpose()
    }
}

/// A network of the contract.
#[derive(Clone, Copy)]
pub struct Network {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, which weights it takes, for the help text.
    pub summary: &'static str,
    /// Settings it knows.
    pub settings: &'static [&'static str],
    /// Builds the graph.
    pub prepare: fn(&RunOptions, &Tensors) -> Result<Prepared>,
}

/// Every network.
pub static NETWORKS: &[Network] = &[
    Network {
        name: "unet",
        summary: "SDXL's UNet: a diffusers unet/ folder or file or a whole SDXL in one file, with --adapter a PuLID file",
        settings: &["id_scale", "num_zero", "ortho"],
        prepare: unet,
    },
    Network {
        name: "vae-decoder",
        summary: "Latents to images: a diffusers vae/ folder, a VAE's file or a whole SDXL in one file",
        settings: &[],
        prepare: vae_decoder,
    },
    Network {
        name: "vae-encoder",
        summary: "Images to latents: a diffusers vae/ folder, a VAE's file or a whole SDXL in one file",
        settings: &[],
        prepare: vae_encoder,
    },
    Network {
        name: "text-encoder",
        summary: "CLIP's text encoders: a diffusers text_encoder/ or text_encoder_2/ folder or file; encoder=1 or 2 takes that one of a whole SDXL",
        settings: &["encoder"],
        prepare: text_encoder,
    },
    Network {
        name: "tokenizer",
        summary: "CLIP's tokenizer: a diffusers tokenizer/ folder; tokenizer=slow mends the text first, as transformers' slow one with ftfy and `pulid generate`",
        settings: &["text", "tokenizer"],
        prepare: tokenizer,
    },
    Network {
        name: "eva-clip",
        summary: "The EVA02-CLIP vision tower: a weights file in the official key names",
        settings: &["heads", "pretrained_grid"],
        prepare: eva_clip,
    },
    Network {
        name: "clip-vision",
        summary: "CLIP's image encoder with its projection: a folder in transformers' layout, of it alone or of a whole CLIP",
        settings: &[],
        prepare: clip_vision,
    },
    Network {
        name: "id-former",
        summary: "PuLID v1.1's identity encoder: a PuLID file or the bare module",
        settings: &[],
        prepare: id_former,
    },
    Network {
        name: "id-encoder",
        summary: "PuLID v1's identity encoder: a PuLID file or the bare module",
        settings: &[],
        prepare: id_encoder,
    },
    Network { name: "bisenet", summary: "The face parser: facexlib's weights file", settings: &[], prepare: bisenet },
    Network {
        name: "retinaface",
        summary: "facexlib's face detector: its weights file",
        settings: &[],
        prepare: retinaface,
    },
    Network {
        name: "onnx",
        summary: "An ONNX file; inputs and outputs under the file's own names",
        settings: &[],
        prepare: onnx,
    },
];

/// A network made ready.
pub enum Prepared {
    /// A graph to run.
    Graph(GraphRun),
    /// The outputs themselves: nothing is left to compute.
    Done(Tensors),
}

/// A graph with its inputs.
pub struct GraphRun {
    /// The network's graph, not yet optimized.
    pub graph: Graph,
    /// A value for each of the graph's inputs, of the graph's types.
    pub inputs: HashMap<String, HostTensor>,
    layout: Layout,
    gradient: Option<Box<gradient::Gradients>>,
}

/// How the graph's tensors lie against the contract's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Alike.
    Same,
    /// Images [N, H, W, C] in the graph, [N, C, H, W] in the contract.
    ChannelsLast,
}

impl Layout {
    /// The graph's tensor as the contract's.
    fn to_contract(self, value: HostTensor) -> Result<HostTensor> {
        if self == Layout::ChannelsLast && value.shape().rank() == 4 { value.nhwc_to_nchw() } else { Ok(value) }
    }

    /// The contract's tensor as the graph's.
    fn to_graph(self, value: HostTensor) -> Result<HostTensor> {
        if self == Layout::ChannelsLast && value.shape().rank() == 4 { value.nchw_to_nhwc() } else { Ok(value) }
    }
}

impl GraphRun {
    /// A graph whose inputs are all given.
    ///
    /// # Errors
    /// When one is missing or has another type.
    pub fn new(graph: Graph, inputs: HashMap<String, HostTensor>, layout: Layout) -> Result<Self> {
        for (name, ty) in graph.inputs() {
            let found = inputs.get(name).map(HostTensor::tensor_type);
            if found.as_ref() != Some(ty) {
                let found = found.map_or("nothing".into(), |t| t.to_string());
                let detail = format!("{} takes {ty} here (channels last), got {found}", graph.name());
                return Err(Error::invalid(format!("input `{name}`"), detail));
            }
        }
        Ok(GraphRun { graph, inputs, layout, gradient: None })
    }

    /// The contract's outputs from the graph's.
    ///
    /// # Errors
    /// When an output has an unexpected shape.
    pub fn finish(&self, outputs: HashMap<String, HostTensor>) -> Result<Tensors> {
        let scaled = match &self.gradient {
            Some(gradient) => gradient.finish(outputs)?,
            None => outputs,
        };
        scaled.into_iter().map(|(name, value)| Ok((name, self.layout.to_contract(value)?))).collect()
    }
}

/// The network of that name.
///
/// # Errors
/// When there is none; the message lists them.
pub fn network(name: &str) -> Result<&'static Network> {
    NETWORKS.iter().find(|n| n.name == name).ok_or_else(|| {
        let names: Vec<_> = NETWORKS.iter().map(|n| n.name).collect();
        Error::invalid("network", format!("`{name}` is none of {}", names.join(", ")))
    })
}

/// Makes a network ready for the given inputs.
///
/// # Errors
/// When the network or a setting is unknown, weights cannot be read, or an input is missing or mismatched.
pub fn prepare(name: &str, options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let network = network(name)?;
    if let Some(key) = options.settings.keys().find(|k| !network.settings.contains(&k.as_str())) {
        let known = if network.settings.is_empty() { "none".into() } else { network.settings.join(", ") };
        return Err(Error::invalid(format!("--set {key}"), format!("{name} does not know it; its settings: {known}")));
    }
    if options.adapter.is_some() && name != "unet" {
        return Err(Error::invalid("--adapter", format!("{name} takes none; only unet does")));
    }
    if name != "onnx"
        && let Some((key, bad)) =
            options.integers.iter().find_map(|(k, v)| Some((k, v.iter().find(|&&v| u32::try_from(v).is_err())?)))
    {
        return Err(Error::invalid(format!("input `{key}`"), format!("{bad} is no index (0 to 2^32-1)")));
    }
    match (options.gradient, (network.prepare)(options, inputs)?) {
        (Some(checkpointing), Prepared::Graph(run)) => {
            gradient::add(name, run, options, inputs, checkpointing).map(Prepared::Graph)
        }
        (Some(_), Prepared::Done(_)) => Err(Error::invalid("--gradient", format!("{name} computes nothing"))),
        (None, prepared) => Ok(prepared),
    }
}

/// An f32 input with the given number of axes.
fn floats(inputs: &Tensors, name: &str, rank: usize) -> Result<HostTensor> {
    let value = inputs.get(name).ok_or_else(|| {
        let given: Vec<_> = inputs.keys().map(String::as_str).collect();
        Error::invalid(format!("input `{name}`"), format!("is missing; given are: {}", given.join(", ")))
    })?;
    if value.shape().rank() != rank || value.shape().count() == 0 {
        let detail = format!("expected {rank} axes of at least one element, got {}", value.shape());
        return Err(Error::invalid(format!("input `{name}`"), detail));
    }
    Ok(value.cast(DType::F32))
}

/// An image or latent, [N, C, H, W] to [N, H, W, C].
fn nhwc(inputs: &Tensors, name: &str) -> Result<HostTensor> {
    floats(inputs, name, 4)?.nchw_to_nhwc()
}

fn map<const N: usize>(inputs: [(&str, HostTensor); N]) -> HashMap<String, HostTensor> {
    inputs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn run(graph: Graph, inputs: HashMap<String, HostTensor>, layout: Layout) -> Result<Prepared> {
    GraphRun::new(graph, inputs, layout).map(Prepared::Graph)
}

fn unet(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let wants_identity = inputs.contains_key("id_embedding");
    let default = IdentitySettings::default();
    let settings = IdentitySettings {
        id_scale: options.setting("id_scale")?.unwrap_or(default.id_scale),
        num_zero: options.setting("num_zero")?.unwrap_or(default.num_zero),
        ortho: options.settings.get("ortho").map_or(Ok(default.ortho), |text| text.parse())?,
    };
    settings.check()?;
    let adapter = match &options.adapter {
        Some(path) => Some(IdentityAdapter::new(&Checkpoint::open(path)?, options.trained())?),
        None if wants_identity => {
            return Err(Error::invalid("input `id_embedding`", "needs --adapter with a PuLID file"));
        }
        None => None,
    };
    // The input is optional. Without it this is the plain UNet, yet an adapter that is none is a mistake all the same.
    let adapter = adapter.filter(|_| wants_identity && settings.id_scale != 0.0);
    let unet = Unet::open(&options.weights, options.precision)?;
    let sample = nhwc(inputs, "sample")?;
    let text = floats(inputs, "encoder_hidden_states", 3)?;
    let mut given = map([("timestep", floats(inputs, "timestep", 1)?)]);
    if unet.config().pooled_dim().is_some() {
        given.extend(map([
            ("text_embeds", floats(inputs, "text_embeds", 2)?),
            ("time_ids", floats(inputs, "time_ids", 2)?),
        ]));
    }
    let shape = sample.shape();
    let text_tokens = text.shape()[1];
    let size = UnetSize { batch: shape[0], height: shape[1], width: shape[2], text_tokens, identity: None };
    let graph = match adapter {
        Some(adapter) => {
            let tokens = floats(inputs, "id_embedding", 3)?;
            let identity = Some(settings.inputs(tokens.shape()[1]));
            let scale = HostTensor::from_fn([size.batch], |_| settings.id_scale);
            given.extend(map([("id_embedding", tokens), ("id_scale", scale)]));
            unet.graph_with_adapter(UnetSize { identity, ..size }, &adapter)?
        }
        None => unet.graph(size)?,
    };
    given.extend(map([("sample", sample), ("encoder_hidden_states", text)]));
    run(graph, given, Layout::ChannelsLast)
}

fn vae_decoder(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let vae = Vae::open(&options.weights, options.precision)?;
    let latent = nhwc(inputs, "latent")?;
    let shape = latent.shape();
    run(vae.decoder(shape[0], shape[1], shape[2])?, map([("latent", latent)]), Layout::ChannelsLast)
}

fn vae_encoder(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let vae = Vae::open(&options.weights, options.precision)?;
    let sample = nhwc(inputs, "sample")?;
    let shape = sample.shape();
    run(vae.encoder(shape[0], shape[1], shape[2])?, map([("sample", sample)]), Layout::ChannelsLast)
}

fn text_encoder(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let encoder = match options.settings.get("encoder").map(String::as_str) {
        None => ClipTextModel::open(&options.weights, options.precision)?,
        Some(number) => {
            let which = match number {
                "1" => TextEncoder::First,
                "2" => TextEncoder::Second,
                _ => return Err(Error::invalid("--set encoder", format!("`{number}` is neither 1 nor 2"))),
            };
            SdxlModel::open(&options.weights)?.text_encoder(which, options.precision)?
        }
    };
    let ids = inputs.get("input_ids").ok_or_else(|| Error::invalid("input `input_ids`", "is missing"))?;
    let given = map(encoder.inputs(&ids.cast(DType::U32))?);
    run(encoder.graph(ids.shape()[0], ids.shape()[1])?, given, Layout::Same)
}

fn tokenizer(options: &RunOptions, _: &Tensors) -> Result<Prepared> {
    let text = options.settings.get("text");
    let text = text.ok_or_else(|| Error::invalid("--set text", "is missing: tokenizer needs --set text=..."))?;
    let kind = match options.settings.get("tokenizer") {
        Some(kind) => kind.parse().map_err(|e: Error| Error::invalid("--set tokenizer", e.to_string()))?,
        None => TokenizerKind::Fast,
    };
    let ids = ClipTokenizer::open(&options.weights, Padding::EndOfText)?.with_kind(kind)?.encode(text)?;
    let ids = HostTensor::from_u32([1, ids.len()], ids)?;
    Ok(Prepared::Done(Tensors::from([("input_ids".into(), ids)])))
}

fn eva_clip(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let settings = EvaSettings {
        heads: options.setting("heads")?,
        pretrained_grid: options.setting("pretrained_grid")?.unwrap_or(EvaSettings::default().pretrained_grid),
    };
    let tower = EvaClip::new(&Checkpoint::open(&options.weights)?, options.precision, settings)?;
    let image = nhwc(inputs, "image")?;
    run(tower.graph(image.shape()[0])?, map([("image", image)]), Layout::Same)
}

fn clip_vision(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let vision = ClipVisionModel::open(&options.weights, options.precision)?;
    let image = nhwc(inputs, "pixel_values")?;
    run(vision.graph(image.shape()[0])?, map([("pixel_values", image)]), Layout::Same)
}

fn id_former(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let former = IdFormer::new(&Checkpoint::open(&options.weights)?, options.trained())?;
    // One photo may come without the axis of photos.
    let mut condition = match inputs.get("id_cond").map(|t| t.shape().rank()) {
        Some(2) => floats(inputs, "id_cond", 2)?,
        _ => floats(inputs, "id_cond", 3)?,
    };
    if condition.shape().rank() == 2 {
        let shape = [condition.shape()[0], 1, condition.shape()[1]];
        condition = condition.reshape(shape)?;
    }
    let hidden = hidden_states(inputs)?;
    let tokens = hidden["hidden_0"].shape()[1];
    let graph = former.graph(condition.shape()[0], condition.shape()[1], tokens)?;
    let mut given = map([("id_cond", condition)]);
    given.extend(hidden);
    run(graph, given, Layout::Same)
}

fn id_encoder(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let encoder = IdEncoder::new(&Checkpoint::open(&options.weights)?, options.trained())?;
    let condition = floats(inputs, "id_cond", 2)?;
    let hidden = hidden_states(inputs)?;
    let graph = encoder.graph(condition.shape()[0], hidden["hidden_0"].shape()[1])?;
    let mut given = map([("id_cond", condition)]);
    given.extend(hidden);
    run(graph, given, Layout::Same)
}

fn hidden_states(inputs: &Tensors) -> Result<HashMap<String, HostTensor>> {
    (0..crate::pulid::SCALES)
        .map(|i| {
            let name = format!("hidden_{i}");
            Ok((name.clone(), floats(inputs, &name, 3)?))
        })
        .collect()
}

fn bisenet(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let parser = BiSeNet::new(&Checkpoint::open(&options.weights)?, options.precision)?;
    let image = nhwc(inputs, "image")?;
    let shape = image.shape();
    run(parser.graph(shape[0], shape[1], shape[2])?, map([("image", image)]), Layout::ChannelsLast)
}

fn retinaface(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let detector = RetinaFace::new(&Checkpoint::open(&options.weights)?, options.precision)?;
    let image = nhwc(inputs, "image")?;
    let shape = image.shape();
    run(detector.graph(shape[0], shape[1], shape[2])?, map([("image", image)]), Layout::Same)
}

fn onnx(options: &RunOptions, inputs: &Tensors) -> Result<Prepared> {
    let network = OnnxNetwork::open(&options.weights)?;
    let given = |name: &String, value: &HostTensor| match (options.integers.get(name), value.as_u32()) {
        (Some(values), _) => OnnxInput::Integers(value.shape().to_vec(), values.clone()),
        (None, Ok(values)) => {
            OnnxInput::Integers(value.shape().to_vec(), values.iter().map(|&v| i64::from(v)).collect())
        }
        _ => OnnxInput::Floats(value.cast(DType::F32)),
    };
    // The gradients of a loss are for the graph that is differentiated, which has no inputs of these names yet.
    let own = |name: &str| options.gradient.is_none() || !name.starts_with("upstream.");
    let known = inputs.iter().filter(|(name, _)| own(name)).map(|(name, value)| (name.clone(), given(name, value)));
    let known = known.collect();
    let graph = network.build_for(&known, options.precision)?;
    let names: Vec<&str> = graph.inputs().map(|(name, _)| name).collect();
    let given = inputs.iter().filter(|(name, _)| names.contains(&name.as_str()));
    let given = given.map(|(name, value)| (name.clone(), value.cast(DType::F32))).collect();
    run(graph, given, Layout::Same)
}
