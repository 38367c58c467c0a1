//! Where networks run: a device, or the CPU reference. The pipeline does not care which.

use crate::blame::Suspects;
use crate::image::RgbImage;
pub use crate::numbers::{Copies, Numbers};
pub use crate::pool::{Keep, Lease, Pool};
use pulid_engine::{
    Autotune, Device, DeviceMemory, DeviceOptions, DeviceTensor, Observer, Scratch, Session, TuneBudget, tune,
};
use pulid_graph::{
    Arenas, Chooser, FirstVariant, Graph, PlannedGraph, fit_bindings, optimize, plan, plan_sharing, reference,
    residency,
};
use pulid_models::Precision;
use pulid_ops::{DeviceKind, Operator, Variant};
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a person watching a run is told. Every method may stay as it is.
pub trait Reporter: Observer {
    /// A stage begins, for example `text encoder` or `decoding`.
    fn stage(&self, name: &str) {
        let _ = name;
    }

    /// Something worth knowing that is no error.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// A denoising call is done: step `step` (from 1) of `steps`.
    fn step(&self, step: usize, steps: usize) {
        let _ = (step, steps);
    }

    /// Whether [`Reporter::preview`] is to be called.
    fn wants_preview(&self) -> bool {
        false
    }

    /// How the first image of the batch looks so far, a pixel for each latent, after each denoising call.
    fn preview(&self, image: &RgbImage) {
        let _ = image;
    }
}

impl Reporter for pulid_engine::Silent {}

/// Whether kernel variants are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// Choose by capabilities alone: the same plan every time.
    #[default]
    Off,
    /// Measure what was not measured before, within a budget.
    On,
}

/// An execution backend: cheap to clone, clones share the device, its choices and what is loaded.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// A device through wgpu.
    Gpu {
        /// The device.
        device: Device,
        /// Measured kernel choices.
        choices: Arc<Mutex<Autotune>>,
        /// Whether to measure more.
        tuning: Tuning,
        /// What is left of the time for measuring.
        budget: Arc<Mutex<TuneBudget>>,
        /// Bytes of device memory that one network may take; what does not fit streams.
        memory: Option<u64>,
        /// Networks that stay on the device between uses.
        pool: Arc<Pool>,
        /// What networks share for the values between their operators, where they never run at the same time.
        scratch: Option<Scratch>,
    },
    /// Plain Rust with f64 accumulation: slow, precise, needs no driver.
    Reference,
}

impl Runtime {
    /// Opens `reference`, or a device as [`Device::open`] does.
    ///
    /// # Errors
    /// When no device matches.
    pub async fn open(selector: &str, options: DeviceOptions) -> Result<Runtime> {
        if selector.eq_ignore_ascii_case("reference") {
            return Ok(Runtime::Reference);
        }
        let device = Device::open(selector, options).await?;
        let choices = Arc::new(Mutex::new(Autotune::for_device(&device)));
        // Software devices profit little and would take long; GPUs are worth a few seconds once.
        let seconds = if device.capabilities().kind == DeviceKind::Cpu { 1.0 } else { 15.0 };
        let budget = Arc::new(Mutex::new(TuneBudget { seconds }));
        Ok(Runtime::Gpu {
            device,
            choices,
            tuning: Tuning::Off,
            budget,
            memory: None,
            pool: Arc::default(),
            scratch: None,
        })
    }

    /// Measures kernel variants from now on, starting from choices made earlier (ignored when they belong to another
    /// device or driver, or to other kernels).
    pub fn with_tuning(mut self, known: Option<Autotune>) -> Runtime {
        if let Runtime::Gpu { device, choices, tuning, .. } = &mut self {
            if let Some(known) = known.filter(|k| k.fits(device)) {
                *choices = Arc::new(Mutex::new(known));
            }
            *tuning = Tuning::On;
        }
        self
    }

    /// Shares another runtime's kernel choices and what is left of its time for measuring, where both are on devices of one kind: each
    /// then computes the same bits.
    pub fn sharing_choices(mut self, other: &Runtime) -> Runtime {
        if let Runtime::Gpu { device, choices, budget, .. } = &mut self
            && let Runtime::Gpu { choices: others, budget: left, .. } = other
            && others.lock().unwrap_or_else(PoisonError::into_inner).fits(device)
        {
            (*choices, *budget) = (others.clone(), left.clone());
        }
        self
    }

