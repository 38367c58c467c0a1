//! Checks of whole graphs, from the repository's `tests/goldens`: onnx's backend node tests, and networks against what PyTorch
//! answers. The first show that the import and the kernels agree with onnx on any device, the others that errors of single
//! kernels do not add up.

use super::super::identity::read_photo;
use pulid::identity::{ExtractOptions, FaceModels, Identity, extract};
use pulid::pipeline::{GenerateOptions, IdentityUse, Pipeline, SdxlModel, Storage};
use pulid::runtime::Runtime;
use pulid::sampler::{SamplerKind, Spacing, StepWindow};
use pulid::settings::Settings;
use pulid_checkpoint::onnx::Model;
use pulid_checkpoint::{Checkpoint, MemorySource};
use pulid_conformance::Comparison;
use pulid_engine::Silent;
use pulid_models::Precision;
use pulid_models::golden::{Golden, limit};
use pulid_models::onnx::{OnnxInput, OnnxNetwork};
use pulid_models::run::{Prepared, prepare};
use pulid_tensor::{DType, Error, HostTensor, Result, standard_deviation};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Standard deviations of the answer by which latents may be off after a few steps; measured on lavapipe are 5e-6.
const LATENTS_LIMIT: f64 = 1e-4;

/// Levels of 255 by which an image may be off; measured is 1.
const LEVELS: f64 = 2.0;

/// Pixels of crop and mask are rounded to whole numbers on the way from a photo to a person, and one that falls the other way
/// moves the tokens by a few thousandths: measured are 4e-3 for four photos, 5e-4 for others.
const IDENTITY_LIMIT: f64 = 1e-2;

/// One graph, or a chain of them.
pub struct GraphCheck {
    /// `onnx/node:test_abs` or `network/unet_step:dtype=f16`.
    pub id: String,
    what: What,
}

enum What {
    /// The case's part of the file of all, and its name.
    Node(Checkpoint, String),
    UnetStep(PathBuf, DType),
    Identity(PathBuf),
    Picture(PathBuf),
}

/// Every check of the folder's goldens.
///
/// # Errors
/// When there are no node tests or they cannot be read.
pub fn graph_checks(goldens: &Path) -> Result<Vec<GraphCheck>> {
    let file = Checkpoint::open(goldens.join("onnx-nodes/cases.safetensors"))?;
    let names: BTreeSet<&str> = file.keys().filter_map(|key| key.split_once('/')).map(|(name, _)| name).collect();
    let node = |name: &str| {
        let what = What::Node(file.with_prefix(&format!("{name}/")), name.into());
        GraphCheck { id: format!("onnx/node:{name}"), what }
    };
    let mut checks: Vec<_> = names.into_iter().map(node).collect();
    let unet = goldens.join("unet/id-v2");
    let networks = [
        ("unet_step:dtype=f32", What::UnetStep(unet.clone(), DType::F32)),
        ("unet_step:dtype=f16", What::UnetStep(unet, DType::F16)),
        ("identity:dtype=f32", What::Identity(goldens.join("identity/one-photo"))),
        ("picture:dtype=f32", What::Picture(goldens.join("pipeline/identity-v2"))),
    ];
    checks.extend(networks.map(|(name, what)| GraphCheck { id: format!("network/{name}"), what }));
    Ok(checks)
}

impl GraphCheck {
    /// Runs it and compares.
    ///
    /// # Errors
    /// Whatever keeps it from running; wrong numbers are no error but a failed comparison.
    pub async fn run(&self, runtime: &Runtime) -> Result<Comparison> {
        match &self.what {
            What::Node(file, name) => node(runtime, file, name).await,
            What::UnetStep(folder, dtype) => unet_step(runtime, folder, *dtype).await,
            What::Identity(folder) => identity(runtime, folder).await,
            What::Picture(folder) => picture(runtime, folder).await,
        }
    }
}

/// The worst element of several results.
struct Worst(Comparison);

