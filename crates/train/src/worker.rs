//! Who computes the losses of a micro-batch: a device of this process or whatever else gives the same answer to the same data.
//!
//! By the cut at the identity's keys and values a worker holds frozen networks alone. It is given keys, values and samples, and gives the
//! losses with their gradients in keys and values: some 10 MB a sample each way at SDXL's size in half precision. What is trained, its
//! gradients and the optimiser stay with the [`Trainer`](crate::Trainer).

use crate::batch::Batch;
use crate::branch::{Branch, BranchSetup, Micro, Networks};
use crate::face::FaceGraphs;
use crate::losses::LossSums;
use crate::memory::{Decided, Part, Planner, decide};
use crate::objective::{BranchOptions, Weights};
use crate::one_step::OneStep;
use crate::options::TrainOptions;
use crate::plan::Own;
use crate::terms::{Call, Diffusion, Gradients};
use pulid::identity::FaceModels;
use pulid::pipeline::{SdxlModel, scheduler_config};
use pulid::runtime::{Quiet, Reporter, Runtime, Tensor};
use pulid::sampler::PredictionType;
use pulid_engine::Observer;
use pulid_models::Precision;
use pulid_models::pulid::IdentityLayer;
use pulid_models::sdxl::Unet;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a trainer that waits for other workers looks whether it is to stop.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a worker is given of a micro-batch. Nothing in it is kept for the next one.
#[derive(Debug)]
pub struct Request {
    /// Which micro-batch it is, by which random numbers are drawn, and how much its losses count.
    pub at: Micro,
    /// Its samples.
    pub batch: Batch,
    /// The identity's keys and values of these samples, `k.N` and `v.N` of each layer N.
    pub keys_values: HashMap<String, Tensor>,
}

/// What a worker answers.
#[derive(Debug, Default)]
pub struct Response {
    /// The losses over the samples.
    pub losses: LossSums,
    /// Their gradients in keys and values by the losses' weights, `d.k.N` and `d.v.N` of the request's shapes, times the request's factor;
    /// none where no loss has any.
    pub gradients: Option<Gradients>,
    /// What else went into them, for whoever holds a step against another implementation, in PyTorch's layout.
    pub inputs: BTreeMap<String, HostTensor>,
}

/// Computes losses. An answer depends on the request alone.
pub trait Worker: Send {
    /// Where it works, for people.
    fn name(&self) -> String;

    /// Whether it works on the trainer's own device, so that tensors may stay there.
    fn is_local(&self) -> bool {
        false
    }

    /// The losses of a micro-batch; blocks until they are there.
    ///
    /// # Errors
    /// Whatever keeps it from answering, and cancellation.
    fn work(&mut self, request: &Request, reporter: &dyn Reporter) -> Result<Response>;

    /// Loads what samples with latents of these rows and columns need; otherwise that is done when the first of a size comes.
    ///
    /// # Errors
    /// Whatever keeps it from working on such samples.
    fn load(&mut self, latents: &[[usize; 2]], reporter: &dyn Reporter) -> Result<()> {
        let _ = (latents, reporter);
        Ok(())
    }
}

/// What a device's worker is made with.
pub(crate) struct WorkerSetup<'a> {
    pub model: &'a SdxlModel,
    pub faces: &'a FaceModels,
    pub options: &'a TrainOptions,
    pub call: Call,
    pub layers: &'a [IdentityLayer],
}

