//! Graphs of operators, and the plan a device runs: plain data, made without a device.
//!
//! A model builds a [`Graph`]; [`fit_bindings`] cuts what exceeds a device's bindings; [`optimize`] pads odd weights, fuses epilogues
//! and removes dead nodes; [`plan()`] hoists what does not change
//! between steps, chooses kernel variants and assigns buffers by liveness. [`reference`] runs the same graph in plain
//! Rust on the CPU.

mod arena;
pub mod autodiff;
mod bypass;
mod graph;
mod inline;
mod pack;
mod passes;
pub mod plan;
mod planner;
pub mod reference;
pub mod residency;
mod traffic;
mod weight;

pub use arena::{Arenas, Place, ScratchValues, largest_arena};
pub use autodiff::Checkpointing;
pub use graph::{Graph, Node, NodeId, NodeKind, Rate};
pub use passes::{fit_bindings, optimize, replace_wide_attention};
pub use plan::{Alternative, Plan, Stage};
pub use planner::{Chooser, FirstVariant, PlannedGraph, plan, plan_sharing};
pub use traffic::{OperatorTraffic, Traffic};
pub use weight::{LoadWeight, Weight, WeightKey};
