//! Flags made from the library's list of settings.

use clap::builder::{StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use pulid::settings::{Choices, LIST, Range, Setting, Settings, Spelling, respell, respell_text};
use pulid_tensor::{DType, Error};

/// Flags that messages of the library may name, besides the settings.
const OTHERS: [&str; 12] = [
    "adapter",
    "config",
    "device",
    "face",
    "id_mix",
    "identity",
    "memory",
    "model",
    "models_dir",
    "prompt",
    "threshold",
    "unet",
];

/// Settings that a model's scheduler, or its being distilled, may suggest ([`pulid::settings::Suggestion`]).
const SUITED: [&str; 4] = ["guidance", "sampler", "spacing", "steps"];

/// Every setting as a flag.
#[derive(Clone, Debug)]
pub struct SettingsArgs(pub Choices);

impl Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        command.args(LIST.iter().map(flag))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        read(matches, LIST).map(SettingsArgs)
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The settings of how networks are stored, for commands that run one without making an image.
#[derive(Clone, Copy, Debug)]
pub struct StorageArgs {
    /// Storage type.
    pub dtype: DType,
    /// Quantised weights.
    pub quantize: Option<DType>,
}

impl StorageArgs {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        LIST.iter().filter(|s| ["dtype", "quantize"].contains(&s.name))
    }
}

impl Args for StorageArgs {
    fn augment_args(command: Command) -> Command {
        command.args(StorageArgs::settings().map(flag))
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StorageArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Choices { dtype, quantize, .. } = read(matches, StorageArgs::settings())?;
        let list = Settings::default();
        Ok(StorageArgs { dtype: dtype.unwrap_or(list.dtype), quantize: quantize.unwrap_or(list.quantize) })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A setting's flag. What is wrong with its value is said while flags are read.
fn flag(setting: &'static Setting) -> Arg {
    let check = |text: String| match setting.parse(&text) {
        Ok(_) => Ok(text),
        Err(Error::Invalid { detail, .. }) => Err(detail),
        Err(other) => Err(other.to_string()),
    };
    Arg::new(setting.name)
        .long(Spelling::Kebab.of(setting.name))
        .value_name(setting.name.to_ascii_uppercase())
        .help(format!("{} [default: {}]", setting.help, default(setting)))
        .action(ArgAction::Set)
        .allow_negative_numbers(matches!(setting.range, Range::Whole { .. } | Range::Number { .. }))
        .value_parser(StringValueParser::new().try_map(check))
}

/// Where a setting's value comes from when its flag is not given.
fn default(setting: &Setting) -> String {
    let value = plain(&(setting.default)());
    let mut sources = Vec::new();
    if setting.preset {
        sources.push("the preset's".to_owned());
    }
    if setting.file_key.is_some() {
        let with =
            setting.follows.map_or(String::new(), |other| format!(", without {},", Spelling::Flag.of(other.setting)));
        sources.push(format!("the model's{with} in generation_defaults.json"));
    }
    if SUITED.contains(&setting.name) {
        sources.push("what suits it".to_owned());
    }
    sources.push(match setting.follows {
        Some(other) => format!("the {}'s own: {}", other.setting, other.brings),
        None if setting.optional => "none".to_owned(),
        None => value,
    });
    sources.join(", else ")
}

/// The settings whose flags were given.
fn read<'a>(matches: &ArgMatches, settings: impl IntoIterator<Item = &'a Setting>) -> Result<Choices, clap::Error> {
    // Each was read once already, by its flag.
    let refused = |error: Error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n"));
    let mut choices = Choices::default();
    for setting in settings {
        if let Some(text) = matches.try_get_one::<String>(setting.name).ok().flatten() {
            choices.set_text(setting, text).map_err(refused)?;
        }
    }
    Ok(choices)
}

/// Choices as the flags that make them.
pub fn as_flags(choices: &Choices) -> String {
    let flags: Vec<_> =
        choices.iter().map(|(s, value)| format!("{} {}", Spelling::Flag.of(s.name), plain(&value))).collect();
    flags.join(" ")
}

/// A value as it is written after a flag.
pub fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        // 2 and not 2.0.
        serde_json::Value::Number(n) if n.is_f64() => n.as_f64().unwrap_or(f64::NAN).to_string(),
        other => other.to_string(),
    }
}

/// The message of a library's error, which names settings, with the flags that set them, as far as `command` has them: `pulid run` takes
/// `num_zero` by `--set`.
pub fn with_flags(error: &Error, command: &Command) -> String {
    let has = |name: &&str| command.get_arguments().any(|flag| flag.get_id() == *name);
    respell(error, LIST.iter().map(|s| s.name).chain(OTHERS).filter(has), Spelling::Flag)
}

