use pulid::settings::Spelling;
use pulid_models::inspect::Inspection;
use pulid_tensor::{Error, Result};
use std::path::PathBuf;

/// Characters of a metadata text that are shown; `--json` gives all.
const SHOWN: usize = 100;

/// Flags of `pulid inspect`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid inspect juggernaut.safetensors\n  \
    pulid inspect pulid_v1.bin --keys\n  \
    pulid inspect antelopev2/glintr100.onnx --json")]
pub struct Args {
    /// Weights: safetensors, GGUF, PyTorch (.bin, .pt, .pth, .ckpt), ONNX, a folder of them, or a folder of models, which is listed
    path: PathBuf,
    /// List every tensor with its type and extents
    #[arg(long)]
    keys: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Says what a file is and holds.
pub fn run(args: &Args) -> Result<()> {
    let mut found = Inspection::of(&args.path)?;
    let text = if args.json {
        if !args.keys {
            found.tensors.clear();
            found.parts.iter_mut().for_each(|part| part.tensors.clear());
        }
        let json = serde_json::to_string_pretty(&found);
        json.map_err(|e| Error::invalid("--json", e.to_string()))? + "\n"
    } else {
        describe(&found, args.keys)
    };
    say!("{}", text.trim_end());
    Ok(())
}

fn describe(found: &Inspection, keys: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<11}{value}\n");
    line("file", found.path.display().to_string());
    line("format", found.format.clone());
    line("family", found.family.clone());
    match found.role {
        Some(role) => line("named as", Spelling::Flag.of(role)),
        None if found.unsupported => line("named as", "nothing: such files are not supported".to_owned()),
        None => {}
    }
    for part in &found.parts {
        let name = part.path.strip_prefix(&found.path).unwrap_or(&part.path).display();
        let what =
            if part.count > 0 { format!(", {} tensors, {}", part.count, size(part.bytes)) } else { String::new() };
        line("part", format!("{name}: {}{what}", part.family));
    }
    line("tensors", format!("{} of {:.1} million parameters", found.count, found.parameters as f64 / 1e6));
    for (element, count) in &found.elements {
        line("elements", format!("{element}: {} tensors, {}", count.tensors, size(count.bytes)));
    }
    line("size", format!("{} ({} bytes)", size(found.file_bytes), found.file_bytes));
    for (key, value) in &found.metadata {
        let mut value = value.replace(char::is_control, " ");
        if let Some((end, _)) = value.char_indices().nth(SHOWN) {
            value.truncate(end);
            value += " ...";
        }
        line("metadata", format!("{key}: {value}"));
    }
    if keys {
        for inspected in std::iter::once(found).chain(&found.parts) {
            for (key, tensor) in &inspected.tensors {
                text += &format!("{key} {}{:?}\n", tensor.element, tensor.shape);
            }
        }
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
