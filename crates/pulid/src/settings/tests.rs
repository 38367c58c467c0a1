use super::*;
use crate::preset::Preset;
use crate::sampler::{SamplerKind, Spacing};
use pulid_tensor::Error;
use serde_json::json;
use std::collections::BTreeSet;

fn euler() -> Choices {
    Choices { sampler: Some(SamplerKind::Euler), ..Choices::default() }
}

#[test]
fn another_sampler_brings_its_own_spacing() {
    let model = Choices { sampler: Some(SamplerKind::DpmPp2M), spacing: Some(Spacing::Trailing), ..Choices::default() };
    let spacing = |own, preset| Settings::merge(own, preset, model.clone()).unwrap().spacing;
    assert_eq!(spacing(Choices::default(), None), Spacing::Trailing);
    let sde = Choices { sampler: Some(SamplerKind::DpmPpSde), ..Choices::default() };
    assert_eq!(spacing(sde, None), SamplerKind::DpmPpSde.default_spacing());
    // A preset keeps its own, under another sampler too.
    assert_ne!(SamplerKind::Euler.default_spacing(), Spacing::Karras);
    assert_eq!(spacing(euler(), Some(Preset::V1_1Base)), Spacing::Karras);
    assert_eq!(spacing(Choices { spacing: Some(Spacing::Karras), ..euler() }, None), Spacing::Karras);
    assert_eq!(
        spacing(Choices { spacing: Some(Spacing::Trailing), ..euler() }, Some(Preset::V1_1Base)),
        Spacing::Trailing
    );
}

#[test]
fn a_person_comes_before_the_preset_the_model_and_the_list() {
    let model = Choices { width: Some(128), steps: Some(12), seed: Some(9), ..Choices::default() };
    let own = || Choices { steps: Some(3), ..Choices::default() };
    let s = Settings::merge(own(), None, model.clone()).unwrap();
    assert_eq!((s.width, s.height, s.steps, s.guidance, s.seed), (128, 1024, 3, 7.0, 9));
    let s = Settings::merge(own(), Some(Preset::V1Style), model).unwrap();
    assert_eq!((s.width, s.height, s.steps, s.guidance, s.seed), (768, 1024, 3, 1.2, 9));
    assert_eq!(s.ortho.name(), "v1");
}

#[test]
fn what_is_out_of_range_is_refused_by_the_setting_s_name() {
    let wrong = [
        ("width", json!(5000)),
        ("steps", json!(0)),
        ("guidance", json!(1e300)),
        ("guidance", json!(1e30)),
        ("guidance", json!(-1)),
        ("id_scale", json!(1e9)),
        ("num_zero", json!(4097)),
        ("id_start", json!(-0.1)),
        ("batch", json!(65)),
    ];
    for (name, value) in wrong {
        let mut own = Choices::default();
        own.set(name, &value).unwrap();
        let message = Settings::merge(own, None, Choices::default()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
    }
    // A number outside of its range that is not used does no harm.
    let model = Choices { steps: Some(0), ..Choices::default() };
    assert_eq!(Settings::merge(Choices { steps: Some(2), ..Choices::default() }, None, model).unwrap().steps, 2);
    for (name, value) in [("steps", json!("many")), ("steps", json!(1.5)), ("ortho", json!("v9")), ("hue", json!(1))] {
        let message = Choices::default().set(name, &value).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{name}: ")), "{message}");
    }
}

#[test]
fn seeds_are_pytorch_s() {
    let seed = |text: &str| -> Result<u64> {
        let setting = Setting::named("seed").unwrap();
        let mut choices = Choices::default();
        choices.set("seed", &setting.parse(text)?)?;
        Ok(choices.seed.unwrap())
    };
    for (text, number) in [
        ("0", 0),
        ("18446744073709551615", u64::MAX),
        ("-1", u64::MAX),
        ("-2", u64::MAX - 1),
        ("-9223372036854775808", 1 << 63),
    ] {
        assert_eq!(seed(text).unwrap(), number, "{text}");
    }
    for text in ["18446744073709551616", "-9223372036854775809", "1.5", "", "seven"] {
        let message = seed(text).unwrap_err().to_string();
        assert!(message.contains("from -2^63 to 2^64-1"), "{text}: {message}");
    }
}

#[test]
fn text_becomes_the_setting_s_type() {
    let parse = |name: &str, text: &str| Setting::named(name).unwrap().parse(text);
    assert_eq!(parse("id_scale", "-0.5").unwrap(), json!(-0.5));
    assert_eq!(parse("steps", "12").unwrap(), json!(12));
    assert_eq!(parse("ortho", "v1").unwrap(), json!("v1"));
    for (name, text) in [
        ("steps", "0"),
        ("steps", "1.5"),
        ("guidance", "inf"),
        ("guidance", "NaN"),
        ("id_end", "1.1"),
        ("sampler", "heun"),
        ("quantize", "f16"),
        ("dtype", "q8"),
    ] {
        let message = parse(name, text).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(text), "{message}");
    }
    let message = parse("sampler", "heun").unwrap_err().to_string();
    assert!(message.contains("dpmpp_2m, dpmpp_sde, euler"), "{message}");
}

