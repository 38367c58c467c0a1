//! What kind of network a file holds, and where such a file is named: told by its tensors' names and a few of their shapes.
//!
//! Names of other programs' files follow what ComfyUI (`comfy/model_detection.py`), diffusers (`loaders/single_file_utils.py`) and
//! kohya's trainers save.

use pulid_checkpoint::{Checkpoint, onnx};
use pulid_tensor::{Error, Result};

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
    /// A network that reads photos, in a folder of models: `models_dir`.
    Photos,
    /// A part of a model, which lies in its folder.
    Part,
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
            Role::Photos => Some("models_dir"),
            Role::Part | Role::Unsupported | Role::Unknown => None,
        }
    }

    /// What to do with such a file, as a part of a message.
    fn advice(self) -> String {
        match self {
            Role::Model => "a whole model is named as `model`".into(),
            Role::Unet => "a UNet goes over a whole model, as `unet`".into(),
            Role::Adapter => "PuLID's file is named as `adapter`".into(),
            Role::Identity => "a person's file is named as `identity`".into(),
            Role::Photos => "it belongs into the folder of `models_dir`".into(),
            Role::Part => "it is a part of a model and belongs into its folder".into(),
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

/// How a kind is told.
enum Sign {
    /// All of these tensors, below one of the prefixes.
    All(&'static [&'static str], &'static [&'static str]),
    /// A tensor whose name begins with each of these.
    Begin(&'static [&'static str]),
    /// A tensor whose name contains one of these.
    Contain(&'static [&'static str]),
}

use Sign::{All, Begin, Contain};

impl Sign {
    fn holds(&self, file: &Checkpoint) -> bool {
        match self {
            All(keys, prefixes) => {
                prefixes.iter().any(|prefix| keys.iter().all(|key| file.contains(&format!("{prefix}{key}"))))
            }
            Begin(all) => all.iter().all(|begin| !file.with_prefix(begin).is_empty()),
            Contain(any) => file.keys().any(|key| any.iter().any(|part| key.contains(part))),
        }
    }
}

/// What transformers for images are called where they do not stand alone.
const DIFFUSION: &[&str] = &["", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "net."];

/// The kinds, the more special before the more general. UNets are told apart by [`unet`], between the two lists.
const ADDED: &[(&str, Role, Sign)] = &[
    // What is added to a network has names of the network within its own.
    (
        "LoRA",
        Role::Unsupported,
        Contain(&[
            "lora_up.",
            "lora_down.",
            "lora_A.",
            "lora_B.",
            "lora.up.",
            "lora.down.",
            "lora_linear_layer.",
            "lora_unet_",
            "lora_te",
            ".hada_w1_",
            ".lokr_w1",
            ".dora_scale",
            ".oft_blocks",
        ]),
    ),
    ("ControlNet-LLLite", Role::Unsupported, Contain(&["lllite_unet_"])),
    ("Control-LoRA", Role::Unsupported, Begin(&["lora_controlnet"])),
    (
        "ControlNet",
        Role::Unsupported,
        Contain(&[
            "controlnet_cond_embedding.",
            "controlnet_down_blocks.",
            "zero_convs.",
            "control_model.",
            "input_hint_block.",
        ]),
    ),
    ("PuLID for FLUX", Role::Unsupported, Contain(&["pulid_ca."])),
    ("PuLID v1.1", Role::Adapter, All(&["id_adapter.latents", "id_adapter_attn_layers.1.id_to_k.weight"], &[""])),
    ("PuLID v1", Role::Adapter, All(&["id_adapter.body.0.weight", "id_adapter_attn_layers.1.id_to_k.weight"], &[""])),
    (
        "PuLID adapter without an identity encoder",
        Role::Adapter,
        All(&["id_adapter_attn_layers.1.id_to_k.weight"], &[""]),
    ),
    (
        "PuLID v1.1 by ComfyUI's names",
        Role::Adapter,
        All(&["image_proj.id_embedding_mapping.0.weight", "ip_adapter.1.to_k_ip.weight"], &[""]),
    ),
    (
        "PuLID v1 by ComfyUI's names",
        Role::Adapter,
        All(&["image_proj.body.0.weight", "image_proj.mapping_0.0.weight", "ip_adapter.1.to_k_ip.weight"], &[""]),
    ),
    ("IP-Adapter", Role::Unsupported, Contain(&["to_k_ip.", "image_proj."])),
    ("PhotoMaker", Role::Unsupported, Begin(&["id_encoder.", "lora_weights."])),
    (
        "T2I-Adapter",
        Role::Unsupported,
        Contain(&["body.0.block1.", "body.0.resnets.", "body.0.in_conv.", "body.0.downsample"]),
    ),
    ("textual inversion", Role::Unsupported, All(&["emb_params"], &[""])),
    ("textual inversion", Role::Unsupported, Contain(&["string_to_param"])),
    ("textual inversion", Role::Unsupported, All(&["clip_g", "clip_l"], &[""])),
];

