//! What a UNet needs that was distilled to take few steps, told by its file's name, its metadata, what its folder's configurations say that it
//! was loaded from, or its scheduler's class.

use super::Choices;
use super::suited::Suggestion;
use crate::sampler::{SamplerKind, SchedulerConfig, Spacing};
use pulid_checkpoint::{Checkpoint, files, json};
use pulid_models::sdxl::{Part, SdxlModel};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A way of distilling SDXL.
#[derive(Debug, PartialEq)]
struct Method {
    /// For people.
    name: &'static str,
    /// Words of a name that tell it, by [`words`].
    told_by: &'static [&'static str],
    /// Words that tell it where SDXL stands beside them, or one of [`BESIDE`] or nothing follows them: they mean other things as well.
    common: &'static [&'static str],
    /// What its own pipelines sample with, where that is not built.
    own_sampler: Option<&'static str>,
    /// How its authors run what they distilled to one step, and what to take in its place: that does not start at the last timestep, from
    /// where every sampler here starts.
    one_step: &'static str,
    /// What suits it, but for the steps that a name says.
    steps: usize,
    guidance: f32,
    sampler: SamplerKind,
}

const FEW: Method = Method {
    name: "",
    told_by: &[],
    common: &[],
    own_sampler: None,
    one_step: "which is not sampled as those of several steps are; take one of more steps in its place",
    // What most of them are published for.
    steps: 4,
    guidance: 1.0,
    sampler: SamplerKind::Euler,
};

const TURBO: &str = "SDXL Turbo";

/// What follows `turbo` in one word, or begins it, where SDXL Turbo is not meant.
const NOT_TURBO: [&str; 12] =
    ["charge", "charging", "diesel", "fan", "grafx", "jet", "lader", "machine", "man", "motor", "prop", "squid"];

/// All of them, the more telling before the less: a name may have the words of two.
///
/// Steps, guidance, samplers and timesteps are those of the model cards: ByteDance/SDXL-Lightning, tianweiy/DMD2, ByteDance/Hyper-SD,
/// stabilityai/sdxl-turbo, sd-community/sdxl-flash, latent-consistency/lcm-lora-sdxl, h1t/TCD-SDXL-LoRA.
const METHODS: [Method; 9] = [
    Method {
        name: "SDXL-Lightning",
        common: &["lightning"],
        // EulerDiscreteScheduler with trailing timesteps; of one step with `prediction_type="sample"`, and "only experimental".
        one_step: "whose network predicts the clean latents (`prediction_type` sample), which is not built; take \
                   sdxl_lightning_2step_unet or one of more steps in its place",
        ..FEW
    },
    // LCMScheduler with timesteps=[999, 749, 499, 249], which are trailing ones; of one step with timesteps=[399].
    Method {
        name: "DMD2",
        told_by: &["dmd"],
        own_sampler: Some("LCM"),
        one_step: "which its authors run from timestep 399, and steps start at the last one here; take \
                   dmd2_sdxl_4step_unet in its place",
        ..FEW
    },
    // DDIMScheduler with trailing timesteps, which is Euler's method; of one step LCMScheduler with timesteps=[800].
    Method {
        name: "Hyper-SD",
        told_by: &["hypersd"],
        common: &["hyper"],
        one_step: "which its authors run from timestep 800, and steps start at the last one here; take a model in its place \
                   with Hyper-SD's LoRA of 4 or 8 steps merged into it",
        ..FEW
    },
    Method { name: TURBO, common: &["turbo"], own_sampler: Some("ancestral Euler"), ..FEW },
    Method {
        name: "SDXL Flash",
        common: &["flash"],
        // It keeps some guidance, as its authors advise.
        steps: 7,
        guidance: 3.0,
        sampler: SamplerKind::DpmPpSde,
        ..FEW
    },
    Method { name: "Nitro", told_by: &["nitrosd", "nitrofusion"], common: &["nitro"], own_sampler: Some("LCM"), ..FEW },
    Method { name: "a phased consistency model (PCM)", told_by: &["pcm"], own_sampler: Some("TCD"), ..FEW },
    Method { name: "a latent consistency model (LCM)", told_by: &["lcm"], own_sampler: Some("LCM"), ..FEW },
    Method { name: "trajectory consistency distillation (TCD)", told_by: &["tcd"], own_sampler: Some("TCD"), ..FEW },
];

/// More steps than any of them is made for.
const MOST_STEPS: usize = 16;

