//! What a run takes, by the plans of its networks: nothing of it is loaded.

use crate::adapter::Adapter;
use crate::average;
use crate::batch::Batches;
use crate::buckets::Size;
use crate::cache::Cache;
use crate::memory::{Decided, Memory, Part, Planner, decide, kept};
use crate::optimizer;
use crate::options::{Recompute, TrainOptions};
use crate::packs;
use crate::terms::Call;
use crate::worker::WorkerSetup;
use pulid::identity::FaceModels;
use pulid::pipeline::SdxlModel;
use pulid::runtime::{Quiet, Reporter};
use pulid_checkpoint::Checkpoint;
use pulid_engine::Observer;
use pulid_graph::{Checkpointing, ScratchValues};
use pulid_models::Precision;
use pulid_models::pulid::{IdentityInputs, IdentityLayer, TrainedAdapter};
use pulid_ops::Capabilities;
use pulid_tensor::{Error, Result, Shape};
use std::collections::BTreeSet;

/// What a run takes, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// What is trained: `PuLID v1.1`.
    pub adapter: String,
    /// Tensors and numbers that are trained.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Images in the cache.
    pub images: usize,
    /// Their heights and widths, and how many there are of each.
    pub sizes: Vec<(Size, usize)>,
    /// Whether blocks of a network are computed again in the backward pass.
    pub recomputed: bool,
    /// Bytes on the device that holds what is trained, by part. Another one has the frozen networks' alone.
    pub memory: Memory,
    /// Bytes in all: of images of different sizes those that take the most.
    pub total: usize,
}

/// What is trained, on the device that holds it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    tensors: usize,
    /// Numbers in them.
    numbers: usize,
    /// Bytes by part, without what lies in `scratch`.
    memory: Memory,
    /// Those of the adapter between its operators, with its gradients.
    pub scratch: Vec<ScratchValues>,
}

impl Own {
    /// For photos of so many vision tokens.
    ///
    /// # Errors
    /// As [`Adapter::graph`], and a device that cannot run a network.
    pub async fn plan(
        planner: &Planner<'_>,
        trained: &TrainedAdapter,
        layers: &[IdentityLayer],
        vision: usize,
        options: &TrainOptions,
        observer: &dyn Observer,
    ) -> Result<Own> {
        let build = || Adapter::graph(trained, layers, options.batch, vision, options.accumulate > 1);
        let (graph, parameters) = build()?;
        let shapes: Vec<Shape> = parameters.iter().map(|parameter| graph.shape(parameter.node).clone()).collect();
        let numbers: usize = shapes.iter().map(Shape::count).sum();
        let part = Part::forward("adapter: parameters", "adapter: constants", || Ok(build()?.0));
        let Decided { mut memory, scratch, .. } = decide(planner, &[part], Recompute::Off, None, &[], observer).await?;
        let of = |numbers: usize| numbers * size_of::<f32>();
        let moments: usize = shapes.iter().map(|shape| optimizer::moment_numbers(options.optimizer, shape)).sum();
        memory.push(("the optimiser's moments".to_owned(), of(moments)));
        let extents = optimizer::extents(options.optimizer, &shapes);
        // What lies in the adapter's arenas must survive them.
        let mut between = Vec::new();
        let mut steps = kept(planner, extents, optimizer::graph, &mut between, observer).await?;
        if options.ema > 0.0 {
            let pack = Shape::new([packs::size(shapes.iter().map(Shape::count))]);
            let averages = kept(planner, [pack], average::graph, &mut between, observer).await?;
            memory.push(("moving averages".to_owned(), of(numbers) + averages));
        }
        steps += planner.arenas(&between).bytes();
        memory.push(("the optimiser's steps".to_owned(), steps));
        Ok(Own { tensors: shapes.len(), numbers, memory, scratch })
    }

