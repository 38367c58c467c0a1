//! Numbers on a device that are copied from where they are to where they are wanted, without a tensor in between.

use crate::memory::Held;
use crate::place::Place;
use crate::scratch::Turn;
use crate::session::DeviceTensor;
use crate::{Device, Session};
use pulid_graph::plan::Port;
use pulid_tensor::{DType, Error, HostTensor, Result, TensorType};
use std::ops::Range;
use std::sync::Arc;

/// Consecutive numbers in f32 of a session's input or output, or of a tensor. It shows what lies there at present: a run or a write may
/// change it. What was only kept until another network runs is an error then.
#[derive(Clone, Debug)]
pub struct Region {
    device: Device,
    name: String,
    buffer: wgpu::Buffer,
    /// From the buffer's first number on.
    range: Range<usize>,
    /// The run that it is of, where that is all that keeps it.
    turn: Option<Turn>,
}

impl Region {
    fn new(device: &Device, name: &str, ty: &TensorType, place: &Place, turn: Option<Turn>) -> Result<Region> {
        if ty.dtype != DType::F32 {
            return Err(Error::invalid(name, format!("is {ty}; only numbers in f32 are copied in part")));
        }
        let first = place.offset as usize / size_of::<f32>();
        let range = first..first + ty.shape.count();
        Ok(Region { device: device.clone(), name: name.to_owned(), buffer: place.buffer.clone(), range, turn })
    }

    /// How many numbers there are.
    pub fn count(&self) -> usize {
        self.range.len()
    }

    /// Some of its numbers.
    ///
    /// # Errors
    /// When it has fewer.
    pub fn part(&self, range: Range<usize>) -> Result<Region> {
        if range.start > range.end || range.end > self.count() {
            let detail = format!("{range:?} are not among {} numbers", self.count());
            return Err(Error::invalid("region", detail));
        }
        let first = self.range.start;
        Ok(Region { range: first + range.start..first + range.end, ..self.clone() })
    }

    fn check(&self) -> Result<()> {
        self.turn.as_ref().map_or(Ok(()), |turn| turn.check(&self.name))
    }

    /// The numbers in main memory, [N].
    ///
    /// # Errors
    /// A lost device, numbers that are no longer there.
    pub async fn read(&self) -> Result<HostTensor> {
        self.check()?;
        let [first, bytes] = [self.range.start, self.range.len()].map(|numbers| numbers * size_of::<f32>());
        let ty = TensorType::f32([self.count()]);
        HostTensor::from_bytes(&ty, &self.device.read_buffer_at(&self.buffer, first as u64, bytes).await?)
    }

    /// Copies the numbers to another region of as many.
    ///
    /// # Errors
    /// When it has another count, lies on another device or in the same buffer, the numbers are no longer there, or the device is lost.
    pub async fn copy_to(&self, to: &Region) -> Result<()> {
        Region::copy_all(&[(self.clone(), to.clone())]).await
    }

    /// Copies the numbers of each first region to the second one, in this order and in one submission.
    ///
    /// # Errors
    /// As [`Region::copy_to`], and where not all lie on one device; nothing is copied then.
    pub async fn copy_all(pairs: &[(Region, Region)]) -> Result<()> {
        let Some((Region { device, .. }, _)) = pairs.first() else { return Ok(()) };
        for (from, to) in pairs {
            from.check()?;
            if from.count() != to.count() {
                let detail = format!("{} numbers do not go where {} are", from.count(), to.count());
                return Err(Error::invalid("region", detail));
            }
            let here = [from, to].iter().all(|region| Arc::ptr_eq(&region.device.inner, &device.inner));
            if !here || from.buffer == to.buffer {
                return Err(Error::invalid("region", "is copied between two buffers of one device"));
            }
        }
        let bytes = |numbers: usize| (numbers * size_of::<f32>()) as u64;
        let submitted = device.scoped(|| {
            let mut encoder = device.inner.device.create_command_encoder(&Default::default());
            for (from, to) in pairs {
                let [first, into] = [from, to].map(|region| bytes(region.range.start));
                encoder.copy_buffer_to_buffer(&from.buffer, first, &to.buffer, into, bytes(from.count()));
            }
            device.inner.queue.submit([encoder.finish()]);
            Ok(())
        });
        submitted.await
    }
}

impl Session {
    fn region(&self, port: &Port) -> Result<Region> {
        Region::new(self.device(), &port.name, &port.ty, self.place(port), self.turn(port))
    }

    /// What an input holds.
    ///
    /// # Errors
    /// When there is no such input, or it is not in f32.
    pub fn input(&self, name: &str) -> Result<Region> {
        self.region(self.input_port(name)?)
    }

    /// An input whose numbers are to be changed; it counts as changed and as not zero from here on.
    ///
    /// # Errors
    /// As [`Session::input`], or a lost device.
    pub fn input_mut(&mut self, name: &str) -> Result<Region> {
        self.touch(name)?;
        self.input(name)
    }

    /// What an output holds since the last run.
    ///
    /// # Errors
    /// When there is no such output, or it is not in f32.
    pub fn output(&self, name: &str) -> Result<Region> {
        self.region(self.readable(name)?)
    }
}

impl DeviceTensor {
    /// A tensor of a device as in main memory.
    ///
    /// # Errors
    /// A device out of memory, or a lost one.
    pub async fn new(device: &Device, label: &str, tensor: &HostTensor) -> Result<DeviceTensor> {
        let created = device.scoped(|| {
            let buffer = device.create_buffer(label, tensor.bytes().len());
            device.write_buffer(&buffer, tensor.bytes());
            device.inner.queue.submit([]);
            Ok(buffer)
        });
        let buffer = created.await?;
        // The queue's own copy goes before the next one comes.
        device.finished().await?;
        let held = Held::working(device, buffer.size());
        Ok(DeviceTensor { device: device.clone(), ty: tensor.tensor_type(), buffer, _held: held })
    }

    /// Its numbers.
    ///
    /// # Errors
    /// When they are not in f32.
    pub fn region(&self) -> Result<Region> {
        Region::new(&self.device, "tensor", &self.ty, &Place::whole(self.buffer.clone()), None)
    }
}
