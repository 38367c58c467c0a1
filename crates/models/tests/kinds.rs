//! What files are told to be by their tensors' names and shapes, and what is said of those that are named in the wrong place.

use pulid_checkpoint::{Checkpoint, MemorySource, safetensors, write_safetensors};
use pulid_models::face::BiSeNet;
use pulid_models::pulid::{IdentityAdapter, PulidVersion, content_sha256, unread_tensors};
use pulid_models::sdxl::{Part, SdxlModel, TextEncoder, Unet};
use pulid_models::{EvaClip, EvaSettings, Precision, Role, kind};
use pulid_tensor::{DType, HostTensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Tensors<'a> = Vec<(String, Vec<usize>)>;

fn tensors(all: &[(String, Vec<usize>)]) -> Vec<(&str, HostTensor)> {
    all.iter().map(|(key, shape)| (key.as_str(), HostTensor::zeros(shape.clone()).into_dtype(DType::F16))).collect()
}

fn file(all: &[(String, Vec<usize>)]) -> Checkpoint {
    let all = tensors(all);
    let bytes = safetensors::to_bytes(all.iter().map(|(key, t)| (*key, t)), &BTreeMap::new()).unwrap();
    Checkpoint::from_source(Arc::new(MemorySource::new("x.safetensors", bytes))).unwrap()
}

fn named(keys: &[&str]) -> Tensors<'static> {
    keys.iter().map(|key| (key.to_string(), vec![1, 1])).collect()
}

/// The telling tensors of a UNet, by Stability's names or diffusers'.
struct Design {
    input: usize,
    base: usize,
    context: usize,
    added: Option<usize>,
    guided: bool,
}

const SDXL: Design = Design { input: 4, base: 320, context: 2048, added: Some(2816), guided: false };

impl Design {
    fn stability(&self, prefix: &str) -> Tensors<'static> {
        let mut all = vec![
            ("input_blocks.0.0.weight", vec![self.base, self.input, 1, 1]),
            ("out.2.weight", vec![4, self.base, 1, 1]),
            ("time_embed.0.weight", vec![2, self.base]),
            ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", vec![2, self.context]),
        ];
        all.extend(self.added.map(|width| ("label_emb.0.0.weight", vec![2, width])));
        all.extend(self.guided.then(|| ("time_embed.cond_proj.weight", vec![2, 256])));
        all.into_iter().map(|(key, shape)| (format!("{prefix}{key}"), shape)).collect()
    }

    fn diffusers(&self) -> Tensors<'static> {
        let mut all = vec![
            ("conv_in.weight", vec![self.base, self.input, 1, 1]),
            ("time_embedding.linear_1.weight", vec![2, self.base]),
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", vec![2, self.context]),
        ];
        all.extend(self.added.map(|width| ("add_embedding.linear_1.weight", vec![2, width])));
        all.extend(self.guided.then(|| ("time_embedding.cond_proj.weight", vec![2, 256])));
        all.into_iter().map(|(key, shape)| (key.to_owned(), shape)).collect()
    }
}