    /// Keeps every network within a budget of device memory: weights that do not fit are uploaded anew for each run, stage by
    /// stage, while the stage before computes. What stays between uses fits it too. The reference has no device memory.
    pub fn with_memory(mut self, bytes: Option<u64>) -> Runtime {
        if let Runtime::Gpu { memory, .. } = &mut self {
            *memory = bytes;
        }
        self
    }

    /// What stays on the device between uses from now on.
    pub fn keeping(mut self, keep: Keep) -> Runtime {
        if let Runtime::Gpu { pool, .. } = &mut self {
            *pool = Arc::new(Pool::new(keep));
        }
        self
    }

    /// A runtime whose networks, which must never run at the same time, use the same memory for the values between their operators.
    pub fn sharing_scratch(&self) -> Runtime {
        self.with_scratch(Some(Scratch::default()))
    }

    /// The same runtime, whose networks have memory of their own for the values between their operators.
    pub fn with_own_scratch(&self) -> Runtime {
        self.with_scratch(None)
    }

    fn with_scratch(&self, shared: Option<Scratch>) -> Runtime {
        let mut other = self.clone();
        if let Runtime::Gpu { scratch, .. } = &mut other {
            *scratch = shared;
        }
        other
    }

    /// Makes arenas for the values between operators, where networks share them.
    ///
    /// # Errors
    /// A device out of memory.
    pub async fn reserve(&self, sizes: &Arenas) -> Result<()> {
        match self {
            Runtime::Gpu { device, scratch: Some(scratch), .. } => scratch.reserve(device, sizes).await,
            _ => Ok(()),
        }
    }

    /// Lets go what stays on the device between uses.
    pub fn clear(&self) {
        if let Runtime::Gpu { pool, .. } = self {
            pool.clear();
        }
    }

    /// What the device holds, and what it was given since it was opened; nothing for the reference.
    pub fn device_memory(&self) -> DeviceMemory {
        match self {
            Runtime::Gpu { device, .. } => device.memory(),
            Runtime::Reference => DeviceMemory::default(),
        }
    }