/// Every entry of the list holds together: its default is in its range and survives JSON, and names are unique.
#[test]
fn every_setting_s_default_is_one_of_its_values() {
    let names: BTreeSet<_> = LIST.iter().map(|s| s.name).collect();
    assert_eq!(names.len(), LIST.len());
    let settings = Settings::default();
    for setting in LIST {
        let name = setting.name;
        let default = (setting.default)();
        setting.check(&default).unwrap();
        assert_eq!(settings.get(name), Some(default.clone()), "{name}");
        let mut choices = Choices::default();
        choices.set(name, &default).unwrap();
        assert_eq!(choices.get(name).unwrap_or_default(), default, "{name}");
        assert_eq!(setting.check(&Value::Null).is_ok(), setting.optional, "{name}");
        assert!(!setting.help.is_empty() && !setting.help.ends_with('.'), "{name}: {}", setting.help);
        assert!(setting.follows.is_none_or(|other| names.contains(other.setting)), "{name}");
        if let Range::Choices(all) = setting.range {
            for choice in all {
                choices.set(name, &json!(choice)).unwrap();
                assert_eq!(choices.get(name), Some(json!(choice)), "{name}");
            }
        }
    }
    settings.check().unwrap();
}

#[test]
fn the_list_says_which_spacing_a_sampler_brings() {
    let says = Setting::named("spacing").unwrap().follows.unwrap().brings;
    let own = |kind: SamplerKind| kind.default_spacing();
    let [a, b, c, d] = SamplerKind::ALL;
    assert_eq!(own(a), own(b));
    assert_eq!(says, format!("{} for {a} and {b}, {} for {c}, {} for {d}", own(a), own(c), own(d)));
}

#[test]
fn the_identity_s_defaults_are_pulid_s_own() {
    assert_eq!(Settings::default().identity(), pulid_models::pulid::IdentitySettings::default());
}

#[test]
fn names_are_spelled_as_each_surface_spells_them() {
    let spelled = |spelling: Spelling| ["negative_prompt", "seed"].map(|name| spelling.of(name));
    assert_eq!(spelled(Spelling::Snake), ["negative_prompt", "seed"]);
    assert_eq!(spelled(Spelling::Kebab), ["negative-prompt", "seed"]);
    assert_eq!(spelled(Spelling::Flag), ["--negative-prompt", "--seed"]);
    assert_eq!(spelled(Spelling::Camel), ["negativePrompt", "seed"]);
    let names = || LIST.iter().map(|s| s.name);
    let error = Error::invalid("id_start", "0.9 is above `id_end`; seeds and `text` stay");
    let expected = "--id-start: 0.9 is above `--id-end`; seeds and `text` stay";
    assert_eq!(respell(&error, names(), Spelling::Flag), expected);
    let error = Error::OutOfMemory("try `dtype` f16 and a lower `num_zero`".into());
    assert_eq!(respell(&error, names(), Spelling::Camel), "device: try `dtype` f16 and a lower `numZero`");
    assert_eq!(respell(&Error::invalid("num_zero", "is `9`"), names(), Spelling::Camel), "numZero: is `9`");
    // A network, a file or a device is no setting, whatever it is called.
    let error = Error::NotFinite { network: "width".into(), operator: "x".into(), detail: "2 values".into() };
    assert_eq!(respell(&error, names(), Spelling::Flag), error.to_string());
}

#[test]
fn a_model_s_file_sets_what_models_may() {
    let found = ModelDefaults::parse(
        r#"{"guidance_scale": 2.4, "steps": 12, "ortho": "v1", "negative_prompt": null,
        "latent_rgb": [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0.5, 0.5, 0.5]]}"#,
    )
    .unwrap();
    let c = &found.choices;
    assert_eq!((c.guidance, c.steps, c.width, c.negative_prompt.as_ref()), (Some(2.4), Some(12), None, None));
    assert_eq!(found.latent_rgb.unwrap()[4], [0.5; 3]);
    for (text, part) in [
        (r#"{"guidance": 2.0}"#, "the key guidance is not known; accepted are width,"),
        (r#"{"seed": 1}"#, "the key seed"),
        (r#"{"steps": "many"}"#, "steps: `many` is not a whole number"),
        (r#"{"ortho": "v9"}"#, "off, v1, v2"),
        (r#"{"latent_rgb": [1]}"#, "latent_rgb"),
        ("[1]", "expected a map"),
        ("{", "EOF"),
    ] {
        let message = ModelDefaults::parse(text).unwrap_err();
        assert!(message.contains(part), "{text}: {message}");
    }
}
