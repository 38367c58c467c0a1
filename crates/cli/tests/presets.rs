//! The official applications' settings by name, on the mini models.

mod support;

use pulid::settings::Spelling;
use pulid_checkpoint::write_safetensors;
use pulid_tensor::HostTensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::program;

fn repository(path: &str) -> String {
    support::repository(path).to_string_lossy().into_owned()
}

fn pulid(arguments: &[&str]) -> Output {
    let device = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    let nowhere = std::env::temp_dir();
    program(&nowhere, arguments).args(["--device", &device, "--autotune", "off"]).output().expect("the program starts")
}

struct Person {
    folder: tempfile::TempDir,
}

impl Person {
    /// Somebody as the mini models' encoder might see them.
    fn new() -> Person {
        let folder = tempfile::tempdir().unwrap();
        let tokens = |phase: f32| HostTensor::from_fn([1, 16, 256], move |i| (0.37 * i as f32 + phase).sin());
        let tensors = [("id_embedding", &tokens(0.0)), ("uncond_id_embedding", &tokens(2.0))];
        write_safetensors(folder.path().join("person.safetensors"), tensors, &BTreeMap::new()).unwrap();
        Person { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn generate(&self, output: &str, flags: &[&str]) -> Output {
        let (person, output) = (self.path("person.safetensors"), self.path(output));
        let always = ["generate", "--prompt", "a person", "--seed", "4", "--json", "--identity"];
        let files = [person.to_str().unwrap(), "--output", output.to_str().unwrap()];
        pulid(&[&always[..], &files[..], flags].concat())
    }

    fn parameters(&self, output: &str, flags: &[&str]) -> String {
        let made = self.generate(output, flags);
        assert!(made.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&made.stderr));
        let report: Value = serde_json::from_slice(&made.stdout).unwrap();
        report["parameters"].as_str().unwrap().to_owned()
    }

    /// The message of what must fail by the user's fault and leave no image.
    fn refused(&self, flags: &[&str]) -> String {
        let made = self.generate("refused.png", flags);
        let message = String::from_utf8_lossy(&made.stderr).into_owned();
        assert_eq!(made.status.code(), Some(2), "{flags:?}: {message}");
        assert!(!self.path("refused.png").exists(), "{flags:?}");
        message
    }
}

const SMALL: [&str; 4] = ["--width", "64", "--height", "64"];

#[test]
fn a_preset_is_short_for_its_flags() {
    let person = Person::new();
    let preset = person.parameters("preset.png", &[&["--preset", "v1.1-lightning"], &SMALL[..]].concat());
    let flags = "--sampler dpmpp_sde --spacing karras --steps 5 --guidance 2 --id-scale 0.8 --num-zero 20 --ortho v2";
    let flags: Vec<_> = flags.split(' ').collect();
    assert_eq!(preset, person.parameters("flags.png", &[&flags[..], &SMALL[..]].concat()));
    let read = |name: &str| std::fs::read(person.path(name)).unwrap();
    assert_eq!(read("preset.png"), read("flags.png"));
    // The mini models' own defaults are others.
    assert_ne!(preset, person.parameters("defaults.png", &SMALL));
}

#[test]
fn flags_win_over_a_preset() {
    let own = "--preset v1.1-base --steps 2 --guidance 1.5 --num-zero 3 --ortho off --id-scale 0.5 --sampler euler";
    let own: Vec<_> = own.split(' ').collect();
    let parameters = Person::new().parameters("a.png", &[&own[..], &SMALL[..]].concat());
    let expected = "Steps: 2, Sampler: Euler, Schedule type: Karras, CFG scale: 1.5, Seed: 4, Size: 64x64";
    for part in [expected, "PuLID scale: 0.5", "PuLID zero tokens: 3", "PuLID projection: off"] {
        assert!(parameters.contains(part), "{parameters}");
    }
}

#[test]
fn presets_that_do_not_fit_the_adapter_are_refused() {
    let person = Person::new();
    let (v1, v1_1) = (
        repository("tests/goldens/pipeline/model/adapter_v1.safetensors"),
        repository("models/mini/pulid_v1.1.safetensors"),
    );
    for preset in ["v1-fidelity", "v1-style"] {
        let message = person.refused(&["--preset", preset, "--adapter", &v1_1]);
        assert!(message.contains(preset) && message.contains("is PuLID v1.1"), "{message}");
        // The folder has a v1.1 file alone.
        let message = person.refused(&["--preset", preset]);
        assert!(message.contains("no PuLID v1 file") && message.contains("pulid_v1.bin"), "{message}");
    }
    let message = person.refused(&["--preset", "v1.1-base", "--adapter", &v1]);
    assert!(message.contains("is PuLID v1;") && message.contains("v1-fidelity and v1-style"), "{message}");
    assert!(person.refused(&["--preset", "fast"]).contains("v1.1-lightning"));
}

#[test]
fn a_mix_of_identities_is_v1_s_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("x.safetensors");
    let (ada, output) = (repository("examples/faces/ada.jpg"), output.to_string_lossy().into_owned());
    let made = pulid(&["embed", &ada, &ada, "--id-mix", "--output", &output]);
    let message = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.code() == Some(2) && message.contains("PuLID v1"), "{message}");
    assert!(!Path::new(&output).exists());
}

#[test]
fn help_says_what_each_preset_sets() {
    let help = Command::new(env!("CARGO_BIN_EXE_pulid")).args(["generate", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for preset in pulid::preset::Preset::ALL {
        let line = help.lines().find(|l| l.trim_start().starts_with(preset.name())).unwrap_or_default();
        assert!(preset.settings().iter().count() > 0);
        for (setting, value) in preset.settings().iter() {
            let text = value.as_str().map_or(value.to_string(), str::to_owned);
            let flag = format!("{} {} ", Spelling::Flag.of(setting.name), text.trim_end_matches(".0"));
            assert!(format!("{line} ").contains(&flag), "{preset}: {flag}: {help}");
        }
    }
}
