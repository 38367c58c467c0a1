//! What one start of the program leaves to the next, in `PULID_CACHE` or the system's folder of caches: measured kernel choices and
//! what the driver compiled, each a file for each device.

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

/// Keeps what was measured and compiled for the next start. A cache that cannot be written costs time, not results, so it is only mentioned.
pub fn remember_choices(runtime: &Runtime) {
    if let Runtime::Gpu { device, .. } = runtime {
        remember_compiled(device);
    }
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
    write_bytes(path, &serde_json::to_vec_pretty(choices).map_err(|e| Error::invalid("autotune", e.to_string()))?)
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    pulid::image::write_atomically(path, bytes)
}

/// Lets the device compile with what its driver compiled at an earlier start.
pub fn use_compiled(runtime: &Runtime) {
    let Runtime::Gpu { device, .. } = runtime else { return };
    let Some(path) = compiled_file(device) else { return };
    device.use_pipeline_cache(std::fs::read(path).ok().as_deref());
}

/// Keeps what the driver compiled, where that is more than there was. It costs nobody anything where that cannot be written.
fn remember_compiled(device: &Device) {
    if device.memory().compiled_kernels == 0 {
        return;
    }
    let (Some(path), Some(compiled)) = (compiled_file(device), device.pipeline_cache()) else { return };
    // The smaller of two processes' caches would take the other's place.
    let kept = std::fs::metadata(&path).map_or(0, |file| file.len());
    if compiled.len() as u64 > kept
        && let Err(error) = write_bytes(&path, &compiled)
    {
        note!("note: what the driver compiled was not kept: {error}");
    }
}

fn compiled_file(device: &Device) -> Option<PathBuf> {
    Some(folder()?.join("pipelines").join(device.pipeline_cache_name()?))
}

fn file_of(device: &Device) -> Option<PathBuf> {
    Some(folder()?.join("autotune").join(Autotune::file_name(device)))
}

fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("PULID_CACHE").filter(|folder| !folder.is_empty()) {
        Some(folder) => folder.into(),
        None => dirs::cache_dir()?.join("pulid-wgpu"),
    };
    Some(folder)
}
