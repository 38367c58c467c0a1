//! What kind of network a file holds, and where such a file is named: told by its tensors' names and a few of their shapes.
//!
//! Names of other programs' files follow what ComfyUI (`comfy/model_detection.py`), diffusers (`loaders/single_file_utils.py`) and
//! kohya's trainers save.

mod signs;

use crate::wrapped::unwrapped;
use pulid_checkpoint::{Checkpoint, onnx};
use pulid_tensor::{Error, Result};
use signs::{ADDED, ALONE, Sign};

/// Where a file is named, in the library's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A whole SDXL: `model`.
    Model,
    /// An SDXL UNet over a whole model: `unet`.
    Unet,
    /// A PuLID file: `adapter`.
    Adapter,
    /// A person: `identity`.
    Identity,
    /// The vision tower that reads photos, in a folder of models: `models_dir`.
    VisionTower,
    /// The face parser there.
    FaceParser,
    /// A face detector there.
    FaceDetector,
    /// A VAE, which lies in a model's folder.
    Vae,
    /// A text encoder, which lies in a model's folder.
    TextEncoder,
    /// Nowhere: it is known and not supported.
    Unsupported,
    /// Nowhere: it is not known.
    Unknown,
}

impl Role {
    /// The setting that takes such a file, if one does.
    pub const fn setting(self) -> Option<&'static str> {
        match self {
            Role::Model => Some("model"),
            Role::Unet => Some("unet"),
            Role::Adapter => Some("adapter"),
            Role::Identity => Some("identity"),
            Role::VisionTower | Role::FaceParser | Role::FaceDetector => Some("models_dir"),
            Role::Vae | Role::TextEncoder | Role::Unsupported | Role::Unknown => None,
        }
    }

    /// What to do with such a file, as a part of a message.
    fn advice(self) -> String {
        match self {
            Role::Model => "a whole model is named as `model`".into(),
            Role::Unet => "a UNet goes over a whole model, as `unet`".into(),
            Role::Adapter => "PuLID's file is named as `adapter`".into(),
            Role::Identity => "a person's file is named as `identity`".into(),
            Role::VisionTower => "a vision tower belongs into the folder of `models_dir`, as eva_clip.safetensors".into(),
            Role::FaceParser => "a face parser belongs into the folder of `models_dir`, as parsing_bisenet.safetensors".into(),
            Role::FaceDetector => {
                "a face detector belongs into the folder of `models_dir`, as detection_Resnet50_Final.safetensors".into()
            }
            Role::Vae => "a VAE is a part of a model and belongs into its folder, below vae/".into(),
            Role::TextEncoder => {
                "a text encoder is a part of a model and belongs into its folder, below text_encoder/ or text_encoder_2/".into()
            }
            Role::Unsupported | Role::Unknown => "such files are not supported".into(),
        }
    }
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// In words; `unknown` where it is none of those that are known.
    pub name: String,
    /// Where it is named.
    pub role: Role,
}

/// What the names of a UNet begin with.
const UNETS: [&str; 7] = ["model.diffusion_model.", "", "diffusion_model.", "model.", "unet.", "module.", "_orig_mod."];

/// What the names of a model's other networks begin with where one file holds them all.
const OTHERS: [&str; 8] = [
    "conditioner.",
    "first_stage_model.",
    "cond_stage_model.",
    "vae.",
    "text_encoders.",
    "text_encoder.",
    "clip_l.",
    "clip_g.",
];

/// Parts of UNets that SDXL's does not have and that would be left out, by what their names begin with in diffusers.
const NOT_SDXLS: [(&str, &str); 4] = [
    (
        "encoder_hid_proj.",
        "UNet of another text encoder, whose output it projects (`encoder_hid_proj`), as Kolors and Kandinsky do",
    ),
    (
        "class_embedding.",
        "UNet that is told a class beside the timestep (`class_embedding`), as upscalers and unCLIP's are",
    ),
    ("position_net.", "UNet of GLIGEN, which is told places in the image (`position_net`)"),
    (
        "add_embedding.image_",
        "UNet that is told the embedding of an image (`add_embedding.image_...`), as Kandinsky's is",
    ),
];

/// What [`kind`] calls a file without tensors.
const EMPTY: &str = "empty, without a tensor";

