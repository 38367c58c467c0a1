//! By which tensors each kind of file is told.

use super::Role;
use pulid_checkpoint::Checkpoint;

/// How a kind is told.
pub(super) enum Sign {
    /// All of these tensors, below one of the prefixes.
    All(&'static [&'static str], &'static [&'static str]),
    /// A tensor whose name begins with each of these.
    Begin(&'static [&'static str]),
    /// A tensor whose name contains one of these.
    Contain(&'static [&'static str]),
    /// A tensor whose name ends with one of these.
    End(&'static [&'static str]),
    /// What only its names and shapes together tell.
    Is(fn(&Checkpoint) -> bool),
}

use Sign::{All, Begin, Contain, End, Is};

impl Sign {
    pub fn holds(&self, file: &Checkpoint) -> bool {
        match self {
            All(keys, prefixes) => {
                prefixes.iter().any(|prefix| keys.iter().all(|key| file.contains(&format!("{prefix}{key}"))))
            }
            Begin(all) => all.iter().all(|begin| !file.with_prefix(begin).is_empty()),
            Contain(any) => file.keys().any(|key| any.iter().any(|part| key.contains(part))),
            End(any) => file.keys().any(|key| any.iter().any(|end| key.ends_with(end))),
            Is(told) => told(file),
        }
    }
}

/// What transformers for images are called where they do not stand alone.
const DIFFUSION: &[&str] = &["", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "net."];

/// The kinds, the more special before the more general. UNets are told apart by [`unet`], between the two lists.
pub(super) const ADDED: &[(&str, Role, Sign)] = &[
    // What is added to a network has names of the network within its own.
    ("IA3", Role::Unsupported, Contain(&[".on_input", ".ia3_l"])),
    // Its attention layers come with a LoRA of their own.
    ("IP-Adapter FaceID", Role::Unsupported, Is(face_id)),
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
    ("LoRA of whole differences (`.diff`)", Role::Unsupported, End(&[".diff", ".diff_b"])),
    ("hypernetwork", Role::Unsupported, Is(hypernetwork)),
    ("AnimateDiff motion module", Role::Unsupported, Contain(&["motion_modules."])),
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
    // Told by modules that no other file has, not by all of them: one that lacks a tensor is a PuLID file that is not whole.
    ("PuLID v1.1", Role::Adapter, Begin(&["id_adapter.id_embedding_mapping.", "id_adapter_attn_layers."])),
    ("PuLID v1", Role::Adapter, Begin(&["id_adapter.body.", "id_adapter_attn_layers."])),
    ("PuLID adapter without an identity encoder", Role::Adapter, Begin(&["id_adapter_attn_layers."])),
    ("PuLID v1.1 by ComfyUI's names", Role::Adapter, Begin(&["image_proj.id_embedding_mapping.", "ip_adapter."])),
    ("PuLID v1 by ComfyUI's names", Role::Adapter, Begin(&["image_proj.mapping_", "ip_adapter."])),
    ("PuLID v1.1's identity encoder", Role::Adapter, Begin(&["image_proj.id_embedding_mapping."])),
    ("PuLID v1's identity encoder", Role::Adapter, Begin(&["image_proj.mapping_patch_0."])),
    ("IP-Adapter", Role::Unsupported, Contain(&["to_k_ip.", "image_proj."])),
    ("PhotoMaker", Role::Unsupported, Begin(&["id_encoder.", "lora_weights."])),
    (
        "T2I-Adapter",
        Role::Unsupported,
        Contain(&["body.0.block1.", "body.0.resnets.", "body.0.in_conv.", "body.0.downsample"]),
    ),
    ("textual inversion", Role::Unsupported, Is(textual_inversion)),
];

