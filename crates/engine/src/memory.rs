//! What a device holds: weights that sessions share, and how many bytes there are.

use crate::Device;
use pulid_graph::WeightKey;
use pulid_tensor::{Result, TensorType};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What a device holds for its sessions, and what it was given so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceMemory {
    /// Bytes of weights, and of the slots that weights stream through. Sessions share weights of equal keys.
    pub weight_bytes: u64,
    /// Bytes of everything else that sessions hold.
    pub working_bytes: u64,
    /// Bytes of weights that were uploaded since the device was opened, streamed ones each time.
    pub uploaded_bytes: u64,
    /// Kernels that were compiled since the device was opened.
    pub compiled_kernels: u64,
}

impl DeviceMemory {
    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.weight_bytes + self.working_bytes
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    weights: AtomicU64,
    working: AtomicU64,
    pub uploaded: AtomicU64,
    pub compiled: AtomicU64,
}

impl Counters {
    pub fn read(&self) -> DeviceMemory {
        DeviceMemory {
            weight_bytes: self.weights.load(Relaxed),
            working_bytes: self.working.load(Relaxed),
            uploaded_bytes: self.uploaded.load(Relaxed),
            compiled_kernels: self.compiled.load(Relaxed),
        }
    }
}

/// Bytes that count as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    counters: Arc<Counters>,
    weights: u64,
    working: u64,
}

impl Held {
    pub fn weights(device: &Device, bytes: u64) -> Held {
        Held::new(device, bytes, 0)
    }

    pub fn working(device: &Device, bytes: u64) -> Held {
        Held::new(device, 0, bytes)
    }

    fn new(device: &Device, weights: u64, working: u64) -> Held {
        let counters = device.inner.counters.clone();
        counters.weights.fetch_add(weights, Relaxed);
        counters.working.fetch_add(working, Relaxed);
        Held { counters, weights, working }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counters.weights.fetch_sub(self.weights, Relaxed);
        self.counters.working.fetch_sub(self.working, Relaxed);
    }
}

/// A weight on a device.
#[derive(Debug)]
pub(crate) struct DeviceWeight {
    pub buffer: wgpu::Buffer,
    _held: Held,
}

impl DeviceWeight {
    pub fn new(device: &Device, label: &str, bytes: usize) -> DeviceWeight {
        let buffer = device.create_buffer(label, bytes);
        let held = Held::weights(device, buffer.size());
        DeviceWeight { buffer, _held: held }
    }
}

/// What is shared by key and type as long as somebody uses it.
#[derive(Debug)]
pub(crate) struct Shared<T>(Mutex<HashMap<KeyAndType, Weak<T>>>);

type KeyAndType = (Arc<WeightKey>, TensorType);

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared(Mutex::default())
    }
}

impl<T> Shared<T> {
    pub fn get(&self, key: &Arc<WeightKey>, ty: &TensorType) -> Option<Arc<T>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(key.clone(), ty.clone())).and_then(Weak::upgrade)
    }

    /// Makes a value the one of its key, in place of one that another thread may have made meanwhile.
    pub fn insert(&self, key: &Arc<WeightKey>, ty: &TensorType, value: Arc<T>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, value| value.strong_count() > 0);
        known.insert((key.clone(), ty.clone()), Arc::downgrade(&value));
    }
}

/// Weights of a device by key.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// On the device.
    pub resident: Shared<DeviceWeight>,
    /// In main memory, for those that stream.
    pub streamed: Shared<pulid_tensor::HostTensor>,
}

impl Device {
    /// What the device holds, and what it was given since it was opened.
    pub fn memory(&self) -> DeviceMemory {
        self.inner.counters.read()
    }

    /// Bytes that a plan would add to what the device holds: everything but weights that are there already.
    pub fn missing_bytes(&self, planned: &pulid_graph::PlannedGraph) -> u64 {
        let plan = &planned.plan;
        let summary = plan.summary();
        let there = |(port, weight): (&pulid_graph::plan::Port, &pulid_graph::Weight)| {
            self.inner.weights.resident.get(weight.key(), &port.ty).map_or(0, |w| w.buffer.size())
        };
        let streamed: std::collections::HashSet<usize> = plan.streamed().collect();
        let pairs = plan.weights.iter().zip(&planned.weights).enumerate();
        let shared: u64 = pairs.filter(|(i, _)| !streamed.contains(i)).map(|(_, pair)| there(pair)).sum();
        ((summary.weight_bytes + summary.working_bytes) as u64).saturating_sub(shared)
    }

    /// Runs `work`, which creates or submits things on this device, and turns what wgpu has to say of it into an error of this work
    /// alone: the device stays usable. Nothing may be awaited within.
    pub(crate) async fn scoped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (result, errors) = {
            let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
            let scopes = filters.map(|filter| self.inner.device.push_error_scope(filter));
            let result = work();
            // The last one pushed is the first to go.
            let [internal, memory, validation] = scopes;
            (result, [validation.pop(), memory.pop(), internal.pop()].map(Box::pin))
        };
        let mut failure = None;
        for error in errors {
            if let Some(error) = error.await {
                failure.get_or_insert(error);
            }
        }
        self.check()?;
        match failure {
            Some(error) => Err(crate::device::explained(&error)),
            None => result,
        }
    }
}