    /// The kernel choices made so far, to be kept for the next start.
    pub fn choices(&self) -> Option<Autotune> {
        match self {
            Runtime::Gpu { choices, tuning: Tuning::On, .. } => {
                Some(choices.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            _ => None,
        }
    }

    /// Name of the device, for people.
    pub fn name(&self) -> String {
        match self {
            Runtime::Gpu { device, .. } => format!("{} ({})", device.summary().name, device.summary().backend),
            Runtime::Reference => "the CPU reference".into(),
        }
    }

    /// The precision in which networks run when the user asks for `dtype`: without `shader-f16` activations stay f32 and
    /// only weights are halved. `quantize` asks for quantised blocks where kernels read them.
    pub fn precision(&self, dtype: DType, quantize: Option<DType>) -> Precision {
        let halves = match self {
            Runtime::Gpu { device, .. } => device.capabilities().shader_f16,
            Runtime::Reference => false,
        };
        Runtime::precision_with(halves, dtype, quantize)
    }

    /// [`Runtime::precision`] on a device with or without `shader-f16`.
    pub fn precision_with(halves: bool, dtype: DType, quantize: Option<DType>) -> Precision {
        let precision = match (dtype, halves) {
            (DType::F16, true) => Precision::F16,
            (DType::F16, false) => Precision { activations: DType::F32, weights: Some(DType::F16) },
            _ => Precision::F32,
        };
        Precision { weights: quantize.or(precision.weights), ..precision }
    }

    /// Plans a graph as [`Runtime::load`] would; the reference has no plan.
    ///
    /// # Errors
    /// When the device cannot run it.
    pub async fn plan(&self, graph: &Graph, observer: &dyn Observer) -> Result<Option<PlannedGraph>> {
        let Runtime::Gpu { device, choices, tuning, budget, memory, scratch, .. } = self else { return Ok(None) };
        let plan = |graph: &Graph, chooser: &dyn Chooser| match scratch {
            Some(_) => plan_sharing(graph, device.capabilities(), chooser),
            None => plan(graph, device.capabilities(), chooser),
        };
        let within = |planned: PlannedGraph| match memory {
            Some(bytes) => residency::fit(planned, *bytes),
            None => Ok(planned),
        };
        let limit = usize::try_from(device.capabilities().max_binding_bytes).unwrap_or(usize::MAX);
        let graph = optimize(&fit_bindings(graph, limit)?);
        if *tuning == Tuning::Off {
            return plan(&graph, &FirstVariant).and_then(within).map(Some);
        }
        let mut known = choices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut left = *budget.lock().unwrap_or_else(PoisonError::into_inner);
        let tuned = tune(device, &graph, &mut known, &mut left, observer).await;
        *budget.lock().unwrap_or_else(PoisonError::into_inner) = left;
        let planned = plan(&graph, &known).and_then(within).map(Some);
        *choices.lock().unwrap_or_else(PoisonError::into_inner) = known;
        tuned.and(planned)
    }

    /// The variant that a network would run for an operator, measured first where tuning is on: an index into `variants`.
    ///
    /// # Errors
    /// A lost device.
    pub async fn choose(
        &self,
        operator: &dyn Operator,
        inputs: &[TensorType],
        output: &TensorType,
        variants: &[Variant],
    ) -> Result<usize> {
        let Runtime::Gpu { device, choices, tuning: Tuning::On, .. } = self else { return Ok(0) };
        let mut known = choices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Whoever asks for one operator wants its answer: the budget is for whole networks.
        known.measure(device, operator, inputs, output).await?;
        let chosen = known.choose(operator, inputs, output, variants);
        *choices.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(chosen)
    }

    /// Whether networks must stay within a budget of device memory.
    pub fn has_budget(&self) -> bool {
        matches!(self, Runtime::Gpu { memory: Some(_), .. })
    }

    /// Makes a graph ready to run: takes a session of it that was kept, else plans it and loads its weights. The observer sees bytes
    /// of weights. Where the device has no room, what was kept goes.
    ///
    /// # Errors
    /// An unreadable weight, a device out of memory, or cancellation.
    pub async fn load(&self, graph: &Graph, observer: &dyn Observer) -> Result<Loaded> {
        let Runtime::Gpu { device, memory, pool, scratch, .. } = self else {
            let suspects = Box::new(Suspects::of(graph));
            let (inputs, outputs) = (HashMap::new(), Box::default());
            return Ok(Loaded::Reference { graph: optimize(graph), inputs, outputs, suspects });
        };
        let fingerprint = graph.fingerprint();
        if let Some(mut kept) = pool.take(fingerprint) {
            kept.suspects = Suspects::of(graph);
            return Ok(Loaded::Session(Box::new(kept)));
        }
        let Some(planned) = self.plan(graph, observer).await? else {
            return Err(Error::Device(format!("{} has no plan", graph.name())));
        };
        let shared = scratch.as_ref().map_or(0, |scratch| scratch.present(&planned.plan, device));
        pool.make_room(device, &planned, memory.or(device.memory_bytes()).map(|all| all + shared));
        let create = async || match scratch {
            Some(scratch) => Session::sharing(device, &planned, scratch, observer).await,
            None => Session::new(device, &planned, observer).await,
        };
        let session = match create().await {
            Err(Error::OutOfMemory(_)) if pool.clear() => create().await,
            other => other,
        };
        let mut lease = pool.lease(fingerprint, session?);
        lease.suspects = Suspects::of(graph);
        Ok(Loaded::Session(Box::new(lease)))
    }

    /// Loads, writes, runs and reads in one go.
    ///
    /// # Errors
    /// See [`Loaded::run`].
    pub async fn run(
        &self,
        graph: &Graph,
        inputs: &HashMap<String, HostTensor>,
        observer: &dyn Observer,
    ) -> Result<HashMap<String, HostTensor>> {
        let mut loaded = self.load(graph, &Quiet(observer)).await?;
        for (name, value) in inputs {
            loaded.write(name, value)?;
        }
        loaded.run(observer).await
    }
}

/// Passes cancellation on, not stages and progress: for networks that are a part of something larger, and since loading and running count
/// different things.
#[derive(Clone, Copy)]
pub struct Quiet<'a>(pub &'a dyn Observer);

impl Observer for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

impl Reporter for Quiet<'_> {}

/// A network's output on its way into another.
#[derive(Debug)]
pub enum Tensor {
    /// In main memory.
    Host(HostTensor),
    /// On the device that computed it.
    Device(DeviceTensor),
}

impl Tensor {
    /// Bytes as it is stored.
    pub fn bytes(&self) -> usize {
        match self {
            Tensor::Host(tensor) => tensor.tensor_type().bytes(),
            Tensor::Device(tensor) => tensor.tensor_type().bytes(),
        }
    }

