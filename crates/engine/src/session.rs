mod profile;

pub(crate) use profile::Profiler;
pub use profile::StepProfile;

use crate::Device;
use crate::device::Submission;
use crate::kernel::{Kernel, KernelKey};
use crate::loader::Loader;
use crate::memory::{DeviceWeight, Held};
use crate::observer::{Observer, check};
use crate::place::Place;
use crate::scratch::{Scratch, Share, Turn};
use crate::time::Instant;
use pulid_graph::PlannedGraph;
use pulid_graph::plan::{BufferKind, Plan, PlannedDispatch, Port, Stage, Step};
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A plan on a device: buffers allocated, weights uploaded, pipelines compiled. Nothing is allocated while running, but for
/// the queue's own staging of streamed weights.
#[derive(Debug)]
pub struct Session {
    device: Device,
    plan: Plan,
    /// Where each planned buffer lies.
    places: Vec<Place>,
    /// Weights that stay, which other sessions may use too.
    _weights: Vec<Arc<DeviceWeight>>,
    /// The session's own buffers.
    _held: [Held; 2],
    /// What it shares with others, by turns.
    share: Option<Share>,
    prologue: Vec<Recorded>,
    steps: Vec<Recorded>,
    /// Weights that stream, in main memory, by their place in the plan.
    streamed: HashMap<usize, Arc<HostTensor>>,
    /// An input of the prologue changed since it last ran.
    dirty: bool,
    /// How many of the steps a run for some outputs made last, where their values are still there: the next one may go on behind them.
    reached: usize,
    /// How many of the steps the last run made, and runs before it that it went on behind.
    made: usize,
    /// Of each input, whether it holds nothing but zeros, as buffers do before they are written.
    zero: Vec<bool>,
    params: Params,
}

/// A stage's weights and steps.
struct Unit<'a> {
    weights: &'a [usize],
    recorded: Vec<&'a Recorded>,
}

/// Submissions under way.
struct Ahead<'a> {
    device: &'a Device,
    observer: &'a dyn Observer,
    /// Oldest first, with their floating-point operations.
    under_way: VecDeque<(Submission, u64)>,
    /// When the one before was over.
    last: Option<Instant>,
    done: u64,
    total: u64,
}

impl Ahead<'_> {
    /// Waits for the oldest, until no more than so many are left.
    async fn wait_until(&mut self, left: usize) -> Result<()> {
        while self.under_way.len() > left {
            let Some((submission, flops)) = self.under_way.pop_front() else { break };
            let begun = self.last.map_or(submission.begun, |last| last.max(submission.begun));
            let over = self.device.over(submission).await?;
            self.device.inner.portion.measured(flops, over.saturating_duration_since(begun).as_secs_f64());
            self.last = Some(over);
            self.done += flops;
            self.observer.progress(self.done, self.total);
        }
        Ok(())
    }
}

/// The dispatches of one step, ready to encode.
#[derive(Debug)]
struct Recorded {
    flops: u64,
    dispatches: Vec<RecordedDispatch>,
}

#[derive(Debug)]
struct RecordedDispatch {
    kernel: Arc<Kernel>,
    group: wgpu::BindGroup,
    grid: [u32; 3],
    /// Of its parameters in the buffer of all.
    offset: u64,
}

/// A tensor on a device that belongs to no session: the output of one, the input of others.
#[derive(Debug)]
pub struct DeviceTensor {
    pub(crate) device: Device,
    pub(crate) ty: TensorType,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) _held: Held,
}

impl DeviceTensor {
    /// Shape and element type.
    pub fn tensor_type(&self) -> &TensorType {
        &self.ty
    }

    /// The tensor in main memory.
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self) -> Result<HostTensor> {
        HostTensor::from_bytes(&self.ty, &self.device.read_buffer(&self.buffer, self.ty.bytes()).await?)
    }
}

/// Weights are handed to the queue in portions of this size, so that its staging memory stays small.
const UPLOAD_PORTION: usize = 32 << 20;

