//! The page as a static site: any host that serves files can carry it.
//!
//! [`build`] lays it out in a folder:
//!
//! ```text
//! index.html, app.js, style.css, ...   web/ as it is
//! pulid/                               the npm package, with the engine as wasm beside its worker
//! models/mini/                         the mini models and their manifest
//! faces/                               sample portraits
//! ```

mod manifest;
mod package;
mod serve;

pub use manifest::{Manifest, ManifestFile};
pub use package::build;
pub use serve::router;

/// What went wrong, in words.
pub type Outcome<T = ()> = Result<T, String>;
