//! Which network a file belongs to, told by its tensors' names.

use pulid_checkpoint::{Checkpoint, onnx};

/// Tensors of which a network has all and others have none.
struct Mark {
    family: &'static str,
    keys: &'static [&'static str],
    prefixes: &'static [&'static str],
}

const fn mark(family: &'static str, keys: &'static [&'static str], prefixes: &'static [&'static str]) -> Mark {
    Mark { family, keys, prefixes }
}

/// The families, the more special before the more general.
const MARKS: &[Mark] = &[
    mark(
        "SDXL, a single file",
        &["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.token_embedding.weight"],
        &[""],
    ),
    mark(
        "SDXL, a single file by stable-diffusion.cpp's names",
        &[
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.1.transformer.text_model.embeddings.token_embedding.weight",
        ],
        &[""],
    ),
    mark(
        "UNet by Stability's names",
        &["input_blocks.0.0.weight", "out.2.weight"],
        &["", "model.diffusion_model.", "diffusion_model.", "model."],
    ),
    mark("UNet by diffusers' names", &["conv_in.weight", "time_embedding.linear_1.weight"], &["", "unet.", "model."]),
    mark("VAE by Stability's names", &["decoder.mid.block_1.norm1.weight"], &["", "first_stage_model."]),
    mark("VAE by diffusers' names", &["decoder.mid_block.resnets.0.norm1.weight"], &["", "vae."]),
    mark("PuLID v1.1", &["id_adapter.latents", "id_adapter_attn_layers.1.id_to_k.weight"], &[""]),
    mark("PuLID v1", &["id_adapter.body.0.weight", "id_adapter_attn_layers.1.id_to_k.weight"], &[""]),
    mark("PuLID adapter without an identity encoder", &["id_adapter_attn_layers.1.id_to_k.weight"], &[""]),
    mark(
        "PuLID v1.1's identity encoder",
        &["latents", "proj_out", "id_embedding_mapping.0.weight"],
        &["", "id_adapter."],
    ),
    mark("PuLID v1's identity encoder", &["body.0.weight", "mapping_patch_0.0.weight"], &["", "id_adapter."]),
    mark("EVA02-CLIP", &["blocks.0.attn.inner_attn_ln.weight", "pos_embed"], &["", "visual."]),
    mark("CLIP text encoder", &["embeddings.token_embedding.weight", "final_layer_norm.weight"], &["", "text_model."]),
    mark("BiSeNet", &["cp.resnet.conv1.weight", "ffm.convblk.conv.weight"], &["", "module."]),
    mark("RetinaFace", &["BboxHead.0.conv1x1.weight", "LandmarkHead.0.conv1x1.weight"], &["", "module."]),
    mark("identity, from pulid embed", &["id_embedding", "uncond_id_embedding"], &[""]),
];

/// The family of a checkpoint, `unknown` where it is none of those that are used here.
pub fn family(checkpoint: &Checkpoint) -> &'static str {
    let holds = |mark: &&Mark| {
        mark.prefixes.iter().any(|prefix| mark.keys.iter().all(|key| checkpoint.contains(&format!("{prefix}{key}"))))
    };
    MARKS.iter().find(holds).map_or("unknown", |mark| mark.family)
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
