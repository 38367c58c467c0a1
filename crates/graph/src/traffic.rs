//! Bytes that the dispatches of a plan move, from the plan alone.

use crate::plan::{Plan, Step};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Bytes that must come from a device's memory and go there if nothing stays in caches between two dispatches: each dispatch reads
/// what it binds once and writes its results once. What tiles read again counts once, since it comes from caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes of weights and values that are read.
    pub read: u64,
    /// Bytes that are written.
    pub written: u64,
}

impl Traffic {
    /// Both.
    pub fn total(self) -> u64 {
        self.read + self.written
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.read += other.read;
        self.written += other.written;
    }
}

/// What the steps of one operator move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperatorTraffic {
    /// Name of the operator.
    pub operator: String,
    /// Its steps.
    pub steps: usize,
    /// Their dispatches.
    pub dispatches: usize,
    /// Bytes.
    pub traffic: Traffic,
}

impl Step {
    /// Bytes that the step moves. What only moves elements (no operations) touches parts of its operands, or stores its result in
    /// several dispatches; there it is the operator's own count, [`Cost::bytes`](pulid_ops::Cost::bytes).
    pub fn traffic(&self) -> Traffic {
        if self.cost.flops == 0 {
            let written = self.output.bytes() as u64;
            return Traffic { read: self.cost.bytes.saturating_sub(written), written };
        }
        let mut sum = Traffic::default();
        self.dispatches.iter().for_each(|d| sum += d.traffic);
        sum
    }
}

impl Plan {
    /// What one run of the steps moves, by operator, most first.
    pub fn traffic(&self) -> Vec<OperatorTraffic> {
        let mut all = BTreeMap::new();
        for step in &self.steps {
            let operator = step.operator.split('(').next().unwrap_or_default().to_owned();
            let (steps, dispatches, traffic) = all.entry(operator).or_insert((0, 0, Traffic::default()));
            *steps += 1;
            *dispatches += step.dispatches.len();
            *traffic += step.traffic();
        }
        let entry = |(operator, (steps, dispatches, traffic))| OperatorTraffic { operator, steps, dispatches, traffic };
        let mut all: Vec<_> = all.into_iter().map(entry).collect();
        all.sort_by_key(|o| std::cmp::Reverse(o.traffic.total()));
        all
    }
}
