//! Graphs of operators, and the plan a device runs: plain data, made without a device.
//!
//! A model builds a [`Graph`]; [`optimize`] removes dead nodes and fuses epilogues; [`plan()`] hoists what does not change
//! between steps, chooses kernel variants and assigns buffers by liveness. [`reference`] runs the same graph in plain
//! Rust on the CPU.

mod bypass;
mod graph;
mod passes;
pub mod plan;
mod planner;
pub mod reference;
pub mod residency;
mod weight;

pub use graph::{Graph, Node, NodeId, NodeKind, Rate};
pub use passes::optimize;
pub use plan::{Alternative, Plan, Stage};
pub use planner::{Chooser, FirstVariant, PlannedGraph, plan};
pub use weight::{LoadWeight, Weight, WeightKey};