/// What people write after a method's word when they mean the method: SDXL's names, versions, samplers, other methods, how a file is stored.
const BESIDE: &str = "sdxl sd xl step steps v ver version unet lightning turbo hyper lcm dmd tcd euler dpm dpmpp dpmsde sde karras sgm \
                      cfg vae bakedvae baked fp bf f q gguf fix fixed pruned full ema merge merged model edition alpha beta final sfw \
                      nsfw safetensors bin ckpt pt pth";

/// Metadata that names a file: Stability's model specification, kohya's trainers, GGUF.
const NAMES: [&str; 6] =
    ["modelspec.title", "ss_output_name", "title", "general.name", "modelspec.architecture", "ss_base_model_version"];

/// Metadata that describes a file in sentences, in which a method may be one that it is not of.
const SENTENCES: [&str; 2] = ["modelspec.description", "general.description"];

/// The words of a name, in small letters: what stands between separators, between letters and digits, and between the humps of CamelCase.
fn words(name: &str) -> Vec<String> {
    // Words of their own wherever they stand, however they are written.
    const WHOLE: [&str; 2] = ["sdxl", "lora"];
    let (mut words, mut rest) = (Vec::new(), name);
    // Small letters of ASCII are as long as large ones, so that places are the same.
    let next = |rest: &str| {
        let small = rest.to_ascii_lowercase();
        WHOLE.iter().filter_map(|whole| Some((small.find(whole)?, *whole))).min()
    };
    while let Some((at, whole)) = next(rest) {
        words.extend(humps(&rest[..at]));
        words.push(whole.to_owned());
        rest = &rest[at + whole.len()..];
    }
    words.extend(humps(rest));
    words
}

fn humps(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut spaced = String::new();
    for (i, &c) in chars.iter().enumerate() {
        let begins = i.checked_sub(1).map(|before| chars[before]).is_some_and(|before| {
            // "XLTurbo" is two words.
            let ends_capitals = || chars.get(i + 1).is_some_and(|next| next.is_lowercase());
            before.is_ascii_digit() != c.is_ascii_digit()
                || c.is_uppercase() && (before.is_lowercase() || before.is_uppercase() && ends_capitals())
        });
        if begins {
            spaced.push(' ');
        }
        spaced.extend(c.to_lowercase());
    }
    let parts = spaced.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
    // "turboxl", "realvisxl".
    let apart = |part: &str| match part.strip_suffix("xl").filter(|rest| !rest.is_empty()) {
        Some(rest) => vec![rest.to_owned(), "xl".to_owned()],
        None => vec![part.to_owned()],
    };
    parts.flat_map(apart).collect()
}

/// The method that a name tells, or a sentence.
fn told(text: &str, sentence: bool) -> Option<&'static Method> {
    let words = words(text);
    let word = |i: Option<usize>| words.get(i?).map(String::as_str);
    let tells = |method: &Method, i: usize| {
        let (before, after) = (word(i.checked_sub(1)), word(Some(i + 1)));
        // What goes well with a model is not what it is.
        if sentence && after == Some("lora") {
            return false;
        }
        let of_sdxl = [before, after].into_iter().flatten().any(|word| ["sdxl", "xl", "sd"].contains(&word));
        let this = words[i].as_str();
        method.told_by.contains(&this)
            || method.common.contains(&this) && (of_sdxl || !sentence && after.is_none_or(beside))
    };
    let by_word = METHODS.iter().find(|method| (0..words.len()).any(|i| tells(method, i)));
    by_word.or_else(|| METHODS.iter().find(|method| method.name == TURBO && !sentence && begins_with_turbo(text)))
}

/// Whether a word of a name begins with `turbo` and another one is joined to it, as in `TurboVisionXL`.
fn begins_with_turbo(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(|c: char| !c.is_alphanumeric())
        .filter_map(|word| word.strip_prefix("turbo"))
        .any(|rest| rest.starts_with(char::is_alphabetic) && !NOT_TURBO.iter().any(|other| rest.starts_with(other)))
}

/// Whether a word after a method's says that the method is meant.
fn beside(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || BESIDE.split_whitespace().any(|known| known == word)
}

/// By the class of the scheduler that lies beside it.
fn scheduled(class: &str) -> Option<&'static Method> {
    let word = match class {
        "LCMScheduler" => "lcm",
        "TCDScheduler" => "tcd",
        _ => return None,
    };
    METHODS.iter().find(|method| method.told_by.contains(&word))
}

/// The number before `step`, as in `sdxl_lightning_4step_unet` and `Hyper-SDXL-8steps`.
fn steps_named(name: &str) -> Option<usize> {
    let words = words(name);
    words.windows(2).find_map(|pair| {
        let steps = pair[0].parse().ok().filter(|steps| (1..=MOST_STEPS).contains(steps));
        steps.filter(|_| pair[1].starts_with("step"))
    })
}