impl Worst {
    fn new() -> Worst {
        Worst(Comparison { worst: 0.0, index: 0, got: 0.0, want: 0.0, stray_bytes: 0 })
    }

    /// Compares a result; `limit` is what an element may be off.
    fn compare(&mut self, name: &str, got: &HostTensor, want: &HostTensor, limit: impl Fn(f64) -> f64) -> Result<()> {
        if got.shape() != want.shape() {
            return Err(Error::invalid(name, format!("is {}, not {}", got.shape(), want.shape())));
        }
        for (index, (g, w)) in got.to_f32_vec().into_iter().zip(want.to_f32_vec()).enumerate() {
            let (g, w) = (f64::from(g), f64::from(w));
            let error = if g == w || g.is_nan() && w.is_nan() { 0.0 } else { (g - w).abs() / limit(w) };
            // What is no number is as wrong as can be.
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error > self.0.worst {
                self.0 = Comparison { worst: error, index, got: g, want: w, stray_bytes: 0 };
            }
        }
        Ok(())
    }

    /// The same for a network's output: so many of the answer's deviations.
    fn deviations(&mut self, name: &str, got: &HostTensor, want: &HostTensor, limit: f64) -> Result<()> {
        let deviation = standard_deviation(&want.to_f32_vec());
        self.compare(name, got, want, |_| limit * deviation)
    }
}

async fn node(runtime: &Runtime, file: &Checkpoint, name: &str) -> Result<Comparison> {
    let bytes = file.bytes("model")?.to_vec();
    let network = OnnxNetwork::new(Model::read(&MemorySource::new(name, bytes))?);
    let mut inputs = BTreeMap::new();
    for key in file.keys() {
        if let Some(input) = key.strip_prefix("in/") {
            let info = file.info(key)?;
            let value = match info.element.is_float() {
                true => OnnxInput::Floats(file.tensor(key)?),
                false => OnnxInput::Integers(info.shape.to_vec(), file.integers(key)?),
            };
            inputs.insert(input.to_owned(), value);
        }
    }
    let graph = network.build_for(&inputs, Precision::F32)?;
    let given: HashMap<String, HostTensor> = graph
        .inputs()
        .filter_map(|(name, _)| match inputs.get(name) {
            Some(OnnxInput::Floats(value)) => Some((name.to_owned(), value.cast(DType::F32))),
            _ => None,
        })
        .collect();
    let outputs = runtime.run(&graph, &given, &Silent).await?;
    let mut worst = Worst::new();
    for key in file.keys() {
        let Some(output) = key.strip_prefix("out/") else { continue };
        let got = outputs.get(output).ok_or_else(|| Error::invalid(output, "is no output"))?;
        // onnx's own limits.
        worst.compare(output, got, &file.tensor(key)?, |w| 1e-7 + 1e-3 * w.abs())?;
    }
    Ok(worst.0)
}

/// What the JSON of a case of several networks says, as far as it is needed here.
#[derive(Deserialize)]
struct Case {
    model: Option<PathBuf>,
    adapter: Option<PathBuf>,
    identity: Option<PathBuf>,
    picture: Option<PathBuf>,
    arguments: Option<Arguments>,
    #[serde(default)]
    photos: Vec<PathBuf>,
}

/// Flags of `pulid generate`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Arguments {
    prompt: String,
    negative_prompt: String,
    width: usize,
    height: usize,
    steps: usize,
    guidance: f32,
    seed: u64,
    sampler: SamplerKind,
    spacing: Spacing,
    num_zero: usize,
    ortho: String,
    id_scale: f32,
}

impl Case {
    fn read(path: &Path) -> Result<Case> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
    }
}

/// A file that a golden names, beside it.
fn beside(folder: &Path, path: Option<&PathBuf>) -> Result<PathBuf> {
    path.map(|path| folder.join(path)).ok_or_else(|| Error::file(folder, "names too few files"))
}

