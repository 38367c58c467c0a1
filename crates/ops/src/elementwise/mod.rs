//! Operators that compute each element on its own.

mod unary;

pub use unary::Unary;