impl WorkerSetup<'_> {
    fn branch<'b>(
        &'b self,
        runtime: &'b Runtime,
        options: &'b BranchOptions,
        model: &'b SdxlModel,
        decided: &'b Decided,
    ) -> Result<BranchSetup<'b>> {
        Ok(BranchSetup {
            runtime,
            model,
            faces: self.faces,
            storage: self.options.storage()?,
            options,
            weights: self.options.branch_weights(),
            batch: self.options.batch,
            identity: self.call.identity,
            layers: self.layers,
            seed: self.options.seed,
            decided,
        })
    }

    /// How L_id's networks on one-step estimates are built, where there are any.
    ///
    /// # Errors
    /// A recogniser that is missing or of another kind.
    pub fn face(&self) -> Result<Option<Arc<FaceGraphs>>> {
        let Some(one_step) = self.options.needed_one_step() else { return Ok(None) };
        let vae = self.model.vae(Precision::F32)?;
        FaceGraphs::new(&vae, &one_step.recogniser, self.options.batch).map(|graphs| Some(Arc::new(graphs)))
    }

    /// What is there for samples of a call's size alone, in the same order for each size.
    pub fn parts_of_size<'u>(&self, unet: &'u Unet, face: Option<&Arc<FaceGraphs>>, call: Call) -> Vec<Part<'u>> {
        let diffusion = self.options.predicts().then(|| Diffusion::part(unet, call, face.is_some()));
        diffusion.into_iter().chain(face.map(|face| OneStep::part_of_size(face, &call))).collect()
    }

    /// What a device's worker takes for samples of the call's size, and what it computes again where that is more than fits beside
    /// what is trained, if that is there.
    ///
    /// # Errors
    /// Weights that are missing or mismatched, a device that cannot run a network.
    pub async fn decide(&self, planner: &Planner<'_>, own: &Own, observer: &dyn Observer) -> Result<Decided> {
        let options = self.options;
        let (precision, room) = (planner.precision(options.storage()?), planner.room(own.bytes()));
        let unet = self.model.unet(precision)?;
        let face = self.face()?;
        let of_noise = || {
            let mut parts = self.parts_of_size(&unet, face.as_ref(), self.call);
            parts.extend(face.as_ref().map(OneStep::part_of_photos));
            parts
        };
        let Some(branch) = options.needed_branch() else {
            return decide(planner, &of_noise(), options.checkpointing, room, &own.scratch, observer).await;
        };
        // Graphs are built without a device.
        let (model, undecided, nowhere) = (branch.open_model()?, Decided::default(), Runtime::Reference);
        let setup = self.branch(&nowhere, branch, &model, &undecided)?;
        let (of_branch, vae) = (model.unet(precision)?, model.vae(Precision::F32)?);
        let networks = Networks::new(&setup, &of_branch, &vae, self.call.text_tokens);
        let parts: Vec<_> = of_noise().into_iter().chain(networks.parts()?).collect();
        decide(planner, &parts, options.checkpointing, room, &own.scratch, observer).await
    }
}

/// A worker on a device of this process.
pub(crate) struct DeviceWorker {
    runtime: Runtime,
    local: bool,
    diffusion: Option<Diffusion>,
    /// L_id, where it does not look at the branch.
    one_step: Option<OneStep>,
    branch: Option<Branch>,
    weights: Weights,
}

impl DeviceWorker {
    /// Loads the networks of the losses. What is trained is `own`, if it comes to the same device afterwards.
    ///
    /// # Errors
    /// As [`Trainer::open`](crate::Trainer::open).
    pub async fn load(
        runtime: &Runtime,
        setup: &WorkerSetup<'_>,
        local: bool,
        own: &Own,
        reporter: &dyn Reporter,
    ) -> Result<DeviceWorker> {
        let WorkerSetup { model, faces, options, call, .. } = *setup;
        reporter.stage("planning");
        let decided = setup.decide(&Planner::Device(runtime), own, &Quiet(reporter)).await?;
        runtime.reserve(&Planner::Device(runtime).arenas(&decided.scratch)).await?;
        let face = setup.face()?;
        let mut diffusion = None;
        if options.predicts() {
            reporter.stage("loading the UNet");
            let unet = model.unet(Planner::Device(runtime).precision(options.storage()?))?;
            let checkpointing = decided.checkpointing(&Diffusion::name(&call));
            diffusion = Some(Diffusion::load(runtime, &unet, &call, face.is_some(), checkpointing, reporter).await?);
        }
        let one_step = match face {
            Some(face) => {
                reporter.stage("loading the VAE and the recogniser");
                let predicts_v = scheduler_config(model)?.prediction_type == PredictionType::VPrediction;
                Some(OneStep::load(runtime, faces, face, &call, predicts_v, &decided, reporter).await?)
            }
            None => None,
        };
        let branch = match options.needed_branch() {
            Some(branch) => {
                let model = branch.open_model()?;
                Some(Branch::load(&setup.branch(runtime, branch, &model, &decided)?, reporter).await?)
            }
            None => None,
        };
        Ok(DeviceWorker { runtime: runtime.clone(), local, diffusion, one_step, branch, weights: options.weights })
    }