    /// The tensor in main memory, as it is stored.
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self) -> Result<HostTensor> {
        match self {
            Tensor::Host(tensor) => Ok(tensor.clone()),
            Tensor::Device(tensor) => tensor.read().await,
        }
    }
}

/// A network ready to run again and again.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "the reference computes for seconds: a larger value that is moved is nothing beside"
)]
pub enum Loaded {
    /// On a device.
    Session(Box<Lease>),
    /// On the CPU.
    Reference {
        /// The optimized graph.
        graph: Graph,
        /// Inputs written so far.
        inputs: HashMap<String, HostTensor>,
        /// What came out when it ran last.
        outputs: Box<HashMap<String, HostTensor>>,
        /// The weights that it was loaded with.
        #[doc(hidden)]
        suspects: Box<Suspects>,
    },
}

impl Loaded {
    /// The weights that a result which is not finite may come from.
    pub(crate) fn suspects(&mut self) -> &mut Suspects {
        match self {
            Loaded::Session(session) => &mut session.suspects,
            Loaded::Reference { suspects, .. } => suspects,
        }
    }

    /// What stays on the device and what streams, where anything does, in words.
    pub fn streaming(&self) -> Option<String> {
        let Loaded::Session(session) = self else { return None };
        let s = session.plan().summary();
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        (s.streamed_bytes > 0).then(|| {
            format!(
                "{}: {} MiB of weights stream, {} MiB of the device's memory hold the others and the slots, {} MiB the values \
                 between operators; {} MiB in all",
                session.plan().network,
                mib(s.streamed_bytes),
                mib(s.weight_bytes),
                mib(s.working_bytes),
                mib(s.weight_bytes + s.working_bytes)
            )
        })
    }

    /// Sets an input; it stays until it is set again.
    ///
    /// # Errors
    /// When there is no such input or its shape differs.
    pub fn write(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        match self {
            Loaded::Session(session) => session.write(name, value),
            Loaded::Reference { inputs, .. } => {
                inputs.insert(name.to_owned(), value.clone());
                Ok(())
            }
        }
    }

    /// Sets inputs to what [`Loaded::run_to_tensors`] gave, which stays on the device where both are on one.
    ///
    /// # Errors
    /// When there is no such input or its type differs.
    pub async fn write_tensors(&mut self, values: &HashMap<String, Tensor>) -> Result<()> {
        let mut on_device = Vec::new();
        for (name, value) in values {
            match (&mut *self, value) {
                (Loaded::Session(_), Tensor::Device(tensor)) => on_device.push((name.as_str(), tensor)),
                (loaded, Tensor::Device(tensor)) => loaded.write(name, &tensor.read().await?.cast(DType::F32))?,
                (loaded, Tensor::Host(tensor)) => loaded.write(name, tensor)?,
            }
        }
        match self {
            Loaded::Session(session) => session.write_tensors(on_device).await,
            Loaded::Reference { .. } => Ok(()),
        }
    }

