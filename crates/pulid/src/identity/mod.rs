//! From photos of a person to identity tokens.

mod condition;
mod file;
mod models;

pub use file::Identity;
pub use models::FaceModels;
