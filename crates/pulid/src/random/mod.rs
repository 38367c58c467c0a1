//! Random numbers: the draws of PyTorch's CPU generator, so that a seed means the same image as there.

mod generator;
mod mt19937;

pub use generator::TorchGenerator;
pub use mt19937::Mt19937;
