//! The list, and what is made of it.

use super::value::SettingValue;
use super::{Follows, Range, Setting};
use crate::pipeline::LongPrompt;
use crate::sampler::{FinalSigma, SamplerKind, Spacing, names};
use pulid_models::pulid::Ortho;
use pulid_tensor::DType;
use serde_json::Value;

/// Makes [`LIST`], [`Settings`] and [`Choices`] of `/// help`, `name: type = default, Setting { what differs, ..PLAIN };`.
macro_rules! settings {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty = $default:expr, $setting:expr;)+) => {
        /// Every setting, in the order in which people see them.
        pub const LIST: &[Setting] = &[$(Setting {
            name: stringify!($name),
            help: concat!($($help),+).trim_ascii_start(),
            default: || <$type>::to_json(&$default),
            ..$setting
        }),+];

        /// A value for every setting.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        /// Settings of which some have a value: a person's, a preset's or a model's.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Choices {
            $($(#[doc = $help])+ pub $name: Option<$type>,)+
        }

        impl Settings {
            /// The value of the setting of this name.
            pub fn get(&self, name: &str) -> Option<Value> {
                match name {
                    $(stringify!($name) => Some(self.$name.to_json()),)+
                    _ => None,
                }
            }
        }

        impl Choices {
            /// The value of the setting of this name, if it has one.
            pub fn get(&self, name: &str) -> Option<Value> {
                match name {
                    $(stringify!($name) => self.$name.as_ref().map(SettingValue::to_json),)+
                    _ => None,
                }
            }

            /// Sets the setting of this name; `None` if there is none or its type is another.
            pub(super) fn put(&mut self, name: &str, value: &Value) -> Option<()> {
                match name {
                    $(stringify!($name) => self.$name = Some(<$type>::from_json(value)?),)+
                    _ => return None,
                }
                Some(())
            }

            /// These, and `others` where these are open.
            pub fn or(self, others: Choices) -> Choices {
                Choices { $($name: self.$name.or(others.$name),)+ }
            }

            /// The list's defaults where these are open.
            pub(super) fn filled(self) -> Settings {
                Settings { $($name: self.$name.unwrap_or_else(|| $default),)+ }
            }
        }
    };
}

/// The names of every value of a type that has `ALL` and `name`.
macro_rules! names {
    ($type:ty) => {{
        const NAMES: [&str; <$type>::ALL.len()] = {
            let mut names = [""; <$type>::ALL.len()];
            let mut index = 0;
            while index < names.len() {
                names[index] = <$type>::ALL[index].name();
                index += 1;
            }
            names
        };
        Range::Choices(&NAMES)
    }};
}

const PIXELS: Range = Range::Whole { least: 1, most: 4096 };
const FRACTION: Range = Range::Number { least: 0.0, most: 1.0 };
// Numbers far beyond what anybody draws with overflow to a gray picture without a word.
const GUIDANCE: Range = Range::Number { least: 0.0, most: 100.0 };
// The official applications' slider ends at 5.
const ID_SCALE: Range = Range::Number { least: -5.0, most: 5.0 };

/// What PuLID's own applications ask for in their fields, and models and presets know best.
const PICTURE: Setting = Setting { preset: true, ..Setting::PLAIN };