    async fn answer(&mut self, request: &Request, reporter: &dyn Reporter) -> Result<Response> {
        let Request { at, batch, keys_values } = request;
        let mut response = Response::default();
        let Weights { diff, id, .. } = self.weights;
        let mut of_face = None;
        if let (Some(diffusion), Some(one_step)) = (&mut self.diffusion, &mut self.one_step)
            && batch.identified.contains(&true)
        {
            let prediction = diffusion.predict(batch, keys_values, reporter).await?;
            let answer = one_step.run(batch, &prediction, id * at.factor, reporter).await?;
            response.losses.add_face(&answer);
            response.inputs = answer.inputs;
            of_face = answer.loss.map(|(_, gradient)| gradient);
        }
        if let Some(diffusion) = &mut self.diffusion
            && (diff > 0.0 || of_face.is_some())
        {
            let answer = diffusion.run(batch, keys_values, diff * at.factor, of_face, reporter).await?;
            if diff > 0.0 {
                response.losses.diff.add(answer.loss, batch.identified.len());
            }
            response.gradients = Some(answer.gradients);
        }
        if let Some(branch) = &mut self.branch {
            let answer = branch.run(*at, batch, keys_values, response.gradients.take(), reporter).await?;
            response.losses.add_branch(&answer, batch);
            response.gradients = answer.gradients;
            response.inputs.extend(answer.inputs);
        }
        if !self.local
            && let Some(gradients) = &mut response.gradients
        {
            *gradients = on_host(gradients).await?;
        }
        Ok(response)
    }
}

impl Worker for DeviceWorker {
    fn name(&self) -> String {
        self.runtime.name()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn work(&mut self, request: &Request, reporter: &dyn Reporter) -> Result<Response> {
        pollster::block_on(self.answer(request, reporter))
    }

    fn load(&mut self, latents: &[[usize; 2]], reporter: &dyn Reporter) -> Result<()> {
        let quiet = Quiet(reporter);
        latents.iter().try_for_each(|size| {
            self.diffusion.as_mut().map_or(Ok(()), |diffusion| pollster::block_on(diffusion.take(*size, &quiet)))?;
            self.one_step.as_mut().map_or(Ok(()), |one_step| pollster::block_on(one_step.take(*size, &quiet)))
        })
    }
}

/// Tensors for another device.
///
/// # Errors
/// A lost device.
pub(crate) async fn on_host(tensors: &HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>> {
    let mut host = HashMap::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        host.insert(name.clone(), Tensor::Host(tensor.read().await?));
    }
    Ok(host)
}

/// Every worker's answer to its own request, in the order of the requests, whichever is there first. All work at the same time: the first
/// on this thread, each other one on its own.
///
/// # Errors
/// The first worker's in their order that failed, with its name where the device is to blame. The others are stopped.
pub(crate) fn together(
    workers: &mut [Box<dyn Worker>],
    requests: &[Request],
    reporter: &dyn Reporter,
) -> Result<Vec<Response>> {
    let stop = AtomicBool::new(false);
    let work = |worker: &mut dyn Worker, request: &Request, reporter: &dyn Reporter| {
        let answer = worker.work(request, reporter).map_err(|error| named(&worker.name(), error));
        if answer.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        answer
    };
    let (work, stop) = (&work, &stop);
    let mut answers: Vec<Result<Response>> = std::thread::scope(|scope| {
        let mut pairs = workers.iter_mut().zip(requests);
        let Some((worker, request)) = pairs.next() else { return Vec::new() };
        let others: Vec<_> = pairs
            .map(|(worker, request)| scope.spawn(move || work(worker.as_mut(), request, &Quiet(&Stop(stop)))))
            .collect();
        let first = work(worker.as_mut(), request, &Either { reporter, stop });
        while others.iter().any(|thread| !thread.is_finished()) {
            if reporter.cancelled() {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(PATIENCE);
        }
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(first).chain(others).collect()
    });
    let failed = |answer: &Result<Response>| matches!(answer, Err(error) if !matches!(error, Error::Cancelled));
    // One that was stopped for another's sake has nothing to say.
    if let Some(place) = answers.iter().position(failed) {
        answers.swap(0, place);
    }
    answers.into_iter().collect()
}

/// An error that is a device's with the device's name.
pub(crate) fn named(name: &str, error: Error) -> Error {
    match error {
        Error::Device(detail) => Error::Device(format!("{name}: {detail}")),
        Error::OutOfMemory(detail) => Error::OutOfMemory(format!("{name}: {detail}")),
        other => other,
    }
}

/// Stops a worker of another thread.
struct Stop<'a>(&'a AtomicBool);

impl Observer for Stop<'_> {
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches the first worker, which also stops for the others' sake.
struct Either<'a> {
    reporter: &'a dyn Reporter,
    stop: &'a AtomicBool,
}