#[test]
fn unets_are_told_by_their_shapes_under_all_names() {
    let none = None;
    for (design, want, role) in [
        (SDXL, "UNet by", Role::Unet),
        (Design { input: 9, ..SDXL }, "inpainting", Role::Unsupported),
        (Design { input: 8, ..SDXL }, "editing", Role::Unsupported),
        (Design { guided: true, ..SDXL }, "LCM", Role::Unsupported),
        (Design { base: 384, context: 1280, added: Some(2560), ..SDXL }, "SDXL's refiner", Role::Unsupported),
        (Design { context: 768, added: none, ..SDXL }, "Stable Diffusion 1", Role::Unsupported),
        (
            Design { context: 768, added: none, input: 9, ..SDXL },
            "Stable Diffusion 1 for inpainting",
            Role::Unsupported,
        ),
        (Design { context: 1024, added: none, ..SDXL }, "Stable Diffusion 2", Role::Unsupported),
        (Design { context: 1024, added: Some(2048), ..SDXL }, "Stable Diffusion 2.1 unCLIP", Role::Unsupported),
        // Small ones of ours, without the embedding of sizes too.
        (Design { base: 96, context: 256, added: Some(352), ..SDXL }, "UNet by", Role::Unet),
        (Design { base: 32, context: 48, added: none, ..SDXL }, "UNet by", Role::Unet),
    ] {
        for prefix in ["", "model.diffusion_model.", "diffusion_model.", "model."] {
            let found = kind(&file(&design.stability(prefix)));
            assert!(found.name.contains(want) && found.role == role, "{prefix}: {found:?} for {want}");
        }
        let found = kind(&file(&design.diffusers()));
        assert!(found.name.contains(want) && found.role == role, "{found:?} for {want}");
        // In a whole model.
        let mut whole = design.stability("model.diffusion_model.");
        whole.extend(named(&["first_stage_model.decoder.conv_in.weight"]));
        let found = kind(&file(&whole));
        let (want, role) = if role == Role::Unet { ("SDXL, a single file", Role::Model) } else { (want, role) };
        assert!(found.name.contains(want) && found.role == role, "whole: {found:?}");
        whole.extend(named(&["lora_unet_something.lora_up.weight"]));
        assert_eq!(kind(&file(&whole)).role == Role::Model, role == Role::Model, "a LoRA's leftover");
    }
}

