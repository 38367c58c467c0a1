//! Memory for values between operators that several sessions use one after another.

use crate::Device;
use crate::memory::Held;
use crate::place::Place;
use pulid_graph::{Arenas, Plan, largest_arena};
use pulid_tensor::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Large buffers for the values between operators of sessions of one device that never run at the same time. Each finds in them what
/// another one left, as its own operators do in buffers that they use one after another.
#[derive(Clone, Debug, Default)]
pub struct Scratch(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    arenas: Mutex<Vec<Arc<Arena>>>,
    running: AtomicBool,
    /// Runs so far.
    turns: AtomicU64,
}

/// A buffer of [`Scratch`].
#[derive(Debug)]
pub(crate) struct Arena {
    buffer: wgpu::Buffer,
    _held: Held,
}

/// A session's part of [`Scratch`].
#[derive(Debug)]
pub(crate) struct Share {
    scratch: Scratch,
    _arenas: Vec<Arc<Arena>>,
    /// The session's last run.
    turn: Option<u64>,
}

/// A run, whose values are there until another session runs.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    scratch: Scratch,
    turn: Option<u64>,
}

impl Scratch {
    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<Arena>>> {
        self.0.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes arenas of these sizes, before any session takes a part.
    ///
    /// # Errors
    /// A device out of memory, or a lost one.
    pub async fn reserve(&self, device: &Device, sizes: &Arenas) -> Result<()> {
        let reserved = device.scoped(|| {
            make(device, &mut self.arenas(), sizes);
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
    pub fn present(&self, plan: &Plan, device: &Device) -> u64 {
        let before = sizes(&self.arenas());
        let mut after = before.clone();
        after.take(&plan.scratch(), largest(device));
        plan.scratch_bytes().saturating_sub(after.bytes() - before.bytes()) as u64
    }

    /// A session's part, and the places of its plan's scratch buffers. For work within [`Device::scoped`].
    pub(crate) fn take(&self, device: &Device, plan: &Plan) -> (Share, HashMap<usize, Place>) {
        let mut all = self.arenas();
        let mut wanted = sizes(&all);
        let taken = wanted.take(&plan.scratch(), largest(device));
        make(device, &mut all, &wanted);
        let place = |(buffer, at): (usize, pulid_graph::Place)| {
            let (offset, bytes) = (at.offset as u64, plan.buffers[buffer].bytes as u64);
            (buffer, Place { buffer: all[at.arena].buffer.clone(), offset, bytes })
        };
        let mut used: Vec<usize> = taken.iter().map(|(_, at)| at.arena).collect();
        used.sort_unstable();
        used.dedup();
        let used = used.into_iter().map(|arena| all[arena].clone()).collect();
        let share = Share { scratch: self.clone(), _arenas: used, turn: None };
        (share, taken.into_iter().map(place).collect())
    }

    /// Forgets arenas that no session uses.
    pub(crate) fn release(&self) {
        self.arenas().retain(|arena| Arc::strong_count(arena) > 1);
    }
}

fn sizes(arenas: &[Arc<Arena>]) -> Arenas {
    arenas.iter().map(|arena| arena.buffer.size() as usize).collect()
}

fn largest(device: &Device) -> usize {
    largest_arena(device.capabilities().max_buffer_bytes)
}

/// Makes the arenas that are not there yet.
fn make(device: &Device, arenas: &mut Vec<Arc<Arena>>, sizes: &Arenas) {
    for &bytes in sizes.each().iter().skip(arenas.len()) {
        let buffer = device.create_buffer("scratch", bytes);
        let held = Held::working(device, buffer.size());
        arenas.push(Arc::new(Arena { buffer, _held: held }));
    }
}

impl Share {
    /// Says that the session runs until what this gives is dropped.
    ///
    /// # Errors
    /// When another one runs.
    pub fn run(&mut self) -> Result<Running> {
        let inner = &self.scratch.0;
        match inner.running.swap(true, Ordering::Acquire) {
            true => Err(Error::Device("two networks that share their values' memory run at the same time".into())),
            false => {
                self.turn = Some(inner.turns.fetch_add(1, Ordering::Relaxed) + 1);
                Ok(Running(self.scratch.clone()))
            }
        }
    }

    /// Whether the session's run was the last one.
    pub fn is_current(&self) -> bool {
        self.turn().is_current()
    }

    /// The session's last run.
    pub fn turn(&self) -> Turn {
        Turn { scratch: self.scratch.clone(), turn: self.turn }
    }

    /// What no run made.
    pub fn never(&self) -> Turn {
        Turn { turn: None, ..self.turn() }
    }
}

impl Turn {
    fn is_current(&self) -> bool {
        self.turn == Some(self.scratch.0.turns.load(Ordering::Relaxed))
    }

    /// Refuses values that are no longer there.
    ///
    /// # Errors
    /// When another session has run since, or this one again, or it never ran as far.
    pub fn check(&self, name: &str) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        let detail = "is not there: it is kept from the run that makes it until the next one of any network that shares its memory";
        Err(Error::invalid(name, detail))
    }
}

/// A session that runs.
#[derive(Debug)]
pub(crate) struct Running(Scratch);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.running.store(false, Ordering::Release);
    }
}