impl Session {
    /// Allocates, uploads what is not on the device yet, and compiles. The observer sees bytes of weights.
    ///
    /// # Errors
    /// An unreadable weight, a device out of memory, or cancellation. The device stays usable, unless it is lost.
    pub async fn new(device: &Device, planned: &PlannedGraph, observer: &dyn Observer) -> Result<Session> {
        Session::create(device, planned, None, observer).await
    }

    /// [`Session::new`], whose values between operators lie in arenas that other sessions use while this one does not run.
    ///
    /// # Errors
    /// As there.
    pub async fn sharing(
        device: &Device,
        planned: &PlannedGraph,
        scratch: &Scratch,
        observer: &dyn Observer,
    ) -> Result<Session> {
        let created = Session::create(device, planned, Some(scratch), observer).await;
        if created.is_err() {
            scratch.release();
        }
        created
    }

    async fn create(
        device: &Device,
        planned: &PlannedGraph,
        scratch: Option<&Scratch>,
        observer: &dyn Observer,
    ) -> Result<Session> {
        let plan = planned.plan.clone();
        let weights = upload_weights(device, planned, observer).await?;
        let zero = vec![true; plan.inputs.len()];
        let dispatches = plan.prologue.iter().chain(&plan.steps).flat_map(|s| &s.dispatches);
        device.compile_together(dispatches.map(kernel_key)).await?;
        let recorded = device.scoped(|| {
            let (share, shared) = scratch.map(|scratch| scratch.take(device, &plan)).unzip();
            let mut shared = shared.unwrap_or_default();
            let mut places = Vec::with_capacity(plan.buffers.len());
            for (i, b) in plan.buffers.iter().enumerate() {
                places.push(match (weights.resident.get(&i), shared.remove(&i)) {
                    (Some(weight), _) => Place::whole(weight.buffer.clone()),
                    (None, Some(shared)) => shared,
                    (None, None) => Place::whole(device.create_buffer(&format!("{}.{i}", plan.network), b.bytes)),
                });
            }
            let params = Params::new(device, &plan);
            let mut offset = 0;
            let mut record = |steps: &[Step]| -> Result<Vec<Recorded>> {
                steps.iter().map(|step| record_step(device, step, &places, &zero, &params, &mut offset)).collect()
            };
            let prologue = record(&plan.prologue)?;
            let steps = record(&plan.steps)?;
            device.inner.queue.submit([]);
            Ok((places, share, params, prologue, steps))
        });
        let (places, share, params, prologue, steps) = recorded.await?;
        device.finished().await?;
        let bytes = |slots: bool| -> u64 {
            let own = plan.buffers.iter().enumerate().filter(|(i, _)| !weights.resident.contains_key(i));
            let own = own.filter(|(_, b)| scratch.is_none() || b.kind != BufferKind::Scratch);
            own.filter(|(_, b)| (b.kind == BufferKind::Slot) == slots).map(|(i, _)| places[i].bytes).sum()
        };
        let held = [Held::weights(device, bytes(true)), Held::working(device, bytes(false))];
        Ok(Session {
            device: device.clone(),
            plan,
            places,
            _weights: weights.resident.into_values().collect(),
            _held: held,
            share,
            prologue,
            steps,
            streamed: weights.streamed,
            dirty: true,
            reached: 0,
            made: 0,
            zero,
            params,
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn place(&self, port: &Port) -> &Place {
        &self.places[port.buffer]
    }

    /// The run that an output is of, where that is all that keeps it.
    pub(crate) fn turn(&self, port: &Port) -> Option<Turn> {
        let transient = self.plan.buffers[port.buffer].kind == BufferKind::Scratch;
        let made = || self.plan.steps[..self.made].iter().any(|step| step.output_buffer == port.buffer);
        self.share.as_ref().filter(|_| transient).map(|share| if made() { share.turn() } else { share.never() })
    }

    pub(crate) fn input_port(&self, name: &str) -> Result<&Port> {
        Ok(&self.plan.inputs[find(&self.plan.inputs, name, "input", &self.plan.network)?])
    }

    fn output_port(&self, name: &str) -> Result<&Port> {
        Ok(&self.plan.outputs[find(&self.plan.outputs, name, "output", &self.plan.network)?])
    }

    /// An output that is there to be read.
    pub(crate) fn readable(&self, name: &str) -> Result<&Port> {
        let port = self.output_port(name)?;
        self.turn(port).map_or(Ok(()), |turn| turn.check(name))?;
        Ok(port)
    }

    /// An input is changed by something that does not look at it.
    pub(crate) fn touch(&mut self, input: &str) -> Result<()> {
        let index = find(&self.plan.inputs, input, "input", &self.plan.network)?;
        self.changed(index);
        self.set_zero(index, false)
    }

    /// Steps that read an input run again from here on.
    fn changed(&mut self, input: usize) {
        let Port { hoisted, buffer, .. } = self.plan.inputs[input];
        self.dirty |= hoisted;
        let mut made = self.plan.steps[..self.reached].iter().flat_map(|step| &step.dispatches);
        if hoisted || made.any(|d| d.buffers.contains(&buffer)) {
            self.reached = 0;
        }
    }

    /// The plan it runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Writes an input; converted to the plan's storage type.
    ///
    /// # Errors
    /// When there is no such input or its shape differs.
    pub fn write(&mut self, name: &str, tensor: &HostTensor) -> Result<()> {
        let index = find(&self.plan.inputs, name, "input", &self.plan.network)?;
        let port = &self.plan.inputs[index];
        if tensor.shape() != &port.ty.shape {
            let detail = format!("{} expects `{name}` {}, got {}", self.plan.network, port.ty, tensor.shape());
            return Err(Error::invalid("input", detail));
        }
        let stored = tensor.cast(port.ty.dtype);
        self.device.write_buffer(&self.places[port.buffer].buffer, stored.bytes());
        self.changed(index);
        // Zeros of floats may have a sign.
        let zero = self.is_bypass(index) && stored.to_f32_vec().iter().all(|v| *v == 0.0);
        self.set_zero(index, zero)
    }

    /// Whether zeros in an input leave steps out.
    fn is_bypass(&self, input: usize) -> bool {
        self.plan.steps.iter().any(|s| s.unless_zero == Some(input))
    }

    /// Binds what dispatches read from now on, where that depends on whether the input is zero.
    fn set_zero(&mut self, input: usize, zero: bool) -> Result<()> {
        if self.zero[input] == zero {
            return Ok(());
        }
        (self.zero[input], self.reached) = (zero, 0);
        let Session { device, plan, places, steps, zero, params, .. } = self;
        for (planned, recorded) in plan.steps.iter().zip(steps) {
            for (d, r) in planned.dispatches.iter().zip(&mut recorded.dispatches) {
                if d.alternatives.iter().any(|a| a.input == input) {
                    r.group = bind(device, d, &r.kernel, places, zero, params, r.offset);
                }
            }
        }
        device.check()
    }

    /// Copies an output of another session on the same device into an input, without a trip through main memory.
    ///
    /// # Errors
    /// When there is no such input or output, their types differ, or the sessions are on different devices.
    pub async fn write_from(&mut self, name: &str, other: &Session, output: &str) -> Result<()> {
        self.write_tensor(name, &other.tensor(output).await?).await
    }

    /// An output as a tensor of its own on the device, which later runs do not change.
    ///
    /// # Errors
    /// As [`Session::tensors`].
    pub async fn tensor(&self, output: &str) -> Result<DeviceTensor> {
        let none = || Error::invalid("output", format!("{} has no `{output}`", self.plan.network));
        self.tensors(&[output]).await?.pop().ok_or_else(none)
    }

    /// Outputs as tensors of their own on the device, copied in one submission.
    ///
    /// # Errors
    /// When there is no such output, or the device is lost or out of memory.
    pub async fn tensors(&self, outputs: &[&str]) -> Result<Vec<DeviceTensor>> {
        let ports = outputs.iter().map(|output| self.readable(output)).collect::<Result<Vec<_>>>()?;
        let buffers = self.device.scoped(|| {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            let copied = ports.iter().map(|port| {
                let buffer = self.device.create_buffer(&port.name, port.ty.bytes());
                self.place(port).copy_to(&mut encoder, &Place::whole(buffer.clone()));
                buffer
            });
            let buffers = copied.collect::<Vec<_>>();
            self.device.inner.queue.submit([encoder.finish()]);
            Ok(buffers)
        });
        let own = |(buffer, port): (wgpu::Buffer, &&Port)| {
            let held = Held::working(&self.device, buffer.size());
            DeviceTensor { device: self.device.clone(), ty: port.ty.clone(), buffer, _held: held }
        };
        Ok(buffers.await?.into_iter().zip(&ports).map(own).collect())
    }

    /// Puts outputs into tensors that are there already, in one submission: a state that is updated step by step stays where it is, and
    /// nothing is allocated. No kernel writes into what it reads, since WebGPU lets no buffer be both in one dispatch.
    ///
    /// # Errors
    /// When there is no such output, its type differs, a tensor is on another device, or the device is lost; nothing is changed then.
    pub async fn read_into<'t>(
        &self,
        outputs: impl IntoIterator<Item = (&'t str, &'t mut DeviceTensor)>,
    ) -> Result<()> {
        let mut copies = Vec::new();
        for (name, tensor) in outputs {
            let port = self.readable(name)?;
            if tensor.ty != port.ty {
                let detail = format!("{} gives `{name}` {}, not {}", self.plan.network, port.ty, tensor.ty);
                return Err(Error::invalid("output", detail));
            }
            if !Arc::ptr_eq(&self.device.inner, &tensor.device.inner) {
                let detail = format!("`{name}` of {} goes to another device", self.plan.network);
                return Err(Error::invalid("output", detail));
            }
            copies.push((self.place(port), tensor));
        }
        let submitted = self.device.scoped(|| {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            for (place, tensor) in &copies {
                place.copy_to(&mut encoder, &Place::whole(tensor.buffer.clone()));
            }
            self.device.inner.queue.submit([encoder.finish()]);
            Ok(())
        });
        submitted.await
    }

    /// Sets an input to a tensor of the same device.
    ///
    /// # Errors
    /// As [`Session::write_tensors`].
    pub async fn write_tensor(&mut self, name: &str, tensor: &DeviceTensor) -> Result<()> {
        self.write_tensors([(name, tensor)]).await
    }

    /// Sets inputs to tensors of the same device, in one submission and without a trip through main memory. Inputs that leave steps out
    /// where they are zero count as not zero then: nobody looks.
    ///
    /// # Errors
    /// When there is no such input, its type differs, or a tensor is on another device; nothing is set then.
    pub async fn write_tensors<'t>(
        &mut self,
        tensors: impl IntoIterator<Item = (&'t str, &'t DeviceTensor)>,
    ) -> Result<()> {
        let mut copies = Vec::new();
        for (name, tensor) in tensors {
            let index = find(&self.plan.inputs, name, "input", &self.plan.network)?;
            let port = &self.plan.inputs[index];
            if tensor.ty != port.ty {
                let detail = format!("{} expects `{name}` {}, got {}", self.plan.network, port.ty, tensor.ty);
                return Err(Error::invalid("input", detail));
            }
            if !Arc::ptr_eq(&self.device.inner, &tensor.device.inner) {
                return Err(Error::invalid("input", format!("`{name}` of {} is on another device", self.plan.network)));
            }
            copies.push((index, tensor));
        }
        let submitted = self.device.scoped(|| {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            for (index, tensor) in &copies {
                Place::whole(tensor.buffer.clone()).copy_to(&mut encoder, self.place(&self.plan.inputs[*index]));
            }
            self.device.inner.queue.submit([encoder.finish()]);
            Ok(())
        });
        submitted.await?;
        for (index, _) in copies {
            self.changed(index);
            self.set_zero(index, false)?;
        }
        Ok(())
    }

    /// Whether a step's result is needed with the inputs as they are.
    fn is_needed(&self, step: &Step) -> bool {
        step.unless_zero.is_none_or(|input| !self.zero[input])
    }

    /// Runs the prologue where an input of it changed, then every step. The observer sees floating-point operations.
    ///
    /// # Errors
    /// A lost device or cancellation (between submissions; the session stays usable).
    pub async fn run(&mut self, observer: &dyn Observer) -> Result<()> {
        self.run_steps(0..self.steps.len(), observer).await
    }

    /// [`Session::run`] up to the last step that one of these outputs needs. Outputs of later steps hold nothing of use then.
    ///
    /// # Errors
    /// As there, and when there is no such output.
    pub async fn run_to(&mut self, outputs: &[&str], observer: &dyn Observer) -> Result<()> {
        self.run_steps(0..self.needed_for(outputs)?, observer).await
    }

    /// [`Session::run_to`], without the steps that the one before made, where their values are still there: since then no input was set that
    /// they read, and no other session ran that shares their memory. Else they are made again.
    ///
    /// # Errors
    /// As there.
    pub async fn continue_to(&mut self, outputs: &[&str], observer: &dyn Observer) -> Result<()> {
        let count = self.needed_for(outputs)?;
        let there = !self.dirty && self.share.as_ref().is_none_or(Share::is_current);
        let first = if there { self.reached } else { 0 };
        self.run_steps(first..count.max(first), observer).await
    }

    /// How many of the steps these outputs need.
    fn needed_for(&self, outputs: &[&str]) -> Result<usize> {
        let mut count = 0;
        for output in outputs {
            let buffer = self.output_port(output)?.buffer;
            let last = self.plan.steps.iter().rposition(|step| step.output_buffer == buffer);
            count = count.max(last.map_or(0, |last| last + 1));
        }
        Ok(count)
    }

    async fn run_steps(&mut self, range: Range<usize>, observer: &dyn Observer) -> Result<()> {
        let _running = self.share.as_mut().map(Share::run).transpose()?;
        (self.reached, self.made) = (0, 0);
        let profiles = self.device.inner.profiler.is_on();
        let mut result = self.run_units(if profiles { 0..0 } else { range.clone() }, observer).await;
        if profiles && result.is_ok() {
            let steps = self.profile_steps(range.clone(), 1).await;
            result = steps.map(|steps| self.device.inner.profiler.add(&self.plan.network, steps));
        }
        if result.is_err() && self.device.check().is_ok() {
            // What is under way still uses what the caller may want to free.
            let _ = self.device.finished().await;
        }
        result?;
        self.dirty = false;
        // Whoever goes on behind the last step begins anew.
        self.reached = if range.end < self.steps.len() { range.end } else { 0 };
        self.made = range.end;
        Ok(())
    }

    /// Submits these steps by portions, some ahead of the one that is waited for, so that the device has work while the next is encoded.
    async fn run_units(&self, range: Range<usize>, observer: &dyn Observer) -> Result<()> {
        let mut units = Vec::new();
        if self.dirty {
            let all = 0..self.prologue.len();
            units.extend(self.units(&self.plan.prologue, &self.prologue, &self.plan.prologue_stages, all));
        }
        units.extend(self.units(&self.plan.steps, &self.steps, &self.plan.stages, range));
        // A unit's weights are uploaded while the one before computes, so each needs some steps.
        units.retain(|u| !u.recorded.is_empty());
        let portion = &self.device.inner.portion;
        let mut ahead = Ahead {
            device: &self.device,
            observer,
            under_way: VecDeque::new(),
            last: None,
            done: 0,
            total: units.iter().flat_map(|u| &u.recorded).map(|r| r.flops).sum(),
        };
        // Little at first, which is soon encoded.
        let mut first = portion.in_flight > 1;
        for unit in &units {
            // Staging holds weights of two stages at most: of the one that computes and of the next one.
            if !unit.weights.is_empty() {
                ahead.wait_until(1).await?;
                let upload = self.device.scoped(|| {
                    self.upload(unit.weights);
                    Ok(())
                });
                upload.await?;
            }
            let mut queued = unit.recorded.iter().peekable();
            while queued.peek().is_some() {
                ahead.wait_until(portion.in_flight - 1).await?;
                check(observer)?;
                let most = if std::mem::take(&mut first) { portion.flops() / 8 } else { portion.flops() };
                let mut submitted = 0u64;
                let submission = self.device.scoped(|| {
                    let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
                    {
                        let mut pass = encoder.begin_compute_pass(&Default::default());
                        while let Some(recorded) = queued.next_if(|_| submitted < most.max(1)) {
                            encode(&mut pass, recorded);
                            submitted += recorded.flops;
                        }
                    }
                    Ok(self.device.submit(encoder.finish()))
                });
                ahead.under_way.push_back((submission.await?, submitted));
            }
        }
        ahead.wait_until(0).await
    }

    /// Recorded steps of a range that are needed, by stage; one without weights where none stream.
    fn units<'a>(
        &'a self,
        steps: &'a [Step],
        recorded: &'a [Recorded],
        stages: &'a [Stage],
        range: Range<usize>,
    ) -> Vec<Unit<'a>> {
        let needed = |part: Range<usize>| {
            let both = steps[part.clone()].iter().zip(&recorded[part]);
            both.filter(|(step, _)| self.is_needed(step)).map(|(_, recorded)| recorded).collect()
        };
        if stages.is_empty() {
            return vec![Unit { weights: &[], recorded: needed(range) }];
        }
        let end = |i: usize| stages.get(i + 1).map_or(recorded.len(), |next| next.first);
        let of_range = |i: usize, stage: &Stage| stage.first.max(range.start)..end(i).min(range.end);
        let units = stages.iter().enumerate().map(|(i, stage)| (stage, of_range(i, stage)));
        let units = units.filter(|(_, part)| !part.is_empty());
        units.map(|(stage, part)| Unit { weights: &stage.weights, recorded: needed(part) }).collect()
    }

    /// Hands streamed weights to the queue, which copies them before what is submitted next.
    fn upload(&self, weights: &[usize]) {
        for w in weights {
            if let Some(tensor) = self.streamed.get(w) {
                self.device.write_buffer(&self.place(&self.plan.weights[*w]).buffer, tensor.bytes());
                self.device.inner.counters.uploaded.fetch_add(tensor.bytes().len() as u64, Relaxed);
            }
        }
    }

    /// Uploads the stage that begins with this step, if one does.
    fn upload_at(&self, stages: &[Stage], step: usize) {
        if let Some(stage) = stages.iter().find(|s| s.first == step) {
            self.upload(&stage.weights);
        }
    }

    /// Reads an output as the plan stores it.
    ///
    /// # Errors
    /// When there is no such output or the device is lost.
    pub async fn read(&self, name: &str) -> Result<HostTensor> {
        let port = self.readable(name)?;
        let Place { buffer, offset, .. } = self.place(port);
        let bytes = self.device.read_buffer_at(buffer, *offset, port.ty.bytes()).await?;
        HostTensor::from_bytes(&port.ty, &bytes)
    }

    /// Runs operator by operator and finds the first whose result holds NaN or infinity: for reporting, slow.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the operator; other errors of the device.
    pub async fn locate_non_finite(&mut self) -> Result<()> {
        let _running = self.share.as_mut().map(Share::run).transpose()?;
        (self.reached, self.made) = (0, 0);
        let plan = &self.plan;
        let prologue = plan.prologue.iter().zip(&self.prologue).enumerate().map(|s| (&plan.prologue_stages, s));
        let steps = plan.steps.iter().zip(&self.steps).enumerate().map(|s| (&plan.stages, s));
        for (stages, (i, (step, recorded))) in prologue.chain(steps) {
            self.upload_at(stages, i);
            if !self.is_needed(step) {
                continue;
            }
            self.submit(recorded).await?;
            let Place { buffer, offset, .. } = &self.places[step.output_buffer];
            let bytes = self.device.read_buffer_at(buffer, *offset, step.output.bytes()).await?;
            let values = HostTensor::from_bytes(&step.output, &bytes)?.to_f32_vec();
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            if bad > 0 {
                let advice = match step.output.dtype {
                    DType::F16 => "; half precision overflowed: try `dtype` f32",
                    _ => "; check the weights and inputs",
                };
                return Err(Error::NotFinite {
                    network: self.plan.network.clone(),
                    operator: format!("{} {}", step.label, step.operator),
                    detail: format!("{bad} of {} values{advice}", values.len()),
                });
            }
        }
        Ok(())
    }

    /// Bytes allocated on the device for everything but weights.
    pub fn working_bytes(&self) -> usize {
        self.plan.summary().working_bytes
    }

    async fn submit(&self, recorded: &Recorded) -> Result<()> {
        let submission = self.device.scoped(|| {
            let mut encoder = self.device.inner.device.create_command_encoder(&Default::default());
            encode(&mut encoder.begin_compute_pass(&Default::default()), recorded);
            self.device.inner.queue.submit([encoder.finish()]);
            Ok(())
        });
        submission.await?;
        self.device.finished().await
    }
}