/// The kind of a checkpoint.
pub fn kind(file: &Checkpoint) -> Kind {
    if file.is_empty() {
        return Kind { name: EMPTY.into(), role: Role::Unsupported };
    }
    let file = &*unwrapped(file);
    let find = |list: &[(&str, Role, Sign)]| {
        let (name, role, _) = list.iter().find(|(_, _, sign)| sign.holds(file))?;
        Some(Kind { name: (*name).to_owned(), role: *role })
    };
    let unet = || UNETS.iter().find_map(|prefix| unet(file, prefix));
    let unknown = || Kind { name: "unknown".into(), role: Role::Unknown };
    // A whole model stays one where something else was left in its file.
    let whole = || unet().filter(|kind| kind.role == Role::Model && file.with_prefix("control_model.").is_empty());
    let mut kind = whole().or_else(|| find(ADDED)).or_else(unet).or_else(|| find(ALONE)).unwrap_or_else(unknown);
    if kind.role == Role::Vae
        && let Some(channels) = vae_channels(file).filter(|&channels| channels != VAE_CHANNELS)
    {
        kind.name = format!("{} with {}", kind.name, channels_of_vae(channels));
        kind.role = Role::Unsupported;
    }
    kind
}

/// Latent channels of SDXL's VAE.
pub(crate) const VAE_CHANNELS: usize = 4;

/// How many latent channels another VAE has, and whose it then is.
pub(crate) fn channels_of_vae(channels: usize) -> String {
    let whose = if channels == 16 { ", as FLUX's and Stable Diffusion 3's have" } else { "" };
    format!("{channels} latent channels{whose}; SDXL's has {VAE_CHANNELS}")
}

/// The latent channels of a VAE, alone in its file or in a whole model, told by the decoder's first convolution.
pub(crate) fn vae_channels(file: &Checkpoint) -> Option<usize> {
    let first = ["", "first_stage_model.", "vae."].into_iter().map(|prefix| format!("{prefix}decoder.conv_in.weight"));
    first.into_iter().find_map(|key| file.info(&key).ok()?.shape.get(1).copied())
}

/// The name of a checkpoint's [`kind`], `unknown` where it is none of those that are known.
pub fn family(file: &Checkpoint) -> String {
    kind(file).name
}

/// The kind of a UNet whose tensors' names begin so, if there is one.
fn unet(file: &Checkpoint, prefix: &str) -> Option<Kind> {
    let part = file.with_prefix(prefix);
    let extent = |key: &str, axis: usize| part.info(key).ok()?.shape.get(axis).copied();
    let has = |key: &str| part.contains(key);
    let stability = has("input_blocks.0.0.weight") && (has("out.2.weight") || !prefix.is_empty());
    let diffusers = has("conv_in.weight") && has("time_embedding.linear_1.weight");
    let (first, embedding, added, guided) = match (stability, diffusers) {
        (true, _) => {
            ("input_blocks.0.0.weight", "time_embed.0.weight", "label_emb.0.0.weight", "time_embed.cond_proj.weight")
        }
        (_, true) => (
            "conv_in.weight",
            "time_embedding.linear_1.weight",
            "add_embedding.linear_1.weight",
            "time_embedding.cond_proj.weight",
        ),
        _ => return None,
    };
    let base = extent(embedding, 1).or_else(|| extent(first, 0));
    let context = part.keys().find(|key| key.ends_with("attn2.to_k.weight")).and_then(|key| extent(key, 1));
    let conditioned = has(added);
    let design = match context {
        Some(768) if !conditioned => Some("Stable Diffusion 1"),
        // In place of a size it is told the embedding of an image.
        Some(1024) if conditioned || has("class_embedding.linear_1.weight") => Some("Stable Diffusion 2.1 unCLIP"),
        Some(1024) => Some("Stable Diffusion 2"),
        Some(1280) if base == Some(384) || extent(added, 1) == Some(2560) => Some("SDXL's refiner"),
        _ => None,
    };
    // Four channels are the noisy latents; what is beyond them is another image.
    let purpose = match extent(first, 1) {
        Some(9) => Some("for inpainting (9 input channels)"),
        Some(8) => Some("for editing (8 input channels, as InstructPix2Pix)"),
        Some(7) => Some("for upscaling (7 input channels)"),
        Some(5) => Some("for depth (5 input channels)"),
        _ => None,
    };
    let whole = OTHERS.iter().any(|other| !file.with_prefix(other).is_empty());
    let other = |what: String| Some(Kind { name: what, role: Role::Unsupported });
    let foreign = NOT_SDXLS.iter().find(|(begin, _)| !part.with_prefix(begin).is_empty()).map(|(_, what)| *what);
    match (design, purpose) {
        _ if has(guided) => other("UNet of LCM, which is told the guidance (`time_embedding.cond_proj`)".into()),
        (None, Some(purpose)) => other(format!("UNet {purpose}")),
        (Some(design), Some(purpose)) => other(format!("{design} {purpose}")),
        (Some(design), None) => other(design.into()),
        (None, None) => {
            if let Some(what) = foreign {
                return other(what.into());
            }
            if whole {
                return Some(Kind { name: "SDXL, a single file".into(), role: Role::Model });
            }
            let names = if stability { "Stability's" } else { "diffusers'" };
            Some(Kind { name: format!("UNet by {names} names"), role: Role::Unet })
        }
    }
}