    /// [`Loaded::run`], whose outputs stay where they are for the inputs of other networks. Nobody looks at them, so that NaN is
    /// noticed where it arrives.
    ///
    /// # Errors
    /// A lost device or cancellation.
    pub async fn run_to_tensors(&mut self, observer: &dyn Observer) -> Result<HashMap<String, Tensor>> {
        let names = match self {
            Loaded::Session(session) => session.plan().outputs.iter().map(|p| p.name.clone()).collect(),
            Loaded::Reference { graph, .. } => graph.outputs().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
        };
        self.run_to(&names.iter().map(String::as_str).collect::<Vec<_>>(), observer).await
    }

    /// [`Loaded::run_to_tensors`] for some of the outputs, as far as these need it ([`Session::run_to`]). NaN is an error in the reference alone.
    ///
    /// # Errors
    /// A lost device, cancellation, or no such output.
    pub async fn run_to(&mut self, names: &[&str], observer: &dyn Observer) -> Result<HashMap<String, Tensor>> {
        self.run_from(false, names, observer).await
    }

    /// [`Loaded::run_to`] behind what the one before computed, where that is still there ([`Session::continue_to`]).
    ///
    /// # Errors
    /// As there.
    pub async fn continue_to(&mut self, names: &[&str], observer: &dyn Observer) -> Result<HashMap<String, Tensor>> {
        self.run_from(true, names, observer).await
    }

    async fn run_from(
        &mut self,
        continues: bool,
        names: &[&str],
        observer: &dyn Observer,
    ) -> Result<HashMap<String, Tensor>> {
        let Loaded::Session(session) = self else {
            let mut all = self.run(observer).await?;
            if let Loaded::Reference { outputs, .. } = self {
                outputs.as_mut().clone_from(&all);
            }
            let host = |name: &&str| Ok(((*name).to_owned(), Tensor::Host(crate::pipeline::take(&mut all, name)?)));
            return names.iter().map(host).collect();
        };
        let ran = match names {
            [] => session.run(observer).await,
            _ if continues => session.continue_to(names, observer).await,
            _ => session.run_to(names, observer).await,
        };
        usable(session, ran)?;
        let tensors = session.tensors(names).await?;
        Ok(names.iter().map(|name| (*name).to_owned()).zip(tensors.into_iter().map(Tensor::Device)).collect())
    }

    /// Runs and gives every output in f32.
    ///
    /// # Errors
    /// A lost device, cancellation, or [`Error::NotFinite`] naming the first operator that produced NaN or infinity, and the weights that
    /// are not finite themselves, if any are.
    pub async fn run(&mut self, observer: &dyn Observer) -> Result<HashMap<String, HostTensor>> {
        let ran = self.run_outputs(observer).await;
        ran.map_err(|error| self.suspects().blame(error, observer))
    }

    /// [`Loaded::run`], which does not look through the weights.
    pub(crate) async fn run_outputs(&mut self, observer: &dyn Observer) -> Result<HashMap<String, HostTensor>> {
        match self {
            Loaded::Session(session) => {
                let ran = session.run(observer).await;
                usable(session, ran)?;
                let mut outputs = HashMap::new();
                let names: Vec<_> = session.plan().outputs.iter().map(|p| p.name.clone()).collect();
                for name in names {
                    let value = session.read(&name).await?.cast(DType::F32);
                    if value.as_f32()?.iter().any(|v| !v.is_finite()) {
                        session.locate_non_finite().await?;
                        // It did not happen again: still nothing to show.
                        return Err(not_finite(&session.plan().network, &name));
                    }
                    outputs.insert(name, value);
                }
                Ok(outputs)
            }
            Loaded::Reference { graph, inputs, .. } => reference::run_finite(graph, inputs, |done, total| {
                if observer.cancelled() {
                    return Err(Error::Cancelled);
                }
                observer.progress(done as u64, total as u64);
                Ok(())
            }),
        }
    }
}

/// A session is not used again after an error of its own.
fn usable(session: &mut Lease, ran: Result<()>) -> Result<()> {
    if !matches!(ran, Ok(()) | Err(Error::Cancelled)) {
        session.abandon();
    }
    ran
}

fn not_finite(network: &str, output: &str) -> Error {
    Error::NotFinite {
        network: network.to_owned(),
        operator: format!("output `{output}`"),
        detail: "check the weights and inputs".into(),
    }
}
