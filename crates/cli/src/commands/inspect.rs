use pulid::pipeline::scheduler_config;
use pulid::sampler::PredictionType;
use pulid::settings::{Choices, ModelDefaults, Spelling};
use pulid_models::inspect::Inspection;
use pulid_models::sdxl::{PredictionMarks, Predicts, SdxlModel};
use pulid_tensor::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// What networks predict, in JSON.
const NOISE: &str = "noise";
const VELOCITY: &str = "velocity";

/// How a model's images are made where nobody says otherwise, or what is known of that of a UNet alone.
#[derive(Serialize)]
struct Sampling {
    /// `noise` or `velocity`; null for a UNet whose file does not say.
    predicts: Option<&'static str>,
    /// Whether the last training timestep is pure noise.
    zero_terminal_snr: bool,
    /// The model's own settings, by their names in snake case.
    settings: BTreeMap<&'static str, serde_json::Value>,
    /// What people should hear of them.
    notes: Vec<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    found: &'a Inspection,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<Sampling>,
    /// What is wrong with the model's files for sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Sampling {
    fn of(path: &Path) -> Result<Sampling> {
        let model = SdxlModel::open(path)?;
        let (config, defaults) = (scheduler_config(&model)?, ModelDefaults::of(&model)?);
        Ok(Sampling {
            predicts: Some(match config.prediction_type {
                PredictionType::Epsilon => NOISE,
                PredictionType::VPrediction => VELOCITY,
            }),
            zero_terminal_snr: config.rescale_betas_zero_snr,
            settings: defaults.all().iter().map(|(setting, value)| (setting.name, value)).collect(),
            notes: defaults.notes(&Choices::default(), None),
        })
    }

    /// Of the file of a UNet alone: its timesteps are those of the model that it goes over.
    fn of_unet(marks: PredictionMarks) -> Sampling {
        Sampling {
            predicts: marks.predicts.map(|predicts| match predicts {
                Predicts::Noise => NOISE,
                Predicts::Velocity => VELOCITY,
            }),
            zero_terminal_snr: marks.zero_terminal_snr,
            settings: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let zero = if self.zero_terminal_snr { ", zero terminal SNR" } else { "" };
        let predicts = match self.predicts {
            Some(VELOCITY) => "velocity (v_prediction)",
            Some(_) => "noise (epsilon)",
            None => "what the scheduler of the model says that it goes over, for the file does not say",
        };
        let settings: Vec<_> =
            self.settings.iter().map(|(name, value)| format!("{name} {}", super::settings::plain(value))).collect();
        let mut lines = vec![("predicts", format!("{predicts}{zero}"))];
        if !settings.is_empty() {
            lines.push(("settings", settings.join(", ")));
        }
        lines.extend(self.notes.iter().map(|note| ("note", super::settings::note_with_flags(note))));
        lines
    }
}

/// Says what a file is and holds.
pub fn run(args: &Args) -> Result<()> {
    super::outputs([&args.path])?;
    let mut found = Inspection::of(&args.path)?;
    // What is wrong with a model's scheduler is part of what there is to say of it.
    let sampling = match (&found.problem, found.role, found.marks) {
        (Some(problem), ..) => Some(Err(problem.clone())),
        (_, Some("model"), _) => Some(Sampling::of(&args.path).map_err(|error| error.to_string())),
        (_, Some("unet"), Some(marks)) => Some(Ok(Sampling::of_unet(marks))),
        _ => None,
    };
    let text = if args.json {
        if !args.keys {
            found.tensors.clear();
            found.parts.iter_mut().for_each(|part| part.tensors.clear());
        }
        let (sampling, problem) = match sampling.transpose() {
            Ok(sampling) => (sampling, None),
            Err(problem) => (None, Some(problem)),
        };
        let json = serde_json::to_string_pretty(&Report { found: &found, sampling, problem });
        json.map_err(|e| Error::invalid("--json", e.to_string()))? + "\n"
    } else {
        let lines = match sampling {
            Some(Ok(sampling)) => sampling.lines(),
            Some(Err(problem)) => vec![("problem", problem)],
            None => Vec::new(),
        };
        describe(&found, args.keys, &lines)
    };
    say!("{}", text.trim_end());
    Ok(())
}

/// What was found, with further lines before the metadata.
fn describe(found: &Inspection, keys: bool, lines: &[(&str, String)]) -> String {
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
    for (name, value) in lines {
        line(name, value.clone());
    }
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