/// What a file or folder is called by those who published it: without the names that diffusers and the hub's cache give every file.
fn published_name(path: &Path) -> String {
    const COMMON: [&str; 5] = ["unet", "diffusion_pytorch_model", "model", "pytorch_model", "snapshots"];
    for part in path.ancestors() {
        let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default().to_lowercase();
        let in_cache = part.parent().is_some_and(|parent| parent.ends_with("snapshots"));
        if !in_cache && !COMMON.contains(&stem.as_str()) {
            return name;
        }
    }
    String::new()
}

/// Whose weights a folder's configurations say that they were: diffusers writes the name or path under which it loaded a pipeline or network
/// (`ConfigMixin.save_config`), such as `stabilityai/sdxl-turbo`. Of the UNet's own before the pipeline's.
fn loaded_from(path: &Path) -> Vec<String> {
    const KEY: &str = "_name_or_path";
    let unet = Part::Unet.folder();
    let mut said = vec![path.join(unet).join("config.json"), path.join("config.json")];
    // Beside a file of weights lies the configuration of its network; a pipeline's is one folder above its networks.
    let beside = if files::is_dir(path) { Some(path) } else { path.parent() };
    if let Some(folder) = beside.filter(|folder| folder.file_name().is_some_and(|name| name == unet)) {
        said.push(folder.join("config.json"));
        said.extend(folder.parent().map(|pipeline| pipeline.join("model_index.json")));
    }
    said.push(path.join("model_index.json"));
    let name = |file: &PathBuf| {
        let text = files::is_file(file).then(|| files::read_to_string(file).ok()).flatten()?;
        let config: Value = json::from_str(&text).ok()?;
        let name = config.get(KEY)?.as_str()?.trim_end_matches(['/', '\\']);
        Some(published_name(Path::new(&name.replace('\\', "/")))).filter(|name| !name.is_empty())
    };
    said.iter().filter_map(name).collect()
}