/// What is left when it is no UNet.
pub(super) const ALONE: &[(&str, Role, Sign)] = &[
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
        Role::Vae,
        All(&["decoder.mid.block_1.norm1.weight"], &["", "first_stage_model.", "vae."]),
    ),
    ("VAE by diffusers' names", Role::Vae, All(&["decoder.mid_block.resnets.0.norm1.weight"], &["", "vae."])),
    ("VAE's encoder", Role::Vae, All(&["encoder.conv_in.weight", "encoder.conv_out.weight"], &[""])),
    ("tiny autoencoder (TAESD)", Role::Unsupported, Is(tiny_autoencoder)),
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
    ("EVA02-CLIP", Role::VisionTower, All(&["blocks.0.attn.inner_attn_ln.weight", "pos_embed"], &TOWERS)),
    (
        "EVA02-CLIP by timm's names",
        Role::VisionTower,
        All(&["blocks.0.attn.norm.weight", "blocks.0.mlp.fc1_g.weight", "pos_embed"], &TOWERS),
    ),
    (
        "CLIP text encoder",
        Role::TextEncoder,
        All(
            &["embeddings.token_embedding.weight", "final_layer_norm.weight"],
            &["", "text_model.", "clip_l.transformer.text_model.", "clip_g.transformer.text_model."],
        ),
    ),
    (
        "CLIP text encoder by open_clip's names",
        Role::TextEncoder,
        All(
            &["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"],
            &["", "text.", "clip_g.", "clip_l.", "model."],
        ),
    ),
    ("CLIP image encoder", Role::Unsupported, Begin(&["vision_model.embeddings."])),
    ("T5 text encoder", Role::Unsupported, Contain(&["layer.0.SelfAttention.q."])),
    ("BiSeNet", Role::FaceParser, All(&["cp.resnet.conv1.weight", "ffm.convblk.conv.weight"], &["", "module."])),
    (
        "RetinaFace",
        Role::FaceDetector,
        All(&["BboxHead.0.conv1x1.weight", "LandmarkHead.0.conv1x1.weight"], &["", "module."]),
    ),
    ("identity, from pulid embed", Role::Identity, All(&["id_embedding", "uncond_id_embedding"], &[""])),
    ("image upscaler", Role::Unsupported, Contain(&[".RDB1.", ".rdb1.", "model.1.sub.0."])),
];

/// What the names of an EVA02-CLIP's vision tower begin with.
const TOWERS: [&str; 7] =
    ["", "visual.", "visual.trunk.", "trunk.", "module.", "module.visual.", "module.visual.trunk."];

/// An IP-Adapter with LoRA matrices beside its own in the same list of layers.
fn face_id(file: &Checkpoint) -> bool {
    let layer = |key: &str| key.starts_with("ip_adapter.") || key.starts_with("unet.");
    let own = |key: &str| layer(key) && key.contains("to_k_ip.");
    let lora = |key: &str| layer(key) && key.contains("_lora.");
    !file.with_prefix("image_proj.").is_empty() && file.keys().any(own) && file.keys().any(lora)
}

/// Blocks of three convolutions in one sequence: below no name (TAESD's own files), below the side's (one file of both), below the side's
/// `layers` (diffusers' `AutoencoderTiny`).
fn tiny_autoencoder(file: &Checkpoint) -> bool {
    file.keys().any(|key| {
        let key = key.strip_prefix("taesd_").or(key.strip_prefix("vae.")).unwrap_or(key);
        let key = ["decoder.", "encoder."].iter().find_map(|side| key.strip_prefix(side)).unwrap_or(key);
        let key = key.strip_prefix("layers.").unwrap_or(key);
        key.strip_suffix(".conv.0.weight").is_some_and(|block| block.parse::<u8>().is_ok())
    })
}

/// Perceptrons for keys and values, in a list of two below the width of the text or of a layer (`modules/hypernetworks/hypernetwork.py` of
/// A1111's).
fn hypernetwork(file: &Checkpoint) -> bool {
    file.keys().any(|key| {
        let mut parts = key.split('.');
        let width = parts.next().is_some_and(|part| part.parse::<u32>().is_ok_and(|width| width >= 320));
        width && parts.next().is_some_and(|part| part == "0" || part == "1") && parts.next() == Some("linear")
    })
}

/// Rows of a text encoder's table of tokens: below A1111's names, below the encoder's (`clip_l`, `clip_g`), or below the token's own as
/// diffusers saves it.
fn textual_inversion(file: &Checkpoint) -> bool {
    let named = |key: &str| {
        key == "emb_params"
            || key.contains("string_to_param")
            || ["clip_l", "clip_g"].contains(&key)
            || (key.starts_with('<') && key.ends_with('>'))
    };
    // CLIP-L's width, Stable Diffusion 2's, OpenCLIP-bigG's.
    let row = |key: &str| {
        let shape = file.info(key).map(|info| info.shape);
        shape.is_ok_and(|shape| (1..=2).contains(&shape.rank()) && [768, 1024, 1280].contains(&shape.last()))
    };
    // A file of one vector, under whatever name its token has.
    let alone = || file.len() == 1 && file.keys().all(|key| !key.contains('.') && row(key));
    file.keys().any(named) || alone()
}
