//! Numbers that go from one network to another without a tensor in between, on a device and on the reference alike.

use crate::runtime::{Loaded, Runtime, Tensor};
use pulid_engine::{DeviceTensor, Observer, Region};
use pulid_tensor::{Error, HostTensor, Result};
use std::ops::Range;

/// Consecutive numbers in f32 of a network's input or output, or of a tensor, for use before these change.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// On a device, where they lie.
    Device(Region),
    /// In main memory.
    Host(HostTensor),
}

impl Numbers {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Numbers::Device(region) => region.count(),
            Numbers::Host(tensor) => tensor.shape().count(),
        }
    }

    /// Some of them.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn part(&self, range: Range<usize>) -> Result<Numbers> {
        Ok(match self {
            Numbers::Device(region) => Numbers::Device(region.part(range)?),
            Numbers::Host(tensor) => {
                let detail = || Error::invalid("numbers", format!("{range:?} are not among {}", tensor.shape()));
                let part = tensor.as_f32()?.get(range.clone()).ok_or_else(detail)?;
                Numbers::Host(HostTensor::from_f32([part.len()], part.to_vec())?)
            }
        })
    }

    /// In main memory, [N].
    ///
    /// # Errors
    /// A lost device.
    pub async fn read(&self) -> Result<HostTensor> {
        match self {
            Numbers::Device(region) => region.read().await,
            Numbers::Host(tensor) => tensor.clone().reshape([tensor.shape().count()]),
        }
    }
}

/// Puts numbers over those of a tensor in main memory from place `first` on.
fn replace(tensor: &mut HostTensor, first: usize, numbers: &HostTensor) -> Result<()> {
    let mut values = tensor.to_f32_vec();
    let part = numbers.as_f32()?;
    let fits = || Error::invalid("numbers", format!("{} from {first} on do not fit {}", part.len(), tensor.shape()));
    values.get_mut(first..first + part.len()).ok_or_else(fits)?.copy_from_slice(part);
    *tensor = HostTensor::from_f32(tensor.shape().clone(), values)?;
    Ok(())
}

/// Copies between places on a device, which are made together: each submission takes its time. What lies in main memory is copied at once.
#[derive(Debug, Default)]
#[must_use = "copies are made by `finish`"]
pub struct Copies(Vec<(Region, Region)>);

impl Copies {
    /// Puts numbers over those of a tensor from place `first` on.
    ///
    /// # Errors
    /// When they do not fit or are elsewhere.
    pub async fn into_tensor(&mut self, tensor: &mut Tensor, first: usize, numbers: &Numbers) -> Result<()> {
        match tensor {
            Tensor::Device(tensor) => self.add(numbers, &tensor.region()?, first),
            Tensor::Host(tensor) => replace(tensor, first, &numbers.read().await?),
        }
    }

    /// Puts numbers over those of a network's input from place `first` on.
    ///
    /// # Errors
    /// When there is no such input, or they do not fit or are elsewhere.
    pub async fn into_input(
        &mut self,
        network: &mut Loaded,
        input: &str,
        first: usize,
        numbers: &Numbers,
    ) -> Result<()> {
        match network {
            Loaded::Session(session) => self.add(numbers, &session.input_mut(input)?, first),
            Loaded::Reference { graph, inputs, .. } => {
                let node = graph.input_named(input).ok_or_else(|| none(input))?;
                let zeros = || HostTensor::zeros(graph.shape(node).clone());
                replace(inputs.entry(input.to_owned()).or_insert_with(zeros), first, &numbers.read().await?)
            }
        }
    }

    fn add(&mut self, from: &Numbers, to: &Region, first: usize) -> Result<()> {
        match from {
            Numbers::Device(region) => {
                self.0.push((region.clone(), to.part(first..first + region.count())?));
                Ok(())
            }
            Numbers::Host(_) => Err(Error::invalid("numbers", "in main memory do not go to a device this way")),
        }
    }

    /// Makes them, in their order.
    ///
    /// # Errors
    /// As [`Region::copy_all`].
    pub async fn finish(self) -> Result<()> {
        Region::copy_all(&self.0).await
    }
}

impl Tensor {
    /// Its numbers.
    ///
    /// # Errors
    /// When they are not in f32.
    pub fn numbers(&self) -> Result<Numbers> {
        Ok(match self {
            Tensor::Device(tensor) => Numbers::Device(tensor.region()?),
            Tensor::Host(tensor) => Numbers::Host(tensor.clone()),
        })
    }
}

impl Runtime {
    /// A tensor where networks run.
    ///
    /// # Errors
    /// A device out of memory, or a lost one.
    pub async fn tensor(&self, label: &str, tensor: HostTensor) -> Result<Tensor> {
        Ok(match self {
            Runtime::Gpu { device, .. } => Tensor::Device(DeviceTensor::new(device, label, &tensor).await?),
            Runtime::Reference => Tensor::Host(tensor),
        })
    }
}

impl Loaded {
    /// Runs; what comes out stays in the network until it runs again.
    ///
    /// # Errors
    /// A lost device or cancellation; in the reference alone what is not finite.
    pub async fn run_in_place(&mut self, observer: &dyn Observer) -> Result<()> {
        self.run_to(&[], observer).await.map(drop)
    }

    /// What an input holds.
    ///
    /// # Errors
    /// When there is no such input, it was not set, or is not in f32.
    pub fn input(&self, name: &str) -> Result<Numbers> {
        match self {
            Loaded::Session(session) => session.input(name).map(Numbers::Device),
            Loaded::Reference { inputs, .. } => host(inputs.get(name), name),
        }
    }

    /// What came out when it ran last.
    ///
    /// # Errors
    /// When there is no such output, or it is not in f32.
    pub fn output(&self, name: &str) -> Result<Numbers> {
        match self {
            Loaded::Session(session) => session.output(name).map(Numbers::Device),
            Loaded::Reference { outputs, .. } => host(outputs.get(name), name),
        }
    }
}

fn none(name: &str) -> Error {
    Error::invalid("network", format!("holds no `{name}`"))
}

fn host(tensor: Option<&HostTensor>, name: &str) -> Result<Numbers> {
    tensor.cloned().map(Numbers::Host).ok_or_else(|| none(name))
}