/// Refuses a file that is known to be something else than what it is named as. What is not known passes: whoever reads it says what is
/// missing.
///
/// # Errors
/// Says what it is, and where such a file is named.
pub fn require(file: &Checkpoint, wanted: &str, accepted: &[Role]) -> Result<()> {
    if file.is_empty() {
        return Err(Error::file(
            file.name(),
            format!("holds no tensor, so it is not {wanted}; was it saved or fetched whole?"),
        ));
    }
    let Kind { name, role } = kind(file);
    if role == Role::Unknown || accepted.contains(&role) {
        return Ok(());
    }
    Err(Error::file(file.name(), format!("is not {wanted} but this: {name}; {}", role.advice())))
}

/// The face networks that are published as ONNX graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnnxFamily {
    /// insightface's face detector.
    Scrfd,
    /// insightface's face recogniser.
    ArcFace,
    /// None of them.
    Unknown,
}

impl OnnxFamily {
    /// The family of a graph, told by its inputs, outputs and operators.
    pub fn of(model: &onnx::Model) -> OnnxFamily {
        let graph = &model.graph;
        let rectified = graph.nodes.iter().filter(|n| n.op_type == "PRelu").count();
        match (graph.inputs.len(), graph.outputs.len()) {
            // Scores, boxes and landmarks on three levels.
            (1, 9) => OnnxFamily::Scrfd,
            (1, 1) if rectified > 1 => OnnxFamily::ArcFace,
            _ => OnnxFamily::Unknown,
        }
    }

    /// What `pulid inspect` calls it.
    pub const fn name(self) -> &'static str {
        match self {
            OnnxFamily::Scrfd => "SCRFD",
            OnnxFamily::ArcFace => "ArcFace (IResNet)",
            OnnxFamily::Unknown => "unknown",
        }
    }

    /// What it is, as a part of a message.
    const fn what(self) -> &'static str {
        match self {
            OnnxFamily::Scrfd => "a face detector (SCRFD)",
            OnnxFamily::ArcFace => "a face recogniser (ArcFace)",
            OnnxFamily::Unknown => "a face network",
        }
    }

    /// The name of its file in insightface's `antelopev2`.
    const fn published(self) -> &'static str {
        match self {
            OnnxFamily::Scrfd => "scrfd_10g_bnkps.onnx",
            OnnxFamily::ArcFace => "glintr100.onnx",
            OnnxFamily::Unknown => "",
        }
    }
}

/// Refuses an ONNX graph that is known to be another face network than the one it is named as. What is not known passes: whoever runs it
/// looks at what it gives.
///
/// # Errors
/// Says which of the two it is, and where such a file belongs.
pub(crate) fn require_onnx(model: &onnx::Model, wanted: OnnxFamily) -> Result<()> {
    let found = OnnxFamily::of(model);
    if found == wanted || found == OnnxFamily::Unknown {
        return Ok(());
    }
    let detail = format!(
        "is not {} but {}, which belongs into the folder of `models_dir` as antelopev2/{}; were the two exchanged?",
        wanted.what(),
        found.what(),
        found.published()
    );
    Err(Error::file(&model.name, detail))
}
