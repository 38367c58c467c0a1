use super::models::{Named, mini_models};
use pulid::identity::FaceModels;
use pulid_engine::AdapterReport;
use pulid_hub::catalog::{self, BASES, Item};
use pulid_hub::{Cache, Settings};
use pulid_tensor::{Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Flags of `pulid doctor`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pulid doctor --json")]
pub struct Args {
    /// A folder of models to look at too [default: the environment's PULID_MODELS]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What this machine has.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    devices: Vec<AdapterReport>,
    mini_models: Option<PathBuf>,
    models_dir: Option<Folder>,
    hub_cache: PathBuf,
    files: Vec<Entry>,
    bases: Vec<Entry>,
    /// What to do next, in words.
    advice: Vec<String>,
}

/// A folder of models that was named.
#[derive(Serialize)]
struct Folder {
    path: PathBuf,
    exists: bool,
    missing: Vec<String>,
}

/// A published file or base model.
#[derive(Serialize)]
struct Entry {
    name: String,
    what: &'static str,
    source: &'static str,
    path: Option<PathBuf>,
}

/// Says what is there and what is missing.
pub fn run(args: &Args) -> Result<()> {
    let settings = Settings::from_env();
    let cache = Cache::new(&settings.cache);
    let devices = pollster::block_on(pulid_engine::adapter_reports());
    let items = [catalog::V1_1, catalog::V1, catalog::TOWER].into_iter();
    let items = items.chain(catalog::ANTELOPE).chain(catalog::AURAFACE).chain(catalog::FACEXLIB);
    let entry = |item: Item| {
        let path = item.find(&cache, &settings).map(|path| native(&path));
        Entry { name: item.file.into(), what: item.what, source: item.source(), path }
    };
    let files: Vec<_> = items.map(entry).collect();
    let bases = BASES.map(|base| {
        let path = base.find(&cache).map(|(folder, _)| native(&folder));
        Entry { name: base.name.into(), what: "base model", source: base.repo, path }
    });
    let models_dir = Named::new(args.models_dir.as_deref()).map(|named| named.folder);
    let models_dir = models_dir.filter(|path| path.as_os_str() != "hub").map(|path| look_at(&path));
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        devices,
        mini_models: mini_models().map(|path| native(&path)),
        models_dir,
        hub_cache: native(&settings.cache),
        files,
        bases: bases.into(),
        advice: Vec::new(),
    };
    report.advice = advice(&report);
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Error::invalid("--json", e.to_string()))?;
        say!("{text}");
    } else {
        say!("{}", describe(&report).trim_end());
    }
    Ok(())
}

/// A path with the system's own separators alone: Windows takes both, and people copy what they see.
fn native(path: &Path) -> PathBuf {
    path.components().collect()
}

fn look_at(path: &Path) -> Folder {
    let models = FaceModels::open(path).ok();
    let mut missing = Vec::new();
    if let Some(models) = models.as_ref().filter(|_| !Cache::is_cache(path)) {
        let or = |names: &[&str]| names.join(" or ");
        missing.extend(models.missing_parts().iter().map(|(what, names)| format!("{what} ({})", or(names))));
        let adapters = ["pulid_v1.1.safetensors", "pulid_v1.safetensors", "pulid_v1.bin"];
        if !adapters.iter().any(|name| path.join(name).is_file()) {
            missing.push(format!("PuLID ({})", or(&adapters)));
        }
        if !path.join("sdxl").exists() {
            missing.push("base model (sdxl, or --model)".into());
        }
    }
    Folder { path: native(path), exists: models.is_some(), missing }
}

fn advice(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    if report.devices.is_empty() {
        advice.push(format!("no device can run shaders: {}", pulid_engine::driver_advice()));
    }
    let there = |file: &str| report.files.iter().any(|e| e.name == file && e.path.is_some());
    let photos = ["scrfd_10g_bnkps.onnx", "glintr100.onnx", catalog::TOWER.file, "parsing_bisenet.pth"];
    let missing: Vec<_> = photos.into_iter().filter(|file| !there(file)).collect();
    let base = report.bases.iter().find(|base| base.path.is_some());
    let name = base.map_or("juggernaut", |base| base.name.as_str());
    let version = if name == "sdxl-lightning" { "v1" } else { "v1.1" };
    if !missing.is_empty() || base.is_none() || !(there(catalog::V1.file) || there(catalog::V1_1.file)) {
        advice.push(format!(
            "the published models are not all here: `pulid pull {version} --base {name}` fetches what is missing (some 10 \
             GB for all)"
        ));
    }
    if let Some(folder) = &report.models_dir {
        let path = folder.path.display();
        match (folder.exists, folder.missing.is_empty()) {
            (false, _) => advice.push(format!("the models folder {path} does not exist: name another one")),
            (true, false) => {
                advice.push(format!("{path} lacks files, see above; they are looked for in the hub's cache"))
            }
            _ => {}
        }
    }
    if report.mini_models.is_none() {
        advice.push(
            "the mini models are not found: start the program below the repository, or use --models-dir and --preset"
                .into(),
        );
    }
    advice
}

