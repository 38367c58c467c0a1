//! Networks that stay on the device between uses.

use crate::blame::Suspects;
use pulid_engine::{Device, Session};
use pulid_graph::PlannedGraph;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What stays on the device after its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: a network is on the device only while it works.
    Nothing,
    /// What fits the runtime's memory budget, else the device's memory; the least recently used goes first.
    #[default]
    Fitting,
}

/// Loaded networks that nobody uses at present, the least recently used first.
#[derive(Debug, Default)]
pub struct Pool {
    keep: Keep,
    idle: Mutex<VecDeque<Idle>>,
}

#[derive(Debug)]
struct Idle {
    fingerprint: [u8; 32],
    session: Session,
}

impl Pool {
    pub(crate) fn new(keep: Keep) -> Pool {
        Pool { keep, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept session of this graph, if there is one.
    pub(crate) fn take(self: &Arc<Self>, fingerprint: [u8; 32]) -> Option<Lease> {
        let mut idle = self.idle();
        let position = idle.iter().rposition(|i| i.fingerprint == fingerprint)?;
        let session = idle.remove(position)?.session;
        Some(self.lease(fingerprint, session))
    }

    /// A new session, which comes back here.
    pub(crate) fn lease(self: &Arc<Self>, fingerprint: [u8; 32], session: Session) -> Lease {
        Lease {
            session: ManuallyDrop::new(session),
            suspects: Suspects::default(),
            fingerprint: Some(fingerprint),
            pool: self.clone(),
        }
    }

    /// Lets idle networks go until a plan fits beside what the device holds.
    pub(crate) fn make_room(&self, device: &Device, planned: &PlannedGraph, budget: Option<u64>) {
        let Some(budget) = budget else { return };
        // What goes may have been shared with the plan, so that it is asked anew each time.
        while device.memory().held() + device.missing_bytes(planned) > budget && self.idle().pop_front().is_some() {}
    }

    /// Lets every idle network go; whether there was one.
    pub(crate) fn clear(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle());
        !idle.is_empty()
    }
}

/// A session that goes back to its pool when it is dropped.
#[derive(Debug)]
pub struct Lease {
    session: ManuallyDrop<Session>,
    /// The weights that it was loaded with.
    pub(crate) suspects: Suspects,
    /// None once it is not to come back.
    fingerprint: Option<[u8; 32]>,
    pool: Arc<Pool>,
}

impl Lease {
    /// Keeps the session from coming back, after an error that may be its own.
    pub(crate) fn abandon(&mut self) {
        self.fingerprint = None;
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: nothing uses the session after this; `drop` runs once.
        let session = unsafe { ManuallyDrop::take(&mut self.session) };
        if let (Keep::Fitting, Some(fingerprint)) = (self.pool.keep, self.fingerprint) {
            self.pool.idle().push_back(Idle { fingerprint, session });
        }
    }
}