async fn unet_step(runtime: &Runtime, folder: &Path, dtype: DType) -> Result<Comparison> {
    let golden = Golden::read(folder)?;
    let options = golden.options(runtime.precision(dtype, None));
    let outputs = match prepare(&golden.network, &options, &golden.inputs()?)? {
        Prepared::Done(outputs) => outputs,
        Prepared::Graph(run) => {
            let outputs = runtime.run(&run.graph, &run.inputs, &Silent).await?;
            run.finish(outputs)?
        }
    };
    let mut worst = Worst::new();
    for (key, want) in golden.outputs()? {
        let got = outputs.get(&key).ok_or_else(|| Error::invalid(&key, "is no output"))?;
        worst.deviations(&key, got, &want, limit(dtype))?;
    }
    Ok(worst.0)
}

async fn identity(runtime: &Runtime, folder: &Path) -> Result<Comparison> {
    let golden = Case::read(&folder.join("case.json"))?;
    let mini = folder.join("../../../../models/mini");
    let photos = golden.photos.iter().map(|photo| read_photo(&folder.join(photo))).collect::<Result<Vec<_>>>()?;
    let options = ExtractOptions::default();
    let (models, adapter) = (FaceModels::open(&mini)?, mini.join("pulid_v1.1.safetensors"));
    let found = extract(runtime, &models, &adapter, &photos, &options, &Silent).await?;
    let want = Checkpoint::open(folder.join("outputs.safetensors"))?;
    let results = [
        ("face_embedding", &found.face_embedding),
        ("id_embedding", &found.tokens.id_embedding),
        ("uncond_id_embedding", &found.tokens.uncond_id_embedding),
    ];
    let mut worst = Worst::new();
    for (name, got) in results {
        worst.deviations(name, got, &want.tensor(name)?, IDENTITY_LIMIT)?;
    }
    Ok(worst.0)
}

async fn picture(runtime: &Runtime, folder: &Path) -> Result<Comparison> {
    let golden = Case::read(&folder.join("case.json"))?;
    let a = golden.arguments.ok_or_else(|| Error::file(folder, "has no arguments"))?;
    let settings = Settings {
        width: a.width,
        height: a.height,
        steps: a.steps,
        guidance: a.guidance,
        sampler: a.sampler,
        spacing: a.spacing,
        id_scale: a.id_scale,
        num_zero: a.num_zero,
        ortho: a.ortho.parse()?,
        negative_prompt: Some(a.negative_prompt),
        seed: a.seed,
        ..Settings::default()
    };
    let identity = IdentityUse {
        tokens: Identity::load_tokens(&beside(folder, golden.identity.as_ref())?)?,
        adapter: beside(folder, golden.adapter.as_ref())?,
        settings: settings.identity(),
        window: StepWindow::ALL,
    };
    let options = GenerateOptions { identity: Some(identity), ..settings.options(a.prompt) };
    let model = SdxlModel::open(beside(folder, golden.model.as_ref())?)?;
    let pipeline = Pipeline::open(runtime.clone(), model, Storage::default())?;
    let made = pipeline.generate(&options, &Silent).await?;
    let want = Checkpoint::open(folder.join("outputs.safetensors"))?.tensor("latents")?;
    let mut worst = Worst::new();
    worst.deviations("latents", &made.latents, &want, LATENTS_LIMIT)?;
    let (name, bytes) = read_photo(&beside(folder, golden.picture.as_ref())?)?;
    let tensor = |image: &pulid::image::RgbImage| {
        let shape = [image.height() as usize, image.width() as usize, 3];
        HostTensor::from_f32(shape, image.as_raw().iter().map(|&v| f32::from(v)).collect())
    };
    let want = tensor(&pulid::image::decode_photo(&name, &bytes)?)?;
    let image = made.images.first().ok_or_else(|| Error::invalid("picture", "there is none"))?;
    // Levels of 255.
    worst.compare("picture", &tensor(image)?, &want, |_| LEVELS)?;
    Ok(worst.0)
}