fn encode(pass: &mut wgpu::ComputePass<'_>, recorded: &Recorded) {
    for RecordedDispatch { kernel, group, grid: [x, y, z], .. } in &recorded.dispatches {
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(*x, *y, *z);
    }
}

/// Position of the port of that name.
fn find(ports: &[Port], name: &str, what: &str, network: &str) -> Result<usize> {
    ports.iter().position(|p| p.name == name).ok_or_else(|| {
        let names: Vec<_> = ports.iter().map(|p| p.name.as_str()).collect();
        Error::invalid(what, format!("{network} has no {what} `{name}`; it has {}", names.join(", ")))
    })
}

/// The uniforms of all dispatches of a plan in one buffer.
#[derive(Debug)]
struct Params {
    buffer: wgpu::Buffer,
    alignment: u64,
}

impl Params {
    fn new(device: &Device, plan: &Plan) -> Params {
        let alignment = u64::from(device.inner.uniform_alignment.max(16));
        let mut bytes = Vec::new();
        for d in plan.prologue.iter().chain(&plan.steps).flat_map(|s| &s.dispatches) {
            bytes.extend_from_slice(&d.params);
            bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        }
        let buffer = device.inner.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: (bytes.len() as u64).max(alignment),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        device.inner.queue.write_buffer(&buffer, 0, &bytes);
        Params { buffer, alignment }
    }
}

