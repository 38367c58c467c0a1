//! Pinned files from package registries, for development alone.

use crate::Outcome;
use crate::debian::verify;
use std::path::Path;
use std::process::Command;

/// Fetches a file with this SHA-256 to a path where there is none yet.
///
/// # Errors
/// When it cannot be fetched, is another file, or cannot be stored; nothing lies at the path then.
pub fn fetch(url: &str, hash: &str, to: &Path) -> Outcome {
    if to.exists() {
        return Ok(());
    }
    println!("Fetching {url}");
    let partial = to.with_extension("partial");
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location", "--output"]).arg(&partial).arg(url);
    if !curl.status().is_ok_and(|s| s.success()) {
        return Err(format!("{url} cannot be fetched; this needs curl and a network"));
    }
    verify(&partial, hash)?;
    std::fs::rename(&partial, to).map_err(|e| format!("{}: {e}", to.display()))
}
