//! Finds published models in the standard cache of the Hugging Face hub, and fetches what is missing there.
//!
//! [`Cache`] reads and writes the layout that every hub client shares; [`Client`] asks the servers and resumes what was cut;
//! [`catalog`] knows which files PuLID needs, and their licences. Native only.

mod cache;
pub mod catalog;
mod client;
mod listing;
mod redirect;
mod retry;
mod settings;
mod transfer;

pub use cache::{Cache, Repo};
pub use client::{Client, Watch};
pub use listing::{Listing, diffusers_files};
pub use settings::Settings;