#[test]
fn everything_else_is_told_by_its_names() {
    for (keys, want, role) in [
        (&["lora_unet_input_blocks_4_1_proj_in.lora_up.weight"][..], "LoRA", Role::Unsupported),
        (&["unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"], "LoRA", Role::Unsupported),
        (&["lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"], "LoRA", Role::Unsupported),
        (
            &["conv_in.weight", "time_embedding.linear_1.weight", "controlnet_cond_embedding.conv_in.weight"],
            "ControlNet",
            Role::Unsupported,
        ),
        (
            &["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
            "ControlNet",
            Role::Unsupported,
        ),
        (
            &["input_blocks.0.0.weight", "zero_convs.0.0.weight", "input_hint_block.0.weight"],
            "ControlNet",
            Role::Unsupported,
        ),
        (&["adapter.body.0.resnets.0.block1.weight"], "T2I-Adapter", Role::Unsupported),
        (&["conv_in.weight", "body.0.block1.weight"], "T2I-Adapter", Role::Unsupported),
        (
            &["image_proj.proj.weight", "image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter",
            Role::Unsupported,
        ),
        (
            &["image_proj.latents", "image_proj.proj_in.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter",
            Role::Unsupported,
        ),
        (
            &["image_proj.id_embedding_mapping.0.weight", "image_proj.latents", "ip_adapter.1.to_k_ip.weight"],
            "PuLID v1.1 by ComfyUI",
            Role::Adapter,
        ),
        (
            &["image_proj.body.0.weight", "image_proj.mapping_0.0.weight", "ip_adapter.1.to_k_ip.weight"],
            "PuLID v1 by ComfyUI",
            Role::Adapter,
        ),
        (
            &["id_adapter.body.0.weight", "id_adapter.mapping_patch_0.0.weight"],
            "PuLID v1's identity encoder",
            Role::Adapter,
        ),
        (&["pulid_ca.0.to_q.weight", "pulid_encoder.latents"], "PuLID for FLUX", Role::Unsupported),
        (&["clip_g", "clip_l"], "textual inversion", Role::Unsupported),
        (&["emb_params"], "textual inversion", Role::Unsupported),
        (&["double_blocks.0.img_attn.qkv.weight"], "FLUX", Role::Unsupported),
        (&["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX", Role::Unsupported),
        (&["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "FLUX", Role::Unsupported),
        (&["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3", Role::Unsupported),
        (
            &["transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight"],
            "Stable Diffusion 3",
            Role::Unsupported,
        ),
        (&["adaln_single.linear.weight"], "PixArt", Role::Unsupported),
        (&["joint_transformer_blocks.0.attn.to_q.weight"], "AuraFlow", Role::Unsupported),
        (&["clip_txt_mapper.weight"], "Stable Cascade", Role::Unsupported),
        (&["blocks.0.cross_attn.norm_k.weight", "patch_embedding.weight"], "Wan", Role::Unsupported),
        (&["first_stage_model.decoder.mid.block_1.norm1.weight"], "VAE", Role::Vae),
        (&["decoder.mid_block.resnets.0.norm1.weight"], "VAE by diffusers' names", Role::Vae),
        (
            &["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"],
            "CLIP text encoder",
            Role::TextEncoder,
        ),
        (
            &["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"],
            "CLIP text encoder by open_clip",
            Role::TextEncoder,
        ),
        (&["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5", Role::Unsupported),
        (
            &[
                "visual.trunk.blocks.0.attn.norm.weight",
                "visual.trunk.blocks.0.mlp.fc1_g.weight",
                "visual.trunk.pos_embed",
            ],
            "EVA02-CLIP by timm",
            Role::VisionTower,
        ),
        (
            &["module.visual.blocks.0.attn.inner_attn_ln.weight", "module.visual.pos_embed"],
            "EVA02-CLIP",
            Role::VisionTower,
        ),
        // `AutoencoderTiny.save_pretrained`, and TAESD's own files.
        (&["decoder.layers.2.conv.0.weight", "encoder.layers.1.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["decoder.layers.0.weight", "decoder.layers.2.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["1.weight", "3.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["0.weight", "1.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["decoder.1.weight", "decoder.3.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["decoder.layers.3.conv.0.weight"], "TAESD", Role::Unsupported),
        (&["taesd_encoder.1.conv.0.weight"], "TAESD", Role::Unsupported),
        (
            &["image_proj.proj.0.weight", "ip_adapter.0.to_q_lora.down.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter FaceID",
            Role::Unsupported,
        ),
        (
            &["image_proj.proj.0.weight", "ip_adapter.0.to_q_lora.lora_down.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter FaceID",
            Role::Unsupported,
        ),
        (&["down_blocks.0.motion_modules.0.norm.weight"], "AnimateDiff", Role::Unsupported),
        (&["768.0.linear.0.weight", "768.1.linear.0.weight"], "hypernetwork", Role::Unsupported),
        (&["0.0.linear.0.weight"], "unknown", Role::Unknown),
        (&["lora_unet_mid_block_attentions_0_proj_in.on_input"], "IA3", Role::Unsupported),
        (
            &["diffusion_model.input_blocks.0.0.diff", "diffusion_model.input_blocks.0.0.diff_b"],
            "LoRA",
            Role::Unsupported,
        ),
        (&["<cat-toy>"], "textual inversion", Role::Unsupported),
        (&["clip_g"], "textual inversion", Role::Unsupported),
        // PuLID files that lack a tensor are no IP-Adapters.
        (
            &["image_proj.mapping_0.0.weight", "image_proj.id_embedding_mapping.1.bias", "ip_adapter.3.to_k_ip.weight"],
            "PuLID v1.1 by ComfyUI",
            Role::Adapter,
        ),
        (
            &["image_proj.mapping_0.0.weight", "image_proj.body.1.bias", "ip_adapter.3.to_k_ip.weight"],
            "PuLID v1 by ComfyUI",
            Role::Adapter,
        ),
        (
            &["id_adapter.id_embedding_mapping.1.bias", "id_adapter_attn_layers.3.id_to_k.weight"],
            "PuLID v1.1",
            Role::Adapter,
        ),
        (
            &["image_proj.latents", "image_proj.proj_in.weight", "ip_adapter.1.to_k_ip.weight"],
            "IP-Adapter",
            Role::Unsupported,
        ),
        (&["a", "b"], "unknown", Role::Unknown),
        (&[], "empty", Role::Unsupported),
    ] {
        let found = kind(&file(&named(keys)));
        assert!(found.name.contains(want) && found.role == role, "{keys:?}: {found:?}");
    }
}

#[test]
fn shapes_tell_what_names_alone_do_not() {
    let key = "decoder.conv_in.weight";
    for (prefix, block) in
        [("", "decoder.mid_block.resnets.0.norm1.weight"), ("vae.", "decoder.mid.block_1.norm1.weight")]
    {
        let vae = |channels| {
            let mut all = named(&[&format!("{prefix}{block}")]);
            all.push((format!("{prefix}{key}"), vec![2, channels, 3, 3]));
            kind(&file(&all))
        };
        assert_eq!(vae(4).role, Role::Vae);
        let found = vae(16);
        assert_eq!(found.role, Role::Unsupported);
        assert!(found.name.contains("16 latent channels") && found.name.contains("FLUX"), "{found:?}");
    }
    // As diffusers saves a token: a vector under the token's name, here one without brackets.
    for (shape, want) in [(vec![768], "textual inversion"), (vec![2, 1280], "textual inversion"), (vec![7], "unknown")]
    {
        assert_eq!(kind(&file(&[("cat".to_owned(), shape)])).name, want);
    }
    let mut class = Design { context: 1024, added: None, ..SDXL }.diffusers();
    class.push(("class_embedding.linear_1.weight".into(), vec![2, 2048]));
    assert!(kind(&file(&class)).name.contains("unCLIP"));
    for (key, want) in [
        ("class_embedding.linear_1.weight", "`class_embedding`"),
        ("class_embedding.weight", "`class_embedding`"),
        ("position_net.linears.0.weight", "GLIGEN"),
        ("add_embedding.image_norm.weight", "embedding of an image"),
        ("encoder_hid_proj.image_embeds.weight", "`encoder_hid_proj`"),
    ] {
        let mut unet = SDXL.diffusers();
        unet.push((key.into(), vec![2, 256]));
        let found = kind(&file(&unet));
        assert!(found.name.contains(want) && found.role == Role::Unsupported, "{key}: {found:?}");
        // In a whole model.
        unet.iter_mut().for_each(|(key, _)| key.insert_str(0, "unet."));
        unet.extend(named(&["vae.decoder.conv_in.weight"]));
        let found = kind(&file(&unet));
        assert!(found.name.contains(want) && found.role == Role::Unsupported, "whole, {key}: {found:?}");
    }
    let mut kolors = SDXL.diffusers();
    kolors.push(("encoder_hid_proj.weight".into(), vec![2048, 4096]));
    let found = kind(&file(&kolors));
    assert!(found.name.contains("Kolors") && found.role == Role::Unsupported, "{found:?}");
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(path)
}

#[test]
fn a_pipeline_named_as_a_unet_gives_its_unet() {
    let base = || SdxlModel::open(golden("pipeline/model")).unwrap();
    let found = |model: SdxlModel| (model.other_unet().map(Path::to_owned), model.scheduler_file());
    let (pipeline, part) = (golden("pipeline/model"), golden("pipeline/model/unet"));
    assert_eq!(found(base().with_unet(&pipeline)), found(base().with_unet(&part)));
    assert_eq!(base().with_unet(&pipeline).other_unet(), Some(part.as_path()));
    base().with_unet(&pipeline).unet(Precision::F32).unwrap();
}

#[test]
fn what_is_named_in_the_wrong_place_is_refused_with_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, all: &[(String, Vec<usize>)]| {
        let path = folder.path().join(name);
        let all = tensors(all);
        write_safetensors(&path, all.iter().map(|(key, t)| (*key, t)), &BTreeMap::new()).unwrap();
        path
    };
    let lcm = Design { guided: true, ..SDXL };
    let inpainting = Design { input: 9, ..SDXL };
    let flux = named(&["pulid_ca.0.to_q.weight"]);
    let lora = named(&["lora_unet_mid_block_1_proj_in.lora_down.weight"]);
    let vae = golden("pipeline/model/vae/diffusion_pytorch_model.safetensors");
    let unet = golden("pipeline/model/unet/diffusion_pytorch_model.safetensors");
    let pulid = golden("../../models/mini/pulid_v1.1.safetensors");

    let as_unet = |path: &Path| {
        let over = SdxlModel::open(golden("pipeline/model")).unwrap().with_unet(path).unet(Precision::F32).map(drop);
        let alone = Unet::open(path, Precision::F32).map(drop).unwrap_err().to_string();
        let over = over.unwrap_err().to_string();
        assert!(over.contains(&path.display().to_string()), "{over}");
        [over, alone]
    };
    for (path, parts) in [
        (save("lcm.safetensors", &lcm.diffusers()), ["LCM", "cond_proj", "not supported"]),
        (save("lcm-2.safetensors", &lcm.stability("")), ["LCM", "cond_proj", "not supported"]),
        (save("inpainting.safetensors", &inpainting.diffusers()), ["inpainting", "9 input channels", "not supported"]),
        (save("lora.safetensors", &lora), ["LoRA", "not an SDXL UNet", "not supported"]),
        (vae.clone(), ["VAE by diffusers' names", "not an SDXL UNet", "a part of a model"]),
        (pulid.clone(), ["PuLID v1.1", "not an SDXL UNet", "as `adapter`"]),
    ] {
        for message in as_unet(&path) {
            parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
        }
    }
    let as_model = |path: &Path| SdxlModel::open(path).map(drop).unwrap_err().to_string();
    for (path, parts) in [
        (save("flux.safetensors", &named(&["model.diffusion_model.double_blocks.0.a"])), ["FLUX", "not supported"]),
        (
            save("sd1.safetensors", &Design { context: 768, added: None, ..SDXL }.stability("model.diffusion_model.")),
            ["Stable Diffusion 1", "not supported"],
        ),
        (pulid, ["PuLID v1.1", "as `adapter`"]),
        (unet.clone(), ["is no SDXL in one file", "as `unet`"]),
        (vae, ["is not an SDXL in one file but this: VAE", "VAE by diffusers' names"]),
        (golden("pipeline/model/identity.safetensors"), ["identity", "as `identity`"]),
    ] {
        let message = as_model(&path);
        parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
    }
    let as_adapter = |path: &Path| {
        IdentityAdapter::new(&Checkpoint::open(path).unwrap(), Precision::F32).map(drop).unwrap_err().to_string()
    };
    for (path, parts) in [
        (save("pulid_flux.safetensors", &flux), ["PuLID for FLUX", "not supported"]),
        (unet, ["UNet by diffusers' names", "as `unet`"]),
        (
            save("ip.safetensors", &named(&["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"])),
            ["IP-Adapter", "not supported"],
        ),
    ] {
        let message = as_adapter(&path);
        parts.iter().for_each(|part| assert!(message.contains(part), "{part}: {message}"));
    }
    // A folder says of itself what it is.
    std::fs::create_dir_all(folder.path().join("pipe/transformer")).unwrap();
    std::fs::write(folder.path().join("pipe/model_index.json"), r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    let message = as_model(&folder.path().join("pipe"));
    assert!(message.contains("FluxPipeline"), "{message}");
}

/// A copy of the small model's folder in which `change` has changed the tensors of some part.
fn changed(folder: &Path, part: &str, change: impl FnOnce(&mut BTreeMap<String, HostTensor>)) -> PathBuf {
    let model = folder.join("model");
    copy(&golden("pipeline/model"), &model);
    let found = Checkpoint::open(model.join(part)).unwrap();
    let mut all = found.keys().map(|key| (key.to_owned(), found.tensor(key).unwrap())).collect();
    change(&mut all);
    let name = std::fs::read_dir(model.join(part)).unwrap().map(|entry| entry.unwrap().path());
    let path = name.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    write_safetensors(&path, all.iter().map(|(key, tensor)| (key.as_str(), tensor)), &BTreeMap::new()).unwrap();
    model
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => assert!(std::fs::copy(&path, target).is_ok()),
        }
    }
}

#[test]
fn weights_within_a_network_that_it_is_not_built_with_are_refused() {
    let ones = HostTensor::from_fn([2, 2], |_| 1.0);
    let examine = |part: &str, key: &str, tensor: HostTensor| {
        let folder = tempfile::tempdir().unwrap();
        let model = changed(folder.path(), part, |all| {
            all.insert(key.into(), tensor);
        });
        SdxlModel::open(model)
            .unwrap()
            .examine()
            .map(|unread| unread.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    for (part, network, key) in [
        ("unet", "UNet", "down_blocks.1.attentions.0.foo.weight"),
        ("unet", "UNet", "down_blocks.1.attentions.0.transformer_blocks.0.attn3.to_k.weight"),
        ("unet", "UNet", "mid_block.attentions.0.transformer_blocks.0.norm4.weight"),
        ("unet", "UNet", "time_embedding.linear_3.weight"),
        ("vae", "VAE", "decoder.up_blocks.0.resnets.0.norm3.weight"),
        ("text_encoder", "first text encoder", "text_model.encoder.layers.0.self_attn.q_norm.weight"),
        ("text_encoder_2", "second text encoder", "text_model.encoder.layers.9.layer_norm1.weight"),
    ] {
        let message = examine(part, key, ones.clone()).unwrap_err().to_string();
        for part in [key, network, "1 weight within it", "another image", part] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    // What changes nothing, and what belongs to no module.
    for (part, key, tensor, noted) in [
        ("unet", "down_blocks.1.attentions.0.proj_in.alpha", ones.clone(), false),
        ("unet", "adapter.weight", ones.clone(), true),
        ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.bias", HostTensor::zeros([2]), true),
        ("unet", "mid_block.steps", HostTensor::from_u32([1], vec![7]).unwrap(), true),
        ("vae", "encoder.extra.weight", ones.clone(), false),
        ("text_encoder", "text_projection.weight", ones.clone(), false),
        ("text_encoder", "visual_projection.weight", ones.clone(), true),
        ("text_encoder", "vision_model.embeddings.position_ids", ones.clone(), false),
    ] {
        let notes = examine(part, key, tensor).unwrap();
        assert_eq!(notes.iter().any(|note| note.contains(key)), noted, "{key}: {notes:?}");
        assert_eq!(notes.len(), usize::from(noted), "{key}: {notes:?}");
    }
    // What is harmless makes no module of what is beside it.
    let folder = tempfile::tempdir().unwrap();
    let whole_clip = changed(folder.path(), "text_encoder", |all| {
        for key in ["vision_model.embeddings.position_ids", "vision_model.post_layernorm.weight"] {
            all.insert(key.into(), ones.clone());
        }
    });
    assert_eq!(SdxlModel::open(whole_clip).unwrap().examine().unwrap().len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let many = |all: &mut BTreeMap<String, HostTensor>| {
        (0..5).for_each(|i| drop(all.insert(format!("mid_block.extra.{i}.weight"), ones.clone())));
    };
    let message = SdxlModel::open(changed(folder.path(), "unet", many)).unwrap().examine().unwrap_err().to_string();
    assert!(
        message.contains("5 weights within it") && message.contains("`mid_block.extra.2.weight`, ..."),
        "{message}"
    );
    // By Stability's names too, in a whole file.
    let whole = Checkpoint::open(golden("single-file/sdxl.safetensors")).unwrap();
    let mut all: Vec<_> = whole.keys().map(|key| (key.to_owned(), whole.tensor(key).unwrap())).collect();
    all.push(("model.diffusion_model.input_blocks.1.0.gate.weight".into(), ones.clone()));
    let path = folder.path().join("whole.safetensors");
    write_safetensors(&path, all.iter().map(|(key, t)| (key.as_str(), t)), &BTreeMap::new()).unwrap();
    let model = SdxlModel::open(&path).unwrap().with_config(golden("pipeline/model")).unwrap();
    let message = model.examine().unwrap_err().to_string();
    assert!(message.contains("`input_blocks.1.0.gate.weight`") && message.contains("whole.safetensors"), "{message}");
}

#[test]
fn exchanged_text_encoders_are_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(&golden("pipeline/model"), &model);
    let error =
        |which| SdxlModel::open(&model).unwrap().text_encoder(which, Precision::F32).map(drop).unwrap_err().to_string();
    let [first, second] = TextEncoder::BOTH.map(|which| model.join(Part::TextEncoder(which).folder()));
    // The folders, then the weights alone.
    for name in ["", "model.safetensors"] {
        let [a, b, c] = [first.join(name), second.join(name), folder.path().join("aside")];
        let exchange = || {
            std::fs::rename(&a, &c).unwrap();
            std::fs::rename(&b, &a).unwrap();
            std::fs::rename(&c, &b).unwrap();
        };
        exchange();
        for which in TextEncoder::BOTH {
            let message = error(which);
            for part in
                ["two text encoders are swapped", "in text_encoder", "CLIP-L", "OpenCLIP-bigG", "exchange the two"]
            {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
        exchange();
        for which in TextEncoder::BOTH {
            SdxlModel::open(&model).unwrap().text_encoder(which, Precision::F32).unwrap();
        }
    }
    // One of SDXL's own in the place of the other, which is right: told by its width.
    let wide = |width: usize, projects: bool| {
        let mut all = vec![
            ("text_model.embeddings.token_embedding.weight".to_owned(), vec![1, width]),
            ("text_model.final_layer_norm.weight".to_owned(), vec![width]),
        ];
        all.extend(projects.then(|| ("text_projection.weight".to_owned(), vec![1, width])));
        all
    };
    for (place, tensors_of, which, part) in [
        (&second, wide(768, false), TextEncoder::Second, "in text_encoder_2/ lies the first text encoder"),
        (&second, wide(768, true), TextEncoder::Second, "in text_encoder_2/ lies the first text encoder"),
        (&first, wide(1280, true), TextEncoder::First, "in text_encoder/ lies the second text encoder"),
    ] {
        let path = place.join("model.safetensors");
        let kept = std::fs::read(&path).unwrap();
        let all = tensors(&tensors_of);
        write_safetensors(&path, all.iter().map(|(key, t)| (*key, t)), &BTreeMap::new()).unwrap();
        let message = error(which);
        assert!(message.contains(part) && !message.contains("swapped"), "{part}: {message}");
        std::fs::write(path, kept).unwrap();
    }
}

#[test]
fn the_vae_of_another_model_within_a_whole_file_is_refused() {
    let whole = Checkpoint::open(golden("single-file/sdxl.safetensors")).unwrap();
    let key = "first_stage_model.decoder.conv_in.weight";
    let mut all: BTreeMap<_, _> = whole.keys().map(|key| (key.to_owned(), whole.tensor(key).unwrap())).collect();
    let mut shape = all[key].shape().to_vec();
    shape[1] = 16;
    all.insert(key.into(), HostTensor::zeros(shape));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_safetensors(&path, all.iter().map(|(key, t)| (key.as_str(), t)), &BTreeMap::new()).unwrap();
    let model = SdxlModel::open(&path).unwrap().with_config(golden("pipeline/model")).unwrap();
    let message = model.examine().unwrap_err().to_string();
    for part in ["x.safetensors", "its VAE has 16 latent channels", "FLUX", "SDXL's has 4"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Its UNet is SDXL's.
    SdxlModel::open(golden("pipeline/model")).unwrap().with_unet(&path).unet(Precision::F32).unwrap();
    let found = pulid_models::inspect::Inspection::of(&path).unwrap();
    assert!(found.unsupported && found.problem.unwrap().contains("16 latent channels"));
}

/// What programs put before the names of a model that they wrap, all of them and each module's.
const WRAPPERS: [&str; 4] = ["module.", "state_dict.", "model.", "state_dict.model._orig_mod."];

/// A file's tensors with names changed.
fn renamed(file: &Checkpoint, rename: impl Fn(&str) -> String) -> Checkpoint {
    let all: Vec<_> = file.keys().map(|key| (rename(key), file.tensor(key).unwrap())).collect();
    let bytes = safetensors::to_bytes(all.iter().map(|(key, t)| (key.as_str(), t)), file.metadata()).unwrap();
    Checkpoint::from_source(Arc::new(MemorySource::new("x.safetensors", bytes))).unwrap()
}

#[test]
fn files_that_were_saved_within_a_wrapper_are_what_they_are_without_it() {
    let inner = |key: &str| {
        let (first, rest) = key.split_once('.').unwrap();
        format!("{first}.module.{rest}")
    };
    for (path, version) in [
        ("../../models/mini/pulid_v1.1.safetensors", PulidVersion::V1_1),
        ("pipeline/model/adapter.safetensors", PulidVersion::V1_1),
        ("pipeline/model/adapter_v1.safetensors", PulidVersion::V1),
    ] {
        let file = Checkpoint::open(golden(path)).unwrap();
        let told = PulidVersion::of(&file);
        assert!(told.is_none() || told == Some(version));
        let mut copies: Vec<_> = WRAPPERS.map(|wrapper| renamed(&file, |key| format!("{wrapper}{key}"))).into();
        copies.push(renamed(&file, inner));
        for copy in copies {
            let first = copy.keys().next().unwrap();
            assert_eq!((kind(&copy), PulidVersion::of(&copy)), (kind(&file), told), "{first}");
            assert_eq!(content_sha256(&copy).unwrap(), content_sha256(&file).unwrap(), "{first}");
            assert_eq!(unread_tensors(&copy, None).unwrap(), unread_tensors(&file, None).unwrap(), "{first}");
            let dim = |file| IdentityAdapter::new(file, Precision::F32).unwrap().id_dim().unwrap();
            assert_eq!(dim(&copy), dim(&file), "{first}");
        }
    }
    let tower = Checkpoint::open(golden("../../models/mini/eva_clip.safetensors")).unwrap();
    let parser = Checkpoint::open(golden("../../models/mini/parsing_bisenet.safetensors")).unwrap();
    for wrapper in WRAPPERS {
        let wrapped = |file| renamed(file, |key| format!("{wrapper}{key}"));
        let copy = wrapped(&tower);
        assert_eq!(kind(&copy), kind(&tower), "{wrapper}");
        let settings = EvaSettings { heads: Some(3), pretrained_grid: 8 };
        let unread = EvaClip::new(&copy, Precision::F32, settings).and_then(|tower| tower.unread()).unwrap();
        assert_eq!(unread, [""; 0], "{wrapper}");
        let copy = wrapped(&parser);
        assert_eq!(kind(&copy), kind(&parser), "{wrapper}");
        assert_eq!(BiSeNet::new(&copy, Precision::F32).unwrap().unread().unwrap(), [""; 0], "{wrapper}");
    }
    // UNets and whole models.
    let unet = Checkpoint::open(golden("pipeline/model/unet")).unwrap();
    let whole = Checkpoint::open(golden("single-file/sdxl.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let save = |file: &Checkpoint, name: &str, wrapper: &str| {
        let all: Vec<_> = file.keys().map(|key| (format!("{wrapper}{key}"), file.tensor(key).unwrap())).collect();
        let path = folder.path().join(name);
        write_safetensors(&path, all.iter().map(|(key, t)| (key.as_str(), t)), file.metadata()).unwrap();
        path
    };
    let base = || SdxlModel::open(golden("pipeline/model")).unwrap();
    for wrapper in WRAPPERS {
        let path = save(&unet, "unet.safetensors", wrapper);
        assert_eq!(base().with_unet(path).examine().unwrap(), [], "{wrapper}");
        let path = save(&whole, "whole.safetensors", wrapper);
        let model = SdxlModel::open(path).unwrap().with_config(golden("pipeline/model")).unwrap();
        assert_eq!(model.examine().unwrap(), [], "{wrapper}");
        for part in Part::ALL {
            let names = |file: Checkpoint| file.keys().map(str::to_owned).collect::<Vec<_>>();
            let own = SdxlModel::open(golden("single-file/sdxl.safetensors")).unwrap();
            let own = own.with_config(golden("pipeline/model")).unwrap().part(part).unwrap();
            assert_eq!(names(model.part(part).unwrap().weights), names(own.weights), "{wrapper} {part:?}");
        }
    }
}
