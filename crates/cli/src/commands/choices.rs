//! Measured kernel choices from one start to the next: a file for each device, in `PULID_CACHE` or the system's folder of caches.

use pulid::runtime::Runtime;
use pulid_engine::{Autotune, Device};
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// What is known of the device a runtime runs on. A file that is missing, broken, or from before the kernels changed only means
/// measuring again.
pub fn known_choices(runtime: &Runtime) -> Option<Autotune> {
    let Runtime::Gpu { device, .. } = runtime else { return None };
    read(&file_of(device)?, device)
}

fn read(path: &Path, device: &Device) -> Option<Autotune> {
    let kept: Autotune = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    kept.fits(device).then_some(kept)
}

/// Keeps what was measured for the next start. A cache that cannot be written costs time, not results, so it is only mentioned.
pub fn remember_choices(runtime: &Runtime) {
    let (Some(mut all), Runtime::Gpu { device, .. }) = (runtime.choices(), runtime) else { return };
    let Some(path) = file_of(device) else { return };
    let known = read(&path, device).unwrap_or_default().choices;
    // Another process may have measured other operators meanwhile.
    for (operator, variant) in &known {
        all.choices.entry(operator.clone()).or_insert_with(|| variant.clone());
    }
    if all.choices != known
        && let Err(error) = write(&path, &all)
    {
        note!("note: kernel choices were not kept: {error}");
    }
}

fn write(path: &Path, choices: &Autotune) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(choices).map_err(|e| Error::invalid("autotune", e.to_string()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    pulid::image::write_atomically(path, &bytes)
}

fn file_of(device: &Device) -> Option<PathBuf> {
    let folder = match std::env::var_os("PULID_CACHE").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => dirs::cache_dir()?.join("pulid-wgpu"),
    };
    Some(folder.join("autotune").join(Autotune::file_name(device)))
}