fn describe(report: &Report) -> String {
    let mut text = format!("pulid-wgpu {}\n\nDevices, best first\n", report.version);
    let mut line = |indent: usize, value: String| text += &format!("{:indent$}{value}\n", "");
    let mib = |bytes: u64| bytes >> 20;
    for d in &report.devices {
        let s = &d.summary;
        line(2, format!("{} ({:?}, {}; {})", s.name, s.kind, s.backend, s.driver));
        let lanes = match d.subgroup_lanes {
            _ if !d.subgroups => "no subgroups".into(),
            [least, most] if least == most => format!("subgroups of {least}"),
            [least, most] => format!("subgroups of {least} to {most}"),
        };
        let half = if d.shader_f16 { "f16" } else { "no f16" };
        line(4, format!("{half}, {lanes}, {} invocations a workgroup", d.max_invocations));
        line(4, matrices(d));
        let (buffer, binding) = (mib(d.max_buffer_bytes), mib(d.max_binding_bytes));
        line(4, format!("buffers up to {buffer} MiB, {binding} MiB and {} of them at once", d.max_storage_bindings));
        d.remarks().into_iter().for_each(|remark| line(4, remark));
    }
    if report.devices.is_empty() {
        line(2, "none".into());
    }
    let shown = |path: &Option<PathBuf>| path.as_ref().map_or("missing".into(), |path| path.display().to_string());
    line(0, format!("\nMini models\n  {}", shown(&report.mini_models)));
    if let Some(folder) = &report.models_dir {
        line(0, format!("\nModels folder\n  {}", folder.path.display()));
        folder.missing.iter().for_each(|what| line(2, format!("lacks: {what}")));
    }
    line(0, format!("\nHub cache\n  {}", report.hub_cache.display()));
    for entry in report.files.iter().chain(&report.bases) {
        let state = if entry.path.is_some() { "there  " } else { "missing" };
        line(2, format!("{state} {} ({}, {})", entry.name, entry.what, entry.source));
    }
    if report.advice.is_empty() {
        line(0, "\nNothing to do.".into());
    } else {
        line(0, "\nTo do".into());
        report.advice.iter().for_each(|advice| line(2, advice.clone()));
    }
    text
}

/// The matrices that subgroups of a device multiply together, and which of them kernels use.
fn matrices(device: &AdapterReport) -> String {
    let listed: Vec<String> = device
        .cooperative_matrices
        .iter()
        .map(|m| {
            let [rows, columns, inner] = m.size;
            format!("{rows}x{columns}x{inner} {} to {}", m.factors, m.sums)
        })
        .collect();
    match (listed.is_empty(), device.cooperative_size) {
        (true, _) => "no cooperative matrices".into(),
        (false, 0) => format!("cooperative matrices, none of them used: {}", listed.join(", ")),
        (false, size) => format!("cooperative matrices, {size}x{size}x{size} f16 to f32 used: {}", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_engine::{AdapterSummary, CooperativeMatrices};

    #[test]
    fn cooperative_matrices_are_listed_and_those_in_use_named() {
        let with = |list: &[([u32; 3], &'static str, &'static str)], cooperative_size| {
            let listed = list.iter().map(|&(size, factors, sums)| CooperativeMatrices { size, factors, sums });
            matrices(&AdapterReport {
                summary: AdapterSummary {
                    name: "GPU".into(),
                    driver: String::new(),
                    backend: "vulkan".into(),
                    kind: pulid_engine::DeviceKind::Discrete,
                },
                shader_f16: true,
                subgroups: true,
                subgroup_lanes: [32, 32],
                cooperative_matrices: listed.collect(),
                cooperative_size,
                max_buffer_bytes: 0,
                max_binding_bytes: 0,
                max_storage_bindings: 8,
                max_workgroups: 0,
                max_invocations: 0,
                max_workgroup_bytes: 0,
            })
        };
        assert_eq!(with(&[], 0), "no cooperative matrices");
        let wide = ([16, 16, 16], "f16", "f32");
        assert_eq!(
            with(&[wide, ([8, 8, 8], "f16", "f16")], 16),
            "cooperative matrices, 16x16x16 f16 to f32 used: 16x16x16 f16 to f32, 8x8x8 f16 to f16"
        );
        assert_eq!(with(&[wide], 0), "cooperative matrices, none of them used: 16x16x16 f16 to f32");
    }
}