/// What suits the model's UNet if it was distilled.
pub(super) fn distilled(model: &SdxlModel, scheduler: &SchedulerConfig) -> Option<Suggestion> {
    let path = model.other_unet().unwrap_or(model.path());
    // A pipeline's folder has no weights of its own.
    let file = Checkpoint::open(path).or_else(|_| Checkpoint::open(path.join(Part::Unet.folder()))).ok();
    let written = |keys: &[&str]| -> Vec<String> {
        keys.iter().filter_map(|key| file.as_ref()?.metadata().get(*key).cloned()).collect()
    };
    let mut names: Vec<_> = std::iter::once(published_name(path)).chain(written(&NAMES)).collect();
    // What is said of what it was made from comes last: a model that was merged or trained further has a name of its own.
    names.extend(loaded_from(path));
    let sentences = written(&SENTENCES);
    let class = scheduler.class_name.as_deref().filter(|_| model.scheduler_is_own()).unwrap_or_default();
    let by_name = names.iter().find_map(|name| told(name, false));
    let by_sentence = || sentences.iter().find_map(|text| told(text, true));
    let method = by_name.or_else(by_sentence).or_else(|| scheduled(class))?;
    let steps = names.iter().chain(&sentences).find_map(|name| steps_named(name));
    let choices = Choices {
        steps: Some(steps.unwrap_or(method.steps)),
        guidance: Some(method.guidance),
        sampler: Some(method.sampler),
        spacing: Some(Spacing::Trailing),
        ..Choices::default()
    };
    let of = steps.map_or(String::new(), |steps| format!(" of {steps} step{}", if steps == 1 { "" } else { "s" }));
    let mut why = format!("{} looks like {}{of}", path.display(), method.name);
    // Turbo's is one network for one to four steps.
    if steps == Some(1) && method.name != TURBO {
        why += &format!(", {}; no settings here suit it", method.one_step);
    } else if let Some(own) = method.own_sampler {
        why += &format!(", whose own sampler, {own}, is not built: the nearest one is taken");
    }
    Some(Suggestion { choices, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str) -> Option<&'static str> {
        told(name, false).map(|method| method.name)
    }

    #[test]
    fn distilled_networks_are_told_by_their_names() {
        for (path, name, steps) in [
            ("a/sdxl_lightning_4step_unet.safetensors", "SDXL-Lightning", Some(4)),
            ("sdxl_lightning_8step.safetensors", "SDXL-Lightning", Some(8)),
            ("models--Lykon--dreamshaper-xl-lightning/snapshots/0a1b", "SDXL-Lightning", None),
            ("juggernautXL_v9Rdphoto2Lightning.safetensors", "SDXL-Lightning", None),
            ("realvisxlV40_v40LightningBakedvae.safetensors", "SDXL-Lightning", None),
            ("SDXLLightning.safetensors", "SDXL-Lightning", None),
            ("dreamshaperXL_v21TurboDPMSDE.safetensors", "SDXL Turbo", None),
            ("sd_xl_turbo_1.0_fp16.safetensors", "SDXL Turbo", None),
            ("sdxlturbo.ckpt", "SDXL Turbo", None),
            ("turbovisionxl.safetensors", "SDXL Turbo", None),
            ("turbovisionxlSuperFastXLBasedOnNew_tvxlV431Bakedvae.safetensors", "SDXL Turbo", None),
            ("TurboVisionXL.safetensors", "SDXL Turbo", None),
            ("TurboDieselXL.safetensors", "", None),
            ("sdxl-turbo/unet", "SDXL Turbo", None),
            ("Hyper-SDXL-1step-Unet.safetensors", "Hyper-SD", Some(1)),
            ("Hyper-SDXL-8steps.safetensors", "Hyper-SD", Some(8)),
            ("hypersd_unet.safetensors", "Hyper-SD", None),
            ("realvisxl_v5_hyper.safetensors", "Hyper-SD", None),
            ("dmd2_sdxl_4step_unet_fp16.bin", "DMD2", Some(4)),
            ("DMD_SDXL.safetensors", "DMD2", None),
            ("sdxl_flash.safetensors", "SDXL Flash", None),
            ("flash-sdxl.safetensors", "SDXL Flash", None),
            ("nitro-sdxl.safetensors", "Nitro", None),
            ("nitrosd-realism_unet.safetensors", "Nitro", None),
            ("pcm_sdxl.safetensors", "a phased consistency model (PCM)", None),
            ("pcm_sdxl_smallcfg_16step_converted.safetensors", "a phased consistency model (PCM)", Some(16)),
            ("lcm-sdxl/unet/diffusion_pytorch_model.safetensors", "a latent consistency model (LCM)", None),
            ("sdxlLCM_v1.safetensors", "a latent consistency model (LCM)", None),
            ("sdxl_tcd.safetensors", "trajectory consistency distillation (TCD)", None),
            // Words that only begin so, and words that mean something else there.
            ("hyperrealism_xl.safetensors", "", None),
            ("hyper_realistic.safetensors", "", None),
            ("hyper-realistic-sdxl.safetensors", "", None),
            ("hyperdetailed_hyperreal.safetensors", "", None),
            ("lightning_strikes.safetensors", "", None),
            ("lightningStrikes_v10.safetensors", "", None),
            ("turbocharged_xl.safetensors", "", None),
            ("turbo_diesel.safetensors", "", None),
            ("flash_photography.safetensors", "", None),
            ("flashback_xl.safetensors", "", None),
            ("nitroglycerin_xl.safetensors", "", None),
            ("pcmaster.safetensors", "", None),
            ("juggernaut_30000steps.safetensors", "", None),
            ("turbo/juggernaut.safetensors", "", None),
            ("dreamshaperXL_lightning_sfw.safetensors", "SDXL-Lightning", None),
        ] {
            let published = published_name(Path::new(path));
            assert_eq!((method(&published).unwrap_or_default(), steps_named(&published)), (name, steps), "{path}");
        }
    }

    #[test]
    fn sentences_must_say_that_the_model_is_it() {
        let said = |text| told(text, true).map(|method| method.name).unwrap_or_default();
        for (text, name) in [
            ("Distilled from SDXL with DMD2 in 4 steps.", "DMD2"),
            ("An SDXL-Lightning checkpoint.", "SDXL-Lightning"),
            ("Use it with an LCM LoRA or a Turbo LoRA.", ""),
            ("Storms with lightning", ""),
            ("A hyper realistic model for flash photography.", ""),
        ] {
            assert_eq!(said(text), name, "{text}");
        }
    }

    #[test]
    fn names_are_parted_into_words() {
        for (name, want) in [
            ("dreamshaperXL_v21TurboDPMSDE", "dreamshaper xl v 21 turbo dpmsde"),
            ("XLTurbo", "xl turbo"),
            ("sdxlLCM_v1", "sdxl lcm v 1"),
            ("My SDXLlightning-4step", "my sdxl lightning 4 step"),
            ("TÜRBO xl", "türbo xl"),
            ("sdxl", "sdxl"),
            ("", ""),
        ] {
            assert_eq!(words(name).join(" "), want, "{name}");
        }
    }
}