/// What is left when it is no UNet.
const ALONE: &[(&str, Role, Sign)] = &[
    ("FLUX", Role::Unsupported, All(&["double_blocks.0.img_attn.qkv.weight"], DIFFUSION)),
    ("FLUX", Role::Unsupported, All(&["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], DIFFUSION)),
    ("FLUX", Role::Unsupported, Contain(&["double_blocks.", "single_transformer_blocks."])),
    ("Stable Diffusion 3", Role::Unsupported, Contain(&["joint_blocks."])),
    (
        "Stable Diffusion 3",
        Role::Unsupported,
        All(&["transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight"], DIFFUSION),
    ),
    ("AuraFlow", Role::Unsupported, Contain(&["double_layers.", "joint_transformer_blocks."])),
    ("PixArt", Role::Unsupported, Contain(&["adaln_single.", "t_block.1.", "scale_shift_table"])),
    ("Stable Cascade", Role::Unsupported, Contain(&["clip_txt_mapper.", "clip_txt_pooled_mapper.", "channelwise."])),
    ("Wan", Role::Unsupported, All(&["blocks.0.cross_attn.norm_k.weight", "patch_embedding.weight"], DIFFUSION)),
    ("Wan", Role::Unsupported, Contain(&["condition_embedder.text_embedder."])),
    ("Qwen-Image", Role::Unsupported, All(&["txt_in.weight", "txt_norm.weight"], DIFFUSION)),
    ("Lumina", Role::Unsupported, Contain(&["cap_embedder."])),
    ("Hunyuan-DiT", Role::Unsupported, Contain(&["text_embedding_padding", "mlp_t5."])),
    (
        "VAE by Stability's names",
        Role::Part,
        All(&["decoder.mid.block_1.norm1.weight"], &["", "first_stage_model.", "vae."]),
    ),
    ("VAE by diffusers' names", Role::Part, All(&["decoder.mid_block.resnets.0.norm1.weight"], &["", "vae."])),
    ("VAE's encoder", Role::Part, All(&["encoder.conv_in.weight", "encoder.conv_out.weight"], &[""])),
    (
        "tiny autoencoder (TAESD)",
        Role::Unsupported,
        Contain(&["taesd_decoder.", "taesd_encoder.", "decoder.layers.1.conv."]),
    ),
    ("tiny autoencoder (TAESD)", Role::Unsupported, All(&["1.weight", "3.conv.0.weight"], &[""])),
    (
        "PuLID v1.1's identity encoder",
        Role::Adapter,
        All(&["latents", "proj_out", "id_embedding_mapping.0.weight"], &["", "id_adapter.", "image_proj."]),
    ),
    (
        "PuLID v1's identity encoder",
        Role::Adapter,
        All(&["body.0.weight", "mapping_patch_0.0.weight"], &["", "id_adapter.", "image_proj."]),
    ),
    ("EVA02-CLIP", Role::Photos, All(&["blocks.0.attn.inner_attn_ln.weight", "pos_embed"], &["", "visual."])),
    (
        "EVA02-CLIP by timm's names",
        Role::Photos,
        All(
            &["blocks.0.attn.norm.weight", "blocks.0.mlp.fc1_g.weight", "pos_embed"],
            &["", "visual.trunk.", "visual.", "trunk."],
        ),
    ),
    (
        "CLIP text encoder",
        Role::Part,
        All(
            &["embeddings.token_embedding.weight", "final_layer_norm.weight"],
            &["", "text_model.", "clip_l.transformer.text_model.", "clip_g.transformer.text_model."],
        ),
    ),
    (
        "CLIP text encoder by open_clip's names",
        Role::Part,
        All(
            &["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"],
            &["", "text.", "clip_g.", "clip_l.", "model."],
        ),
    ),
    ("CLIP image encoder", Role::Unsupported, Begin(&["vision_model.embeddings."])),
    ("T5 text encoder", Role::Unsupported, Contain(&["layer.0.SelfAttention.q."])),
    ("BiSeNet", Role::Photos, All(&["cp.resnet.conv1.weight", "ffm.convblk.conv.weight"], &["", "module."])),
    (
        "RetinaFace",
        Role::Photos,
        All(&["BboxHead.0.conv1x1.weight", "LandmarkHead.0.conv1x1.weight"], &["", "module."]),
    ),
    ("identity, from pulid embed", Role::Identity, All(&["id_embedding", "uncond_id_embedding"], &[""])),
    ("image upscaler", Role::Unsupported, Contain(&[".RDB1.", ".rdb1.", "model.1.sub.0."])),
];

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

/// The kind of a checkpoint.
pub fn kind(file: &Checkpoint) -> Kind {
    let find = |list: &[(&str, Role, Sign)]| {
        let (name, role, _) = list.iter().find(|(_, _, sign)| sign.holds(file))?;
        Some(Kind { name: (*name).to_owned(), role: *role })
    };
    let unet = || UNETS.iter().find_map(|prefix| unet(file, prefix));
    let unknown = || Kind { name: "unknown".into(), role: Role::Unknown };
    // A whole model stays one where something else was left in its file.
    let whole = || unet().filter(|kind| kind.role == Role::Model && file.with_prefix("control_model.").is_empty());
    whole().or_else(|| find(ADDED)).or_else(unet).or_else(|| find(ALONE)).unwrap_or_else(unknown)
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
        Some(1024) if !conditioned => Some("Stable Diffusion 2"),
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
    match (design, purpose) {
        _ if has(guided) => other("UNet of LCM, which is told the guidance (`time_embedding.cond_proj`)".into()),
        (None, Some(purpose)) => other(format!("UNet {purpose}")),
        (Some(design), Some(purpose)) => other(format!("{design} {purpose}")),
        (Some(design), None) => other(design.into()),
        (None, None) if whole => Some(Kind { name: "SDXL, a single file".into(), role: Role::Model }),
        (None, None) => {
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
    let Kind { name, role } = kind(file);
    if role == Role::Unknown || accepted.contains(&role) {
        return Ok(());
    }
    Err(Error::file(file.name(), format!("is not {wanted} but this: {name}; {}", role.advice())))
}

/// The family of an ONNX graph, told by its outputs.
pub fn onnx_family(model: &onnx::Model) -> &'static str {
    let graph = &model.graph;
    let rectified = graph.nodes.iter().filter(|n| n.op_type == "PRelu").count();
    match (graph.inputs.len(), graph.outputs.len()) {
        // Scores, boxes and landmarks on three levels.
        (1, 9) => "SCRFD",
        (1, 1) if rectified > 1 => "ArcFace (IResNet)",
        _ => "unknown",
    }
}