/// A note of the library's with the flags that set what it names.
pub fn note_with_flags(text: &str) -> String {
    respell_text(text.to_owned(), LIST.iter().map(|s| s.name).chain(OTHERS), Spelling::Flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct All {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    fn parse(flags: &[&str]) -> Result<Choices, clap::Error> {
        All::try_parse_from([&["x"], flags].concat()).map(|all| all.settings.0)
    }

    #[test]
    fn every_setting_has_a_flag_that_sets_it() {
        let mut all = Vec::new();
        for setting in LIST {
            let value = match setting.range {
                Range::Choices(all) => all.last().unwrap().to_string(),
                Range::Whole { most, .. } => most.min(3).to_string(),
                Range::Number { most, .. } => most.min(0.25).to_string(),
                Range::Text => "a hat".to_owned(),
            };
            all.push((setting, value));
        }
        let flags: Vec<_> = all.iter().flat_map(|(s, value)| [Spelling::Flag.of(s.name), value.clone()]).collect();
        let choices = parse(&flags.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        for (setting, value) in &all {
            assert_eq!(choices.get(setting.name).map(|v| plain(&v)).as_ref(), Some(value), "{}", setting.name);
        }
        assert_eq!(as_flags(&choices), flags.join(" "));
        assert_eq!(parse(&[]).unwrap(), Choices::default());
    }

    #[test]
    fn negative_numbers_are_values() {
        let choices = parse(&["--id-scale", "-0.5", "--seed", "-1"]).unwrap();
        assert_eq!((choices.id_scale, choices.seed), (Some(-0.5), Some(u64::MAX)));
        let message = parse(&["--steps", "-1"]).unwrap_err().to_string();
        assert!(message.contains("invalid value '-1' for '--steps <STEPS>'"), "{message}");
    }

    #[test]
    fn a_refusal_names_the_flag_and_what_is_accepted() {
        for (flag, value, part) in [
            ("--ortho", "v9", "one of off, v1, v2"),
            ("--batch", "65", "a whole number from 1 to 64"),
            ("--guidance", "inf", "a number from 0 to 100"),
            ("--guidance", "1e30", "a number from 0 to 100"),
            ("--id-scale", "1e9", "a number from -5 to 5"),
            ("--quantize", "q2", "one of none, q8, q4"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            let message = error.to_string();
            assert_eq!(error.exit_code(), 2);
            assert!(message.contains(flag) && message.contains(part), "{message}");
        }
    }

    #[test]
    fn the_help_names_the_defaults_that_hold() {
        let command = SettingsArgs::augment_args(Command::new("generate"));
        let help = |name: &str| {
            let found = command.get_arguments().find(|a| a.get_id() == name).unwrap();
            found.get_help().unwrap().to_string()
        };
        let from = "[default: the preset's, else the model's in generation_defaults.json, else";
        assert!(help("width").ends_with(&format!("{from} 1024]")), "{}", help("width"));
        let suited = format!("{from} what suits it, else");
        assert!(help("steps").ends_with(&format!("{suited} 25]")), "{}", help("steps"));
        assert!(help("guidance").ends_with(&format!("{suited} 7]")), "{}", help("guidance"));
        assert!(help("sampler").ends_with(&format!("{suited} dpmpp_2m]")), "{}", help("sampler"));
        assert!(help("seed").ends_with("[default: 0]"), "{}", help("seed"));
        let spacing = "[default: the preset's, else the model's, without --sampler, in generation_defaults.json, else \
                       what suits it, else the sampler's own: karras for dpmpp_2m and dpmpp_sde, trailing for euler, \
                       leading for ddim]";
        assert!(help("spacing").ends_with(spacing), "{}", help("spacing"));
        let words = "[default: the model's in generation_defaults.json, else none]";
        assert!(help("negative_prompt").ends_with(words), "{}", help("negative_prompt"));
    }

    #[test]
    fn the_library_s_settings_are_said_as_flags() {
        let generate = SettingsArgs::augment_args(Command::new("generate")).arg(Arg::new("unet").long("unet"));
        let error = Error::invalid("id_scale", "is odd beside `num_zero`; see `unet` and `print`");
        let expected = "--id-scale: is odd beside `--num-zero`; see `--unet` and `print`";
        assert_eq!(with_flags(&error, &generate), expected);
        // A command without these flags.
        let run = StorageArgs::augment_args(Command::new("run"));
        assert_eq!(with_flags(&error, &run), error.to_string());
        let error = Error::Device("out of memory; try `dtype` f16".into());
        assert_eq!(with_flags(&error, &run), "device: out of memory; try `--dtype` f16");
    }
}
