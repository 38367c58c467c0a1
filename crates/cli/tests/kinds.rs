//! Models as they are published and saved: what a file predicts, under which names, and what is no SDXL.

mod support;

use pulid_checkpoint::{Checkpoint, write_safetensors};
use pulid_tensor::HostTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use support::{copy_folder, refuse, repository, succeed, tree};

type Tensors = BTreeMap<String, HostTensor>;

/// Number of the model that it is to be the same as, further tensors, metadata.
type Mark<'a> = (usize, &'a [&'a str], &'a [(&'a str, &'a str)]);

fn golden(path: &str) -> PathBuf {
    repository("tests/goldens").join(path)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// All tensors of a file, in the types in which it has them.
fn tensors(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).unwrap();
    file.keys().map(|key| (key.to_owned(), file.tensor(key).unwrap())).collect()
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    write_safetensors(path, tensors.iter().map(|(key, t)| (key.as_str(), t)), &metadata).unwrap();
}

fn with(tensors: &Tensors, more: &[&str]) -> Tensors {
    // ComfyUI saves its marks without elements.
    let mark = HostTensor::zeros([0]);
    tensors.clone().into_iter().chain(more.iter().map(|key| (key.to_string(), mark.clone()))).collect()
}

/// `pipeline/model`, and what tests change of it, in a folder of their own.
struct Home(tempfile::TempDir);

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

impl Home {
    fn new() -> Self {
        Home(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A copy of the small model's folder.
    fn model(&self, name: &str) -> PathBuf {
        copy_folder(&golden("pipeline/model"), &self.at(name));
        self.at(name)
    }

    fn schedule(&self, model: &Path, change: &[(&str, serde_json::Value)]) {
        let path = model.join("scheduler/scheduler_config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change.iter().for_each(|(key, value)| config[*key] = value.clone());
        std::fs::write(path, config.to_string()).unwrap();
    }

    fn flags<'a>(&self, model: &[&'a str]) -> Vec<&'a str> {
        let common = [
            "generate",
            "--prompt",
            "a portrait",
            "--width",
            "64",
            "--height",
            "64",
            "--steps",
            "3",
            "--guidance",
            "2",
            "--seed",
            "5",
            "--sampler",
            "euler",
            "--no-metadata",
            "--json",
        ];
        [&common[..], model].concat()
    }