fn record_step(
    device: &Device,
    step: &Step,
    places: &[Place],
    zero: &[bool],
    params: &Params,
    offset: &mut u64,
) -> Result<Recorded> {
    let mut dispatches = Vec::with_capacity(step.dispatches.len());
    for d in &step.dispatches {
        let kernel = device.kernel(kernel_key(d))?;
        let group = bind(device, d, &kernel, places, zero, params, *offset);
        dispatches.push(RecordedDispatch { kernel, group, grid: d.grid, offset: *offset });
        *offset += (d.params.len() as u64).next_multiple_of(params.alignment);
    }
    Ok(Recorded { flops: step.cost.flops, dispatches })
}

fn kernel_key(d: &PlannedDispatch) -> KernelKey {
    KernelKey::new(d.shader, &d.features, &d.constants)
}

/// A plan's weights.
struct LoadedWeights {
    /// By buffer.
    resident: HashMap<usize, Arc<DeviceWeight>>,
    /// By their place in the plan.
    streamed: HashMap<usize, Arc<HostTensor>>,
}

/// Uploads the weights that are not on the device yet, and reads those that stream into main memory.
async fn upload_weights(device: &Device, planned: &PlannedGraph, observer: &dyn Observer) -> Result<LoadedWeights> {
    let plan = &planned.plan;
    let streams: HashSet<usize> = plan.streamed().collect();
    let mut loaded = LoadedWeights { resident: HashMap::new(), streamed: HashMap::new() };
    let mut missing = Vec::new();
    for (index, (port, weight)) in plan.weights.iter().zip(&planned.weights).enumerate() {
        let shared = &device.inner.weights;
        let known = match streams.contains(&index) {
            true => shared.streamed.get(weight.key(), &port.ty).map(|t| drop(loaded.streamed.insert(index, t))),
            false => shared.resident.get(weight.key(), &port.ty).map(|w| drop(loaded.resident.insert(port.buffer, w))),
        };
        if known.is_none() {
            missing.push(index);
        }
    }
    let total: usize = missing.iter().map(|&i| plan.weights[i].ty.bytes()).sum();
    let mut done = 0usize;
    let mut loader = Loader::new(missing.iter().map(|&i| planned.weights[i].clone()).collect());
    let mut left = missing.into_iter().peekable();
    while left.peek().is_some() {
        // A portion in one scope: waiting for each weight's errors alone would be a trip to a browser's GPU process and back for each.
        let uploaded = device.scoped(|| {
            let (mut uploaded, mut pending) = (Vec::new(), 0usize);
            while let Some(index) = left.next_if(|_| pending < UPLOAD_PORTION) {
                check(observer)?;
                let port = &plan.weights[index];
                let tensor = loader.next()?;
                if tensor.shape() != &port.ty.shape {
                    let detail = format!("expected {}, the file gives {}", port.ty, tensor.tensor_type());
                    return Err(Error::Weight { key: port.name.clone(), source_name: plan.network.clone(), detail });
                }
                let tensor = tensor.into_dtype(port.ty.dtype);
                if streams.contains(&index) {
                    let tensor = Arc::new(tensor);
                    device.inner.weights.streamed.insert(planned.weights[index].key(), &port.ty, tensor.clone());
                    loaded.streamed.insert(index, tensor);
                } else {
                    let on_device = DeviceWeight::new(device, &port.name, port.ty.bytes());
                    device.write_buffer(&on_device.buffer, tensor.bytes());
                    device.inner.counters.uploaded.fetch_add(tensor.bytes().len() as u64, Relaxed);
                    uploaded.push((index, Arc::new(on_device)));
                    pending += port.ty.bytes();
                }
                done += port.ty.bytes();
                observer.progress(done as u64, total as u64);
            }
            device.inner.queue.submit([]);
            Ok(uploaded)
        });
        // Sessions share them from here on: what failed is none of them.
        for (index, on_device) in uploaded.await? {
            let port = &plan.weights[index];
            device.inner.weights.resident.insert(planned.weights[index].key(), &port.ty, on_device.clone());
            loaded.resident.insert(port.buffer, on_device);
        }
        if left.peek().is_some() {
            device.finished().await?;
        }
    }
    Ok(loaded)
}

/// A dispatch's parameters at `offset` and the buffers that it reads and writes while these inputs are zero.
fn bind(
    device: &Device,
    d: &PlannedDispatch,
    kernel: &Kernel,
    places: &[Place],
    zero: &[bool],
    params: &Params,
    offset: u64,
) -> wgpu::BindGroup {
    let size = std::num::NonZeroU64::new(u64::from(kernel.params_size));
    let uniform = wgpu::BufferBinding { buffer: &params.buffer, offset, size };
    let bound = d.bound(|input| zero[input]);
    let resources =
        std::iter::once(wgpu::BindingResource::Buffer(uniform)).chain(bound.iter().map(|&b| places[b].binding()));
    let entries: Vec<_> = resources
        .enumerate()
        .map(|(binding, resource)| wgpu::BindGroupEntry { binding: binding as u32, resource })
        .collect();
    device.inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(d.shader),
        layout: &kernel.layout,
        entries: &entries,
    })
}
