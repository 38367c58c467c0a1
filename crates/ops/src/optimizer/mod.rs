//! Steps of optimisers, over a parameter and what the optimiser remembers of it.

mod adamw;

pub use adamw::{AdamW, AdamWStep};