    /// The latents that a model makes, and the notes on the way.
    fn make(&self, model: &[&str]) -> (Vec<f32>, Vec<String>) {
        let (image, latents) = (text(&self.at("x.png")), text(&self.at("x.safetensors")));
        let output = ["--output", &image, "--save-latents", &latents];
        let report = succeed(self.0.path(), &[&self.flags(model)[..], &output].concat());
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let notes = report["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect();
        (Checkpoint::open(&latents).unwrap().tensor("latents").unwrap().to_f32_vec(), notes)
    }

    fn latents(&self, model: &[&str]) -> Vec<f32> {
        self.make(model).0
    }

    fn refuse(&self, model: &[&str]) -> String {
        let before = tree(self.0.path());
        let message = refuse(self.0.path(), &self.flags(model));
        assert_eq!(tree(self.0.path()), before);
        assert!(!message.contains("encoding"), "a network ran: {message}");
        message
    }
}

#[test]
fn what_a_file_says_of_its_predictions_holds_wherever_it_lies() {
    let home = Home::new();
    let [noise, velocity, zero] = ["noise", "velocity", "zero"].map(|name| home.model(name));
    home.schedule(&velocity, &[("prediction_type", "v_prediction".into())]);
    home.schedule(&zero, &[("prediction_type", "v_prediction".into()), ("rescale_betas_zero_snr", true.into())]);
    let made = [&noise, &velocity, &zero].map(|model| home.latents(&["--model", &text(model)]));
    assert!(made[0] != made[1] && made[1] != made[2]);

    let whole = tensors(&golden("single-file/sdxl.safetensors"));
    let unet = tensors(&golden("pipeline/model").join(UNET));
    let marks: [Mark<'_>; 6] = [
        (0, &[], &[("modelspec.prediction_type", "epsilon")]),
        (1, &["v_pred"], &[]),
        (1, &[], &[("modelspec.prediction_type", "v")]),
        (1, &[], &[("modelspec.predict_key", "v")]),
        (2, &["v_pred", "ztsnr"], &[]),
        (2, &["ztsnr"], &[("modelspec.predict_key", "v")]),
    ];
    for (want, keys, metadata) in marks {
        let name = format!("{keys:?} {metadata:?}");
        let [file, alone] = ["whole.safetensors", "alone.safetensors"].map(|name| home.at(name));
        write(&file, &with(&whole, keys), metadata);
        write(&alone, &with(&unet, keys), metadata);
        let (file, alone, base) = (text(&file), text(&alone), text(&noise));
        let over = home.make(&["--model", &base, "--unet", &alone]);
        assert!(over.0 == made[want], "--unet {name}");
        assert_eq!(
            over.1.iter().any(|note| note.contains("says of itself that it predicts velocity")),
            want > 0,
            "{name}"
        );
        assert!(home.latents(&["--model", &file, "--config", &base]) == made[want], "--model {name}");
        assert!(home.latents(&["--model", &base, "--unet", &file]) == made[want], "--unet of a whole file {name}");
        // The same without a scheduler.
        let bare = home.model("bare");
        std::fs::remove_dir_all(bare.join("scheduler")).unwrap();
        assert!(home.latents(&["--model", &file, "--config", &text(&bare)]) == made[want], "no scheduler {name}");
        // In a folder of diffusers' layout.
        write(&bare.join(UNET), &with(&unet, keys), metadata);
        assert!(home.latents(&["--model", &text(&bare)]) == made[want], "a folder {name}");
        copy_folder(&golden("pipeline/model/scheduler"), &bare.join("scheduler"));
        assert!(home.latents(&["--model", &text(&bare)]) == made[want], "a folder with a scheduler {name}");
    }
    // A UNet without marks: the scheduler beside it counts, not the base model's.
    let over = |unet: &Path, base: &Path| home.latents(&["--model", &text(base), "--unet", &text(unet)]);
    assert!(over(&zero.join("unet"), &noise) == made[2]);
    assert!(over(&noise.join(UNET), &zero) == made[0]);

    write(&home.at("edm.safetensors"), &with(&unet, &["edm_vpred.sigma_max", "edm_vpred.sigma_min"]), &[]);
    let message = home.refuse(&["--model", &text(&noise), "--unet", &text(&home.at("edm.safetensors"))]);
    assert!(message.contains("EDM") && message.contains("edm.safetensors"), "{message}");
}

/// Keys with their beginning exchanged.
fn renamed(all: &Tensors, from: &str, to: &str) -> Tensors {
    let new = |key: &String| key.strip_prefix(from).map_or(key.clone(), |rest| format!("{to}{rest}"));
    all.iter().map(|(key, tensor)| (new(key), tensor.clone())).collect()
}

#[test]
fn text_encoders_by_other_names_give_the_same_image() {
    let home = Home::new();
    let config = text(&golden("pipeline/model"));
    let whole = tensors(&golden("single-file/sdxl.safetensors"));
    let file = home.at("whole.safetensors");
    let make = |all: &Tensors| {
        write(&file, all, &[]);
        home.make(&["--model", &text(&file), "--config", &config])
    };
    let want = make(&whole).0;

    let (model, projection) = ("conditioner.embedders.1.model.", "conditioner.embedders.1.model.text_projection");
    let parameter = whole[projection].clone();
    let &[rows, columns] = parameter.shape().extents() else { panic!("no matrix") };
    let values = parameter.to_f32_vec();
    let transposed = HostTensor::from_fn([columns, rows], |i| values[(i % rows) * columns + i / rows]);
    // A linear layer's weight among open_clip's names; beside the parameter too.
    let mut linear = whole.clone();
    linear.insert(format!("{projection}.weight"), transposed.clone());
    assert!(make(&linear).0 == want, "both");
    linear.remove(projection);
    assert!(make(&linear).0 == want, "a linear layer's weight");
    assert!(make(&renamed(&whole, model, "clip_g.")).0 == want, "clip_g");
    assert!(make(&renamed(&linear, model, "clip_g.")).0 == want, "clip_g with a linear layer's weight");
    assert!(make(&renamed(&whole, "conditioner.embedders.0.transformer.", "clip_l.transformer.")).0 == want, "clip_l");
    // transformers' names, the projection as either.
    let second: Tensors = tensors(&golden("pipeline/model/text_encoder_2"));
    for prefix in ["conditioner.embedders.1.transformer.", "clip_g.transformer."] {
        let mut all: Tensors = whole.clone().into_iter().filter(|(key, _)| !key.starts_with(model)).collect();
        all.extend(second.iter().map(|(key, t)| (format!("{prefix}{key}"), t.clone())));
        assert!(make(&all).0 == want, "{prefix}");
        all.remove(&format!("{prefix}text_projection.weight")).unwrap();
        all.insert(format!("{prefix}text_projection"), parameter.clone());
        assert!(make(&all).0 == want, "{prefix} with a parameter");
    }
    // open_clip's names in a folder.
    let folder = home.model("folder");
    let own = folder.join("text_encoder_2/model.safetensors");
    let open_clip: Tensors =
        whole.iter().filter_map(|(k, t)| Some((k.strip_prefix(model)?.to_owned(), t.clone()))).collect();
    write(&own, &open_clip, &[]);
    assert!(home.latents(&["--model", &text(&folder)]) == want, "open_clip's in a folder");
    // The first encoder's own projection changes nothing.
    let mut both = whole.clone();
    both.insert("conditioner.embedders.0.transformer.text_projection.weight".into(), transposed);
    assert!(make(&both).0 == want, "the first encoder's projection");

    let mut none = whole.clone();
    none.remove(projection);
    write(&file, &none, &[]);
    let message = home.refuse(&["--model", &text(&file), "--config", &config]);
    assert!(message.contains("text_projection.weight"), "{message}");
}

#[test]
fn what_is_left_out_of_a_file_is_said() {
    let home = Home::new();
    let config = text(&golden("pipeline/model"));
    let whole = tensors(&golden("single-file/sdxl.safetensors"));
    let file = home.at("whole.safetensors");
    let notes = |more: &[&str]| {
        write(&file, &with(&whole, more), &[]);
        let notes = home.make(&["--model", &text(&file), "--config", &config]).1;
        notes.into_iter().filter(|note| note.contains("left out")).collect::<Vec<_>>()
    };
    let harmless = [
        "model_ema.decay",
        "alphas_cumprod",
        "betas",
        "sqrt_alphas_cumprod",
        "denoiser.sigmas",
        "conditioner.embedders.1.model.logit_scale",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "first_stage_model.quant_conv.extra",
        "loss.logvar",
    ];
    assert_eq!(notes(&harmless), Vec::<String>::new());
    for (keys, parts) in [
        (&["ctrl.a", "ctrl.b", "ctrl.c", "ctrl.d"][..], ["4 tensors", "`ctrl.a`, `ctrl.b`, `ctrl.c`, ..."]),
        (
            &["model.diffusion_model.input_blocks.1.0.gate.weight"],
            ["1 tensor of its UNet", "`input_blocks.1.0.gate.weight`"],
        ),
        (&["first_stage_model.decoder.mid.extra.weight"], ["1 tensor of its VAE", "decoder.mid.extra.weight`"]),
        (
            &["conditioner.embedders.1.model.transformer.resblocks.0.ls_1.gamma"],
            ["1 tensor of its second text encoder", "`transformer.resblocks.0.ls_1.gamma`"],
        ),
    ] {
        let found = notes(keys);
        assert_eq!(found.len(), 1, "{found:?}");
        parts.iter().for_each(|part| assert!(found[0].contains(part), "{part}: {found:?}"));
    }
    // So is what a folder's UNet holds.
    let folder = home.model("folder");
    write(&folder.join(UNET), &with(&tensors(&golden("pipeline/model").join(UNET)), &["time_embedding.other"]), &[]);
    let notes = home.make(&["--model", &text(&folder)]).1;
    assert!(
        notes.iter().any(|note| note.contains("1 tensor of its UNet") && note.contains("`time_embedding.other`")),
        "{notes:?}"
    );
}

#[test]
fn files_in_the_wrong_place_are_told_what_they_are() {
    let home = Home::new();
    let model = golden("pipeline/model");
    let base = text(&model);
    let (unet, vae) = (text(&model.join(UNET)), text(&model.join("vae/diffusion_pytorch_model.safetensors")));
    let pulid = text(&repository("models/mini/pulid_v1.1.safetensors"));
    let identity = text(&model.join("identity.safetensors"));
    let guided = home.at("lcm.safetensors");
    let mut lcm = tensors(&model.join(UNET));
    lcm.insert("time_embedding.cond_proj.weight".into(), HostTensor::zeros([64, 16]));
    write(&guided, &lcm, &[]);
    let (empty, cut) = (home.at("empty.safetensors"), home.at("cut.safetensors"));
    write(&empty, &Tensors::new(), &[]);
    let mut comfyui = comfy(&tensors(Path::new(&pulid)));
    comfyui.remove("ip_adapter.1.to_k_ip.weight").unwrap();
    write(&cut, &comfyui, &[]);
    // Files in the place of another.
    let (with_unet, wide) = (home.model("with-unet"), home.model("wide"));
    std::fs::copy(&unet, with_unet.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let mut flux = tensors(Path::new(&vae));
    let first = flux["decoder.conv_in.weight"].shape()[0];
    flux.insert("decoder.conv_in.weight".into(), HostTensor::zeros([first, 16, 3, 3]));
    write(&wide.join("vae/diffusion_pytorch_model.safetensors"), &flux, &[]);
    let tower = repository("models/mini/eva_clip.safetensors");
    let photos = home.at("photos");
    copy_folder(&repository("models/mini/antelopev2"), &photos.join("antelopev2"));
    [
        (&tower, "eva_clip.safetensors"),
        (&tower, "parsing_bisenet.safetensors"),
        (&repository("models/mini/eva_clip.json"), "eva_clip.json"),
        (&repository("models/mini/pulid_v1.1.safetensors"), "pulid_v1.1.safetensors"),
    ]
    .iter()
    .for_each(|(from, name)| assert!(std::fs::copy(from, photos.join(name)).is_ok()));
    let portrait = support::portrait("ada.jpg");
    let adapter = |file| ["--model", &base, "--identity", &identity, "--adapter", file];
    for (flags, parts) in [
        (&["--model", &base, "--unet", &vae][..], ["VAE by diffusers' names", &vae]),
        (&["--model", &base, "--unet", &pulid], ["`--adapter`", "PuLID v1.1"]),
        (&["--model", &base, "--unet", &text(&guided)], ["cond_proj", "LCM"]),
        (&["--model", &pulid], ["`--adapter`", "PuLID v1.1"]),
        (&["--model", &unet], ["`--unet`", "UNet by diffusers' names"]),
        (&["--model", &vae], ["vae/", "VAE by diffusers' names"]),
        (&["--model", &text(&model.join("vae"))], ["below vae/", "VAE by diffusers' names"]),
        (&["--model", &text(&tower)], ["`--models-dir`", "EVA02-CLIP"]),
        (&["--model", &base, "--unet", &text(&empty)], ["holds no tensor", "fetched whole"]),
        (
            &adapter(&text(&cut)),
            [
                "`id_adapter_attn_layers.1.id_to_k.weight`",
                "is missing: this is no PuLID file for SDXL, or not all of one",
            ],
        ),
        (&["--model", &text(&with_unet)], ["vae/", "UNet by diffusers' names"]),
        (&["--model", &text(&wide)], ["16 latent channels", "FLUX"]),
        (&["--model", &base, "--models-dir", &text(&photos), "--id", &portrait], ["parsing_bisenet", "EVA02-CLIP"]),
        (&["--model", &identity], ["`--identity`", "identity"]),
        (&adapter(&unet), ["`--unet`", "UNet by diffusers' names"]),
        (&adapter(&identity), ["`--identity`", "identity"]),
        (&["--model", &base, "--identity", &pulid], ["`--adapter`", "PuLID v1.1"]),
    ] {
        let message = home.refuse(flags);
        parts.iter().for_each(|part| assert!(message.contains(part), "{flags:?}: {part}: {message}"));
    }
    let inspect = |path: &str| succeed_plain(&["inspect", path]);
    for (path, line) in [
        (unet.as_str(), "named as   --unet"),
        (&base, "named as   --model"),
        (&pulid, "named as   --adapter"),
        (&text(&guided), "named as   nothing: such files are not supported"),
    ] {
        let shown = inspect(path);
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
}

#[test]
fn every_tensor_without_a_use_is_named() {
    let home = Home::new();
    let mini = text(&repository("models/mini/sdxl"));
    let photos = home.at("photos");
    copy_folder(&repository("models/mini/antelopev2"), &photos.join("antelopev2"));
    std::fs::copy(repository("models/mini/eva_clip.json"), photos.join("eva_clip.json")).unwrap();
    let add = |from: &Path, to: &Path, more: &[(&str, HostTensor)]| {
        let all = tensors(from).into_iter().chain(more.iter().map(|(key, tensor)| (key.to_string(), tensor.clone())));
        write(to, &all.collect(), &[]);
    };
    let one = || HostTensor::from_fn([192], |_| 1.0);
    let zeros = || HostTensor::zeros([192]);
    let pulid = repository("models/mini/pulid_v1.1.safetensors");
    let tower = repository("models/mini/eva_clip.safetensors");
    assert_eq!(Checkpoint::open(&tower).unwrap().info("visual.blocks.0.attn.q_bias").unwrap().shape.extents(), [192]);
    add(
        &tower,
        &photos.join("eva_clip.safetensors"),
        &[
            ("visual.foo", one()),
            ("visual.blocks.0.attn.k_bias", one()),
            ("visual.blocks.1.attn.k_bias", zeros()),
            ("visual.rope.freqs_cos", one()),
            ("text.positional_embedding", one()),
            ("logit_scale", one()),
            ("audio.proj", one()),
        ],
    );
    add(
        &repository("models/mini/parsing_bisenet.safetensors"),
        &photos.join("parsing_bisenet.safetensors"),
        &[("cp.other.weight", one()), ("cp.arm16.bn_atten.num_batches_tracked", one())],
    );
    let adapter = photos.join("pulid_v1.1.safetensors");
    add(
        &pulid,
        &adapter,
        &[("id_adapter_attn_layers.998.id_to_k.weight", one()), ("id_adapter.extra", one()), ("elsewhere", one())],
    );
    let person = home.at("person.safetensors");
    let embed =
        ["embed", &support::portrait("ada.jpg"), "--models-dir", &text(&photos), "--output", &text(&person), "--json"];
    let report: serde_json::Value = serde_json::from_str(&succeed(home.0.path(), &embed)).unwrap();
    let found: Vec<_> =
        report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect();
    let expect = |found: &[String], notes: &[&str]| {
        let found: Vec<_> = found.iter().filter(|note| note.contains("not known and left out")).collect();
        assert_eq!(found.len(), notes.len(), "{found:?}");
        for (found, note) in found.iter().zip(notes) {
            assert!(found.ends_with(note), "{note}: {found}");
        }
    };
    expect(
        &found,
        &[
            "pulid_v1.1.safetensors: 2 tensors are not known and left out: `elsewhere`, `id_adapter.extra`",
            "parsing_bisenet.safetensors: 1 tensor is not known and left out: `cp.other.weight`",
            "eva_clip.safetensors: 3 tensors are not known and left out: `audio.proj`, `visual.blocks.0.attn.k_bias`, `visual.foo`",
        ],
    );
    let other = home.at("other.safetensors");
    add(&person, &other, &[("pose", one())]);
    let notes = home.make(&["--model", &mini, "--identity", &text(&other), "--adapter", &text(&adapter)]).1;
    expect(
        &notes,
        &[
            "pulid_v1.1.safetensors: 3 tensors are not known and left out: `elsewhere`, `id_adapter.extra`, \
         `id_adapter_attn_layers.998.id_to_k.weight`",
            "other.safetensors: 1 tensor is not known and left out: `pose`",
        ],
    );
    // The published files as they are have none.
    let notes = home.make(&["--model", &mini, "--identity", &text(&person), "--adapter", &text(&pulid)]).1;
    expect(&notes, &[]);
}

/// A command that takes no device.
fn succeed_plain(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = support::program(folder.path(), arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A PuLID file by the names of ComfyUI's.
fn comfy(all: &Tensors) -> Tensors {
    let new = |key: &str| match key.strip_prefix("id_adapter_attn_layers.") {
        Some(layer) => {
            let layer = layer.replace("id_to_k", "to_k_ip").replace("id_to_v", "to_v_ip");
            format!("ip_adapter.{layer}")
        }
        None => key.replacen("id_adapter.", "image_proj.", 1),
    };
    all.iter().map(|(key, tensor)| (new(key), tensor.clone())).collect()
}

#[test]
fn comfyui_s_pulid_files_are_the_official_ones() {
    let home = Home::new();
    let ours = home.at("comfy.safetensors");
    let portrait = support::portrait("ada.jpg");
    for official in [repository("models/mini/pulid_v1.1.safetensors"), golden("identity/pulid_v1.safetensors")] {
        let renamed = comfy(&tensors(&official));
        assert!(renamed.keys().all(|key| key.starts_with("image_proj.") || key.starts_with("ip_adapter.")));
        write(&ours, &renamed, &[]);
        let embed = |adapter: &Path| {
            let output = text(&home.at("person.safetensors"));
            succeed(home.0.path(), &["embed", &portrait, "--adapter", &text(adapter), "--output", &output]);
            tensors(Path::new(&output))
        };
        assert_eq!(embed(&official), embed(&ours), "{}", official.display());
    }
    let model = golden("pipeline/model");
    for (adapter, person) in
        [("adapter.safetensors", "identity.safetensors"), ("adapter_v1.safetensors", "identity_v1.safetensors")]
    {
        let official = model.join(adapter);
        write(&ours, &comfy(&tensors(&official)), &[]);
        let made = |adapter: &Path| {
            home.latents(&[
                "--model",
                &text(&model),
                "--identity",
                &text(&model.join(person)),
                "--adapter",
                &text(adapter),
            ])
        };
        assert!(made(&official) == made(&ours), "{adapter}");
    }
}

#[test]
fn an_identity_of_another_adapter_and_photos_of_two_people_are_noted() {
    let home = Home::new();
    let folder = home.0.path();
    let own = repository("models/mini/pulid_v1.1.safetensors");
    let person = text(&home.at("person.safetensors"));
    let [ada, omar] = ["ada.jpg", "omar.jpg"].map(support::portrait);
    let embed = |more: &[&str]| {
        let report = succeed(folder, &[&["embed", "--json", "--output", &person][..], more].concat());
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        report["notes"].to_string()
    };
    let note = embed(&[&ada, &omar]);
    assert!(note.contains("ada.jpg and omar.jpg (cosine ") && note.contains("`--id-mix`"), "{note}");
    let v1 = text(&golden("identity/pulid_v1.safetensors"));
    assert_eq!(embed(&[&ada, &omar, "--adapter", &v1, "--id-mix"]), "[]");
    assert_eq!(embed(&[&ada, &ada]), "[]");

    let mini = text(&repository("models/mini/sdxl"));
    let other = home.at("other.safetensors");
    let mut changed = tensors(&own);
    let first = changed.values_mut().next().unwrap();
    *first = HostTensor::from_fn(first.shape().clone(), |_| 0.5);
    write(&other, &changed, &[]);
    let notes = |adapter: &Path| home.make(&["--model", &mini, "--identity", &person, "--adapter", &text(adapter)]).1;
    let about = |notes: &[String]| notes.iter().find(|note| note.contains("was made with")).cloned();
    assert_eq!(about(&notes(&own)), None);
    let note = about(&notes(&other)).expect("a note");
    for part in [
        "person.safetensors was made with pulid_v1.1.safetensors (SHA-256 ",
        "other.safetensors (SHA-256 ",
        "`--adapter`",
    ] {
        assert!(note.contains(part), "{part}: {note}");
    }
    // The same adapter is itself in another file and under other names; an identity of before knows it by its file alone.
    let saved = home.at("saved.safetensors");
    write(&saved, &comfy(&tensors(&own)), &[("made", "elsewhere")]);
    assert_eq!(about(&notes(&saved)), None);
    let older = home.at("older.safetensors");
    let metadata = Checkpoint::open(&person).unwrap().metadata().clone();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let kept: Vec<_> = metadata.iter().copied().filter(|(key, _)| *key != "adapter_content_sha256").collect();
    assert_eq!(kept.len() + 1, metadata.len());
    write(&older, &tensors(Path::new(&person)), &kept);
    let with_older = |adapter: &Path| {
        about(&home.make(&["--model", &mini, "--identity", &text(&older), "--adapter", &text(adapter)]).1)
    };
    assert_eq!(with_older(&own), None);
    assert!(with_older(&saved).is_some());
    // Tokens that this adapter's encoder never gives, and tokens of another width.
    let layers = tensors(&own).into_iter().filter(|(key, _)| key.starts_with("id_adapter_attn_layers."));
    let first = home.at("pulid_v1.safetensors");
    write(&first, &tensors(Path::new(&v1)).into_iter().chain(layers).collect(), &[]);
    let message = home.refuse(&["--model", &mini, "--identity", &person, "--adapter", &text(&first)]);
    assert!(message.contains("pulid_v1.1.safetensors") && message.contains("pulid_v1.safetensors"), "{message}");
    let narrow = text(&golden("pipeline/model/identity.safetensors"));
    let message = home.refuse(&["--model", &mini, "--identity", &narrow, "--adapter", &text(&own)]);
    assert!(message.contains("wide") && message.contains("identity.safetensors"), "{message}");
}

/// The parameters in the report of an image, made with nothing said of sampler, steps and guidance.
fn chosen(home: &Home, more: &[&str]) -> (String, Vec<String>) {
    let image = text(&home.at("x.png"));
    let common =
        ["generate", "--prompt", "x", "--width", "64", "--height", "64", "--seed", "5", "--json", "--output", &image];
    let report = succeed(home.0.path(), &[&common[..], more].concat());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let notes = report["notes"].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect();
    (report["parameters"].as_str().unwrap().to_owned(), notes)
}

#[test]
fn a_model_s_scheduler_is_its_default_sampler() {
    let home = Home::new();
    let model = home.model("model");
    let at = text(&model);
    // As `DPMSolverMultistepScheduler.save_pretrained` writes it.
    let saved = r#"{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "final_sigmas_type": "sigma_min", "lambda_min_clipped": -Infinity,
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "solver_order": 2, "timestep_spacing": "trailing"}"#;
    std::fs::write(model.join("scheduler/scheduler_config.json"), saved).unwrap();
    let (parameters, notes) = chosen(&home, &["--model", &at, "--steps", "3"]);
    for part in ["Sampler: DPM++ 2M,", "Schedule type: SGM Uniform"] {
        assert!(parameters.contains(part), "{part}: {parameters}");
    }
    assert!(notes.iter().all(|note| !note.contains("scheduler")), "{notes:?}");
    // SDXL's own, and what diffusers makes of Karras' levels.
    for (class, change, sampler, schedule) in [
        ("EulerDiscreteScheduler", ("timestep_spacing", "leading".into()), "Euler", "DDIM"),
        ("EulerDiscreteScheduler", ("timestep_spacing", "linspace".into()), "Euler", "Normal"),
        ("DPMSolverMultistepScheduler", ("use_karras_sigmas", true.into()), "DPM++ 2M", "Karras"),
        ("DDIMScheduler", ("set_alpha_to_one", false.into()), "DDIM", "DDIM"),
        ("DDIMParallelScheduler", ("timestep_spacing", "trailing".into()), "DDIM", "SGM Uniform"),
        ("EulerDiscreteScheduler", ("use_beta_sigmas", true.into()), "Euler", "Beta"),
        ("DPMSolverMultistepScheduler", ("use_exponential_sigmas", true.into()), "DPM++ 2M", "Exponential"),
    ] {
        let name = format!("{class} {}", change.0);
        home.schedule(&home.model(&name), &[("_class_name", class.into()), change]);
        let (parameters, notes) = chosen(&home, &["--model", &text(&home.at(&name)), "--steps", "3"]);
        assert!(
            parameters.contains(&format!("Sampler: {sampler}, Schedule type: {schedule},")),
            "{name}: {parameters}"
        );
        assert_eq!(notes, [""; 0], "{name}");
    }
    // A person's sampler brings its own spacing.
    let (parameters, _) = chosen(&home, &["--model", &at, "--steps", "3", "--sampler", "dpmpp_sde"]);
    assert!(parameters.contains("Sampler: DPM++ SDE,") && parameters.contains("Schedule type: Karras"), "{parameters}");
    // The model's own defaults come before its scheduler.
    std::fs::write(model.join("generation_defaults.json"), r#"{"sampler": "euler", "steps": 2, "guidance_scale": 1}"#)
        .unwrap();
    let (parameters, _) = chosen(&home, &["--model", &at]);
    assert!(parameters.contains("Sampler: Euler,"), "{parameters}");
    std::fs::remove_file(model.join("generation_defaults.json")).unwrap();
    home.schedule(&home.model("heun"), &[("_class_name", "HeunDiscreteScheduler".into())]);
    let (parameters, notes) = chosen(&home, &["--model", &text(&home.at("heun")), "--steps", "3"]);
    assert!(parameters.contains("Sampler: DPM++ 2M,") && parameters.contains("Schedule type: Karras"), "{parameters}");
    assert!(
        notes.iter().any(|note| note.contains("HeunDiscreteScheduler") && note.contains("`--sampler`")),
        "{notes:?}"
    );
    for (change, want) in [
        (
            &[("_class_name", "EDMEulerScheduler".into()), ("sigma_data", 0.5.into())][..],
            "EDMEulerScheduler is for networks trained",
        ),
        (
            &[("_class_name", "FlowMatchHeunDiscreteScheduler".into())],
            "FlowMatchHeunDiscreteScheduler is for networks trained",
        ),
        (
            &[("_class_name", "HeunDiscreteScheduler".into()), ("prediction_type", serde_json::Value::Null)],
            "prediction_type is null; ",
        ),
        (
            &[("prediction_type", "epsilon".into()), ("beta_end", 2.into())],
            "beta_start is 0.00085 and beta_end is 2; both",
        ),
    ] {
        home.schedule(&home.at("heun"), change);
        let message = home.refuse(&["--model", &text(&home.at("heun"))]);
        let file = "scheduler_config.json: ";
        assert_eq!(message.matches("scheduler_config.json").count(), 1, "{message}");
        assert!(message.contains(&format!("{file}{want}")), "{message}");
    }
}

#[test]
fn inspecting_a_model_tells_how_its_images_are_made() {
    let home = Home::new();
    let model = home.model("model");
    home.schedule(&model, &[("prediction_type", "v_prediction".into()), ("rescale_betas_zero_snr", true.into())]);
    let shown = |model: &Path| succeed_plain(&["inspect", &text(model)]);
    for part in
        ["predicts   velocity (v_prediction), zero terminal SNR\n", "settings   sampler euler, spacing leading\n"]
    {
        assert!(shown(&model).contains(part), "{part}: {}", shown(&model));
    }
    home.schedule(&model, &[("interpolation_type", "log_linear".into())]);
    let json: serde_json::Value = serde_json::from_str(&succeed_plain(&["inspect", &text(&model), "--json"])).unwrap();
    assert_eq!(json["sampling"]["predicts"], "velocity");
    assert!(json["sampling"]["notes"][0].as_str().unwrap().contains("log_linear, which is not built"), "{json}");
    // What generating would refuse is no reason to say nothing of the tensors.
    home.schedule(&model, &[("_class_name", "FlowMatchEulerDiscreteScheduler".into())]);
    let text = shown(&model);
    assert!(
        text.contains("problem    ") && text.contains("flow matching") && text.contains("part       unet"),
        "{text}"
    );
}

#[test]
fn inspecting_a_unet_tells_what_it_predicts() {
    let home = Home::new();
    let unet = tensors(&golden("pipeline/model").join(UNET));
    let inspect = |name: &str, marks: &[&str]| {
        let path = home.at(name);
        write(&path, &with(&unet, marks), &[]);
        let json = succeed_plain(&["inspect", &text(&path), "--json"]);
        (succeed_plain(&["inspect", &text(&path)]), serde_json::from_str::<serde_json::Value>(&json).unwrap())
    };
    let (shown, json) = inspect("v.safetensors", &["v_pred", "ztsnr"]);
    assert!(shown.contains("predicts   velocity (v_prediction), zero terminal SNR\n"), "{shown}");
    assert!(shown.contains("named as   --unet\n"), "{shown}");
    assert_eq!(
        (&json["sampling"]["predicts"], &json["sampling"]["zero_terminal_snr"]),
        (&"velocity".into(), &true.into())
    );
    let (shown, json) = inspect("plain.safetensors", &[]);
    assert!(shown.contains("the file does not say"), "{shown}");
    assert!(json["sampling"]["predicts"].is_null() && json["role"] == "unet", "{json}");
    // What generating refuses is not recommended.
    for (name, mark, part) in [
        ("edm.safetensors", &["edm_mean"][..], "EDM's noise levels"),
        ("sdxl_lightning_1step_unet_x0.safetensors", &[], "`x0`"),
        ("sdxl_lightning_1step_x0.safetensors", &[], "`x0`"),
    ] {
        let (shown, json) = inspect(name, mark);
        assert!(shown.contains("named as   nothing") && !shown.contains("--unet"), "{shown}");
        assert!(shown.contains("problem    ") && shown.contains(part), "{shown}");
        assert!(json["role"].is_null() && json["unsupported"] == true && json["sampling"].is_null(), "{json}");
        assert!(json["problem"].as_str().unwrap().contains(part), "{json}");
    }
}

#[test]
fn distilled_unets_get_settings_that_suit_them() {
    let home = Home::new();
    let base = text(&golden("pipeline/model"));
    let unet = tensors(&golden("pipeline/model").join(UNET));
    for (name, metadata, steps, kind) in [
        ("sdxl_lightning_2step_unet.safetensors", None, 2, "SDXL-Lightning of 2 steps"),
        ("sdxl_lightning.safetensors", None, 4, "SDXL-Lightning"),
        ("Hyper-SDXL-1step-Unet.safetensors", None, 1, "Hyper-SD of 1 step"),
        ("dmd2_sdxl_4step_unet_fp16.safetensors", None, 4, "DMD2 of 4 steps, whose own sampler, LCM, is not built"),
        ("a.safetensors", Some(("modelspec.title", "My Turbo XL")), 4, "SDXL Turbo"),
        ("b.safetensors", Some(("modelspec.architecture", "stable-diffusion-xl-lightning")), 4, "SDXL-Lightning"),
        (
            "c.safetensors",
            Some(("modelspec.description", "Distilled from SDXL by DMD2 to 2 steps.")),
            2,
            "DMD2 of 2 steps",
        ),
        ("d.safetensors", Some(("ss_base_model_version", "sdxl_lcm")), 4, "a latent consistency model (LCM)"),
        ("e.safetensors", Some(("general.name", "Hyper SDXL")), 4, "Hyper-SD"),
    ] {
        write(&home.at(name), &unet, metadata.as_slice());
        let path = text(&home.at(name));
        let (parameters, notes) = chosen(&home, &["--model", &base, "--unet", &path]);
        for part in [format!("Steps: {steps},"), "Sampler: Euler,".into(), "Schedule type: SGM Uniform".into()] {
            assert!(parameters.contains(&part), "{name}: {part}: {parameters}");
        }
        let note = notes.iter().find(|note| note.contains("looks like")).expect("a note");
        for part in [kind, &format!("`--steps` {steps}"), "`--guidance` 1", "`--sampler` euler", "`--spacing` trailing"]
        {
            assert!(note.contains(part), "{name}: {part}: {note}");
        }
    }
    // A stock scheduler beside it, as programs write it that convert models, is not what it was distilled for.
    let lightning = home.model("juggernaut_lightning");
    let (parameters, notes) = chosen(&home, &["--model", &text(&lightning)]);
    assert!(parameters.contains("Steps: 4, Sampler: Euler, Schedule type: SGM Uniform"), "{parameters}");
    assert!(notes.iter().any(|note| note.contains("looks like SDXL-Lightning")), "{notes:?}");
    for name in ["hyper_realistic.safetensors", "lightning_strikes.safetensors"] {
        write(&home.at(name), &unet, &[]);
        let (_, notes) = chosen(&home, &["--model", &base, "--unet", &text(&home.at(name)), "--steps", "2"]);
        assert!(notes.iter().all(|note| !note.contains("looks like")), "{name}: {notes:?}");
    }
    // What starts at a timestep of its own is not called suited.
    for (name, parts) in [
        ("dmd2_sdxl_1step_unet.safetensors", ["DMD2 of 1 step", "timestep 399", "dmd2_sdxl_4step_unet"]),
        ("Hyper-SDXL-1step-Unet.safetensors", ["Hyper-SD of 1 step", "timestep 800", "merged"]),
        ("pcm_sdxl_1step.safetensors", ["(PCM) of 1 step", "no settings here suit", "of more steps"]),
    ] {
        write(&home.at(name), &unet, &[]);
        let (_, notes) = chosen(&home, &["--model", &base, "--unet", &text(&home.at(name))]);
        let note = notes.iter().find(|note| note.contains("looks like")).expect("a note");
        parts.iter().for_each(|part| assert!(note.contains(part), "{name}: {part}: {note}"));
        assert!(note.contains("no settings here suit"), "{note}");
    }
    write(&home.at("sdxl_lightning_1step_unet_x0.safetensors"), &unet, &[]);
    let message =
        home.refuse(&["--model", &base, "--unet", &text(&home.at("sdxl_lightning_1step_unet_x0.safetensors"))]);
    assert!(message.contains("`x0`"), "{message}");
    let path = text(&home.at("sdxl_lightning.safetensors"));
    let (parameters, notes) =
        chosen(&home, &["--model", &base, "--unet", &path, "--steps", "3", "--guidance", "2", "--sampler", "dpmpp_2m"]);
    assert!(parameters.contains("Steps: 3, Sampler: DPM++ 2M,"), "{parameters}");
    assert!(notes.iter().all(|note| !note.contains("looks like")), "{notes:?}");
}

/// Every JSON file below a folder whose keys may be any.
fn configurations(folder: &Path) -> Vec<PathBuf> {
    let open = |path: &PathBuf| path.extension().is_some_and(|e| e == "json") && !path.ends_with("vocab.json");
    tree(folder).into_iter().filter(open).collect()
}

#[test]
fn configurations_are_read_as_python_writes_them() {
    let home = Home::new();
    let model = home.model("model");
    // The UNet in a shard, for its index.
    std::fs::rename(model.join(UNET), model.join("unet/a.safetensors")).unwrap();
    let unet = tensors(&model.join("unet/a.safetensors"));
    let map: BTreeMap<_, _> = unet.keys().map(|key| (key, "a.safetensors")).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(model.join("unet/diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    let want = home.latents(&["--model", &text(&model)]);
    let files = configurations(&model);
    assert!(files.len() > 8, "{files:?}");
    for path in files {
        let json = std::fs::read_to_string(&path).unwrap();
        let beyond = "{\"lambda_min_clipped\": -Infinity, \"others\": [NaN, Infinity],";
        std::fs::write(&path, json.replacen('{', beyond, 1)).unwrap();
    }
    assert!(home.latents(&["--model", &text(&model)]) == want);
    // A number that is wanted must be one.
    let scheduler = model.join("scheduler/scheduler_config.json");
    let json = std::fs::read_to_string(&scheduler).unwrap().replace("0.012", "NaN");
    std::fs::write(scheduler, json).unwrap();
    let message = home.refuse(&["--model", &text(&model)]);
    assert!(message.contains("NaN") && message.contains("scheduler_config.json"), "{message}");
}

#[test]
fn a_quantised_copy_predicts_what_its_model_does() {
    let home = Home::new();
    let config = text(&golden("pipeline/model"));
    let marked = home.at("marked.safetensors");
    write(&marked, &with(&tensors(&golden("single-file/sdxl.safetensors")), &["v_pred", "ztsnr"]), &[]);
    let folder = home.model("folder");
    write(&folder.join(UNET), &with(&tensors(&folder.join(UNET)), &["v_pred", "ztsnr"]), &[]);
    for (name, model) in [("a", vec![text(&marked), "--config".into(), config]), ("b", vec![text(&folder)])] {
        let output = text(&home.at(name));
        let flags: Vec<_> = model.iter().map(String::as_str).collect();
        succeed_plain(&[&["quantize", "--to", "q8", "--model"], &flags[..], &["--output", &output]].concat());
        let saved = std::fs::read_to_string(Path::new(&output).join("scheduler/scheduler_config.json")).unwrap();
        let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
        assert_eq!(saved["prediction_type"], "v_prediction", "{name}");
        assert_eq!(saved["rescale_betas_zero_snr"], true, "{name}");
        assert_eq!(saved["_class_name"], "EulerDiscreteScheduler", "{name}");
        // Where the copy's steps lie is where the model's do.
        let model: Vec<_> = flags.iter().copied().chain(["--steps", "3"]).collect();
        let parameters = [&[&["--model"], &model[..]].concat()[..], &["--model", &output, "--steps", "3"]]
            .map(|model| chosen(&home, model).0);
        assert!(parameters.iter().all(|text| text.contains("Euler, Schedule type: SGM Uniform")), "{parameters:?}");
    }
}