impl Observer for Either<'_> {
    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.reporter.cancelled()
    }

    fn progress(&self, done: u64, total: u64) {
        self.reporter.progress(done, total);
    }
}

impl Reporter for Either<'_> {
    fn stage(&self, name: &str) {
        self.reporter.stage(name);
    }

    fn note(&self, text: &str) {
        self.reporter.note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_engine::Silent;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Answers with its number as L_diff, once it may.
    struct Fake {
        number: usize,
        /// Whose answer is waited for first, and who is told of this one.
        after: Option<Receiver<()>>,
        tells: Option<Sender<()>>,
        fails: bool,
    }

    impl Worker for Fake {
        fn name(&self) -> String {
            format!("device {}", self.number)
        }

        fn work(&mut self, request: &Request, reporter: &dyn Reporter) -> Result<Response> {
            if let Some(after) = &self.after {
                after.recv().unwrap();
            }
            if self.fails {
                return Err(Error::Device("it is lost".into()));
            }
            if let Some(tells) = &self.tells {
                tells.send(()).unwrap();
            } else {
                // Nobody waits for this one: it works until it is stopped.
                while !reporter.cancelled() {
                    std::thread::sleep(PATIENCE);
                }
                return Err(Error::Cancelled);
            }
            let mut response = Response::default();
            response.losses.diff.add((10 * request.at.micro + self.number) as f64, 1);
            Ok(response)
        }
    }

    fn requests(count: usize) -> Vec<Request> {
        let batch = Batch { identified: vec![true], ..crate::batch::tests::nothing() };
        let request = |micro| {
            let at = Micro { step: 1, micro, factor: 1.0 };
            Request { at, batch: batch.clone(), keys_values: HashMap::new() }
        };
        (0..count).map(request).collect()
    }

    /// Three workers that answer from the last to the first.
    fn backwards(fails: Option<usize>) -> Result<Vec<Response>> {
        let (tells_first, first) = channel();
        let (tells_second, second) = channel();
        let (tells_nobody, _nobody) = channel();
        let each = [(Some(first), tells_nobody), (Some(second), tells_first), (None, tells_second)];
        let fake = |(number, (after, tells)): (usize, (Option<Receiver<()>>, Sender<()>))| {
            Box::new(Fake { number, after, tells: Some(tells), fails: fails == Some(number) }) as Box<dyn Worker>
        };
        let mut workers: Vec<_> = each.into_iter().enumerate().map(fake).collect();
        together(&mut workers, &requests(3), &Silent)
    }

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let losses: Vec<f64> = backwards(None).unwrap().iter().map(|r| r.losses.diff.sum).collect();
        assert_eq!(losses, [0.0, 11.0, 22.0]);
    }

    #[test]
    fn a_lost_device_is_named_and_stops_the_others() {
        // The other one is stopped, and has nothing of its own to say, in whichever order they stand.
        for failing in [0, 1] {
            let one = |number| {
                Box::new(Fake { number, after: None, tells: None, fails: number == failing }) as Box<dyn Worker>
            };
            let mut workers = vec![one(0), one(1)];
            let message = together(&mut workers, &requests(2), &Silent).unwrap_err().to_string();
            assert_eq!(message, format!("device: device {failing}: it is lost"));
        }
    }
}