    /// Bytes of its parts.
    pub fn bytes(&self) -> usize {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Extents that a run's networks are built for.
#[derive(Clone, Debug)]
pub(crate) struct Extents {
    /// Images of each size, and how many there are.
    pub sizes: Vec<(Size, usize)>,
    /// Pixels to a latent, each way.
    pub factor: usize,
    /// Tokens of a caption, and of the vision tower for a photo.
    pub tokens: [usize; 2],
}

impl Extents {
    /// Of a cache's images.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(batches: &Batches) -> Result<Extents> {
        let (size, sample) = batches.largest()?;
        let second = |shape: &Shape| shape.extents().get(1).copied().unwrap_or(0);
        let tokens =
            [second(sample.text.hidden.shape()), sample.hidden.first().map_or(0, |hidden| second(hidden.shape()))];
        let factor = size[0] / second(sample.mean.shape()).max(1);
        Ok(Extents { sizes: batches.sizes().collect(), factor, tokens })
    }

    /// Of squares of a resolution, by the models.
    fn of_models(model: &SdxlModel, faces: &FaceModels, resolution: usize) -> Result<Extents> {
        let factor = model.vae(Precision::F32)?.config().factor();
        if resolution == 0 || !resolution.is_multiple_of(factor) {
            let detail = format!("{resolution} is not a multiple of {factor}");
            return Err(Error::invalid("resolution", detail));
        }
        let tower = faces.tower(Precision::F32)?.graph(1)?;
        let hidden = tower.outputs().iter().find(|(name, _)| name == "hidden_0").map(|(_, id)| tower.shape(*id));
        let vision = hidden.and_then(|shape| shape.extents().get(1)).copied().unwrap_or(0);
        /// Rows of CLIP's text encoders.
        const TEXT: usize = 77;
        Ok(Extents { sizes: vec![([resolution, resolution], 0)], factor, tokens: [TEXT, vision] })
    }

    /// The call of the largest size.
    fn call(&self, identity: IdentityInputs, batch: usize) -> Call {
        let size = self.sizes.iter().map(|(size, _)| *size).max_by_key(|[height, width]| height * width);
        let latent = size.unwrap_or_default().map(|side| side / self.factor.max(1));
        Call { batch, latent, factor: self.factor, text_tokens: self.tokens[0], identity }
    }
}

/// Plans a run of `options` on a device that need not be there, of some capabilities and so many bytes of memory, if they are limited: for the
/// images of a cache, if there is one, else for squares of the options' resolution. Nothing is loaded.
///
/// # Errors
/// Files that are missing or do not fit each other, a device that cannot run a network.
pub async fn plan_on(
    capabilities: &Capabilities,
    memory: Option<u64>,
    model: &SdxlModel,
    faces: &FaceModels,
    options: &TrainOptions,
    reporter: &dyn Reporter,
) -> Result<Plan> {
    let cache = Cache::is_cache(&options.data).then(|| crate::drive::open_cache(options)).transpose()?;
    let batches = cache.map(|cache| Batches::of_model(cache, model, options)).transpose()?;
    plan(&Planner::Assumed(capabilities, memory), model, faces, batches.as_ref(), options, reporter).await
}

/// Plans a run: for the images of a cache, if there is one, else for squares of the options' resolution.
///
/// # Errors
/// As [`plan_on`].
pub(crate) async fn plan(
    planner: &Planner<'_>,
    model: &SdxlModel,
    faces: &FaceModels,
    batches: Option<&Batches>,
    options: &TrainOptions,
    reporter: &dyn Reporter,
) -> Result<Plan> {
    reporter.stage("planning");
    let quiet = Quiet(reporter);
    let extents = match batches {
        Some(batches) => Extents::of(batches)?,
        None => Extents::of_models(model, faces, options.resolution)?,
    };
    let trained = TrainedAdapter::new(&Checkpoint::open(&options.from)?)?;
    let unet = model.unet(planner.precision(options.storage()?))?;
    let layers = unet.identity_layers()?;
    let [tokens, _] = trained.output_shape();
    let call =
        extents.call(IdentityInputs { tokens, num_zero: options.num_zero, ortho: options.ortho()? }, options.batch);

    let own = Own::plan(planner, &trained, &layers, extents.tokens[1], options, &quiet).await?;

    // The frozen networks.
    let sum = |memory: &Memory| memory.iter().map(|(_, bytes)| bytes).sum::<usize>();
    let setup = WorkerSetup { model, faces, options, call, layers: &layers };
    let decided = setup.decide(planner, &own, &quiet).await?;
    let (mut memory, mut scratch) = (decided.memory.clone(), decided.scratch.clone());
    // Those for images of other sizes take turns with these, and are built as they are.
    let at = call.at();
    let mut most: usize = memory.iter().filter(|(part, _)| part.ends_with(&at)).map(|(_, bytes)| bytes).sum();
    let mut of_all = most;
    let face = setup.face()?;
    let first = setup.parts_of_size(&unet, face.as_ref(), call);
    let latents: BTreeSet<_> = extents.sizes.iter().map(|(size, _)| size.map(|side| side / extents.factor)).collect();
    for latent in latents.into_iter().filter(|latent| *latent != call.latent) {
        let call = Call { latent, ..call };
        let mut all = 0;
        for (part, first) in setup.parts_of_size(&unet, face.as_ref(), call).into_iter().zip(&first) {
            let recompute = match decided.checkpointing(&first.name) {
                Checkpointing::Off => Recompute::Off,
                Checkpointing::Blocks(_) => Recompute::Block,
            };
            let name = part.name.clone();
            let other = decide(planner, &[part], recompute, None, &[], &quiet).await?;
            scratch.extend(other.scratch);
            let after = memory.iter().position(|(part, _)| *part == first.name).map_or(0, |first| first + 1);
            for part in other.memory.into_iter().filter(|(part, _)| *part == name) {
                all += part.1;
                memory.insert(after, part);
            }
        }
        (most, of_all) = (most.max(all), of_all + all);
    }
    memory.extend(own.memory);
    let values = planner.arenas(&scratch).bytes();
    memory.push(("values between operators and gradients, of one network after another".to_owned(), values));
    memory.retain(|(_, bytes)| *bytes > 0);
    Ok(Plan {
        adapter: trained.version().to_string(),
        tensors: own.tensors,
        parameters: own.numbers,
        images: extents.sizes.iter().map(|(_, images)| images).sum(),
        sizes: extents.sizes,
        recomputed: decided.recomputes(),
        total: sum(&memory) - of_all + most,
        memory,
    })
}
