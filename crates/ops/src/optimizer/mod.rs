//! Steps of optimisers, over a parameter and what the optimiser remembers of it.

mod adamw;
mod sum_of_squares;
mod weighted_sum;

pub use adamw::{AdamW, AdamWStep};
pub use sum_of_squares::SumOfSquares;
pub use weighted_sum::WeightedSum;
