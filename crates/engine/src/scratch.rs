//! Memory for values between operators that several sessions use one after another.

use crate::Device;
use crate::memory::Held;
use pulid_graph::ScratchSizes;
use pulid_tensor::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Buffers for the values between operators of sessions of one device that never run at the same time. Each finds in them what another
/// one left, as its own operators do in buffers that they use one after another.
#[derive(Clone, Debug, Default)]
pub struct Scratch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    buffers: Mutex<Vec<Arc<ScratchBuffer>>>,
    running: AtomicBool,
    /// How many runs there were.
    turns: AtomicU64,
}

/// A buffer of [`Scratch`].
#[derive(Debug)]
pub(crate) struct ScratchBuffer {
    pub buffer: wgpu::Buffer,
    _held: Held,
}

impl Scratch {
    fn buffers(&self) -> MutexGuard<'_, Vec<Arc<ScratchBuffer>>> {
        self.0.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes buffers in which plans of these sizes find room, whichever comes first.
    ///
    /// # Errors
    /// A device out of memory, or a lost one.
    pub async fn reserve(&self, device: &Device, sizes: &ScratchSizes) -> Result<()> {
        let reserved = device.scoped(|| {
            self.take(device, sizes.each());
            device.inner.queue.submit([]);
            Ok(())
        });
        let reserved = reserved.await;
        if reserved.is_err() {
            self.release();
        }
        reserved
    }

    /// Bytes of a plan that are there already.
    pub fn present(&self, sizes: &ScratchSizes) -> u64 {
        let mut free = self.buffers().clone();
        let found = sizes.each().iter().filter(|&&bytes| best(&mut free, bytes).is_some());
        found.map(|bytes| *bytes as u64).sum()
    }

    /// A buffer for each of these sizes, the largest first. For work within [`Device::scoped`].
    pub(crate) fn take(&self, device: &Device, sizes: &[usize]) -> Vec<Arc<ScratchBuffer>> {
        let mut all = self.buffers();
        let mut free = all.clone();
        let mut taken = Vec::with_capacity(sizes.len());
        for &bytes in sizes {
            taken.push(best(&mut free, bytes).unwrap_or_else(|| {
                let buffer = device.create_buffer("scratch", bytes);
                let held = Held::working(device, buffer.size());
                let made = Arc::new(ScratchBuffer { buffer, _held: held });
                all.push(made.clone());
                made
            }));
        }
        taken
    }

    /// Forgets buffers that no session uses.
    pub(crate) fn release(&self) {
        self.buffers().retain(|buffer| Arc::strong_count(buffer) > 1);
    }

    /// Says that a session runs until what this gives is dropped.
    ///
    /// # Errors
    /// When another one runs.
    pub(crate) fn run(&self) -> Result<Running<'_>> {
        match self.0.running.swap(true, Ordering::Acquire) {
            true => Err(Error::Device("two networks that share their values' memory run at the same time".into())),
            false => {
                self.0.turns.fetch_add(1, Ordering::Relaxed);
                Ok(Running(&self.0))
            }
        }
    }

    /// Which run was the last one.
    pub(crate) fn turn(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }
}

/// A session that runs.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Inner);

impl Running<'_> {
    /// Which run it is.
    pub fn turn(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::Release);
    }
}

/// The smallest of the free buffers that holds so many bytes.
fn best(free: &mut Vec<Arc<ScratchBuffer>>, bytes: usize) -> Option<Arc<ScratchBuffer>> {
    let fits = (0..free.len()).filter(|&i| free[i].buffer.size() >= bytes as u64);
    let place = fits.min_by_key(|&i| free[i].buffer.size())?;
    Some(free.swap_remove(place))
}