settings! {
    /// Width in pixels, a multiple of 8 for SDXL
    width: usize = 1024, Setting { range: PIXELS, file_key: Some("width"), ..PICTURE };

    /// Height in pixels, a multiple of 8 for SDXL
    height: usize = 1024, Setting { range: PIXELS, file_key: Some("height"), ..PICTURE };

    /// Denoising steps; more take longer and change less and less
    steps: usize = 25, Setting {
        range: Range::Whole { least: 1, most: Range::UNLIMITED },
        file_key: Some("steps"),
        ..PICTURE
    };

    /// Classifier-free guidance, how strictly the prompt is followed; up to 1 is without, and twice as fast
    guidance: f32 = 7.0, Setting { range: GUIDANCE, file_key: Some("guidance_scale"), ..PICTURE };

    /// Solver: dpmpp_2m, dpmpp_sde (two calls a step), euler or ddim; other programs' names of them are understood, as DPM++ 2M Karras
    sampler: SamplerKind = SamplerKind::DpmPp2M, Setting {
        range: names!(SamplerKind),
        known_as: Some(names::sampler),
        file_key: Some("sampler"),
        ..PICTURE
    };

    /// Where the noise levels lie: karras, exponential and beta as k-diffusion and the web UI have them; trailing, leading, linspace and what ends in _diffusers as diffusers' schedulers have them
    spacing: Spacing = SamplerKind::DpmPp2M.default_spacing(), Setting {
        range: names!(Spacing),
        known_as: Some(names::spacing),
        follows: Some(Follows { setting: "sampler", brings: "karras for dpmpp_2m and dpmpp_sde, trailing for euler, leading for ddim" }),
        file_key: Some("spacing"),
        ..PICTURE
    };

    /// Noise left by the last step: zero, or sigma_min as diffusers 0.25 ends dpmpp_2m with trailing levels
    final_sigma: FinalSigma = FinalSigma::Zero, Setting { range: names!(FinalSigma), ..Setting::PLAIN };

    /// Strength of the identity; 0 is without
    id_scale: f32 = 0.8, Setting { range: ID_SCALE, file_key: Some("id_scale"), ..PICTURE };

    /// Zero tokens that draw attention away from the identity: more follow the prompt more
    num_zero: usize = 20, Setting {
        range: Range::Whole { least: 0, most: 4096 },
        file_key: Some("num_zero"),
        ..PICTURE
    };

    /// Projection of the identity features, which keeps them from disturbing the rest of the image: off, v1 or v2
    ortho: Ortho = Ortho::V2, Setting { range: names!(Ortho), file_key: Some("ortho"), ..PICTURE };

    /// Fraction of the steps at which the identity sets in
    id_start: f64 = 0.0, Setting { range: FRACTION, ..Setting::PLAIN };

    /// Fraction of the steps at which the identity ends
    id_end: f64 = 1.0, Setting { range: FRACTION, ..Setting::PLAIN };

    /// What the image does not show; none is another thing than an empty one where the model's `force_zeros_for_empty_prompt` says so
    negative_prompt: Option<String> = None, Setting {
        optional: true,
        file_key: Some("negative_prompt"),
        ..Setting::PLAIN
    };

    /// What becomes of a prompt of more than 75 tokens: chunks of 75, which the image follows together, or it is cut
    long_prompt: LongPrompt = LongPrompt::Chunks, Setting { range: names!(LongPrompt), preset: true, ..Setting::PLAIN };

    /// The same seed gives the same image, and the same noise as in PyTorch's CPU generator; -2^63 to 2^64-1, where -1 is 2^64-1
    seed: u64 = 0, Setting {
        range: Range::Whole { least: i64::MIN as i128, most: u64::MAX as i128 },
        ..Setting::PLAIN
    };

    // The page shows one image.
    /// Images at once
    batch: usize = 1, Setting { range: Range::Whole { least: 1, most: 64 }, page: false, ..Setting::PLAIN };

    // A batch is drawn as one, so that its members depend on their positions.
    /// Makes the batch's image of this position alone, counted from 0, as the whole batch would; a batch of 1 is taken for one that ends
    /// with it
    batch_index: Option<usize> = None, Setting {
        range: Range::Whole { least: 0, most: 63 },
        optional: true,
        page: false,
        ..Setting::PLAIN
    };

    /// Storage type: f16 halves the memory
    dtype: DType = DType::F32, Setting { range: Range::Choices(&["f32", "f16"]), ..Setting::PLAIN };

    /// Quantise the weights while they load: none, q8 (8.5 bits a weight) or q4 (4.5, visibly another image)
    quantize: Option<DType> = None, Setting { range: Range::Choices(&["none", "q8", "q4"]), ..Setting::PLAIN };
}
