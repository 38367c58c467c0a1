//! The whole library: a photo of a person and a prompt in, an image of that person out.
//!
//! ```text
//! cargo run --release -p pulid --example 4_picture_of_a_person [PHOTO [PROMPT]]
//! ```
//!
//! prints each stage and writes `person.png`. The folders named here are the mini models; the published ones have the same
//! layout.

use pulid::identity::{ExtractOptions, FaceModels};
use pulid::image::{ImageMetadata, encode_png, write_atomically};
use pulid::pipeline::{GenerateOptions, IdentityUse, LongPrompt, Pipeline, SdxlModel, Storage};
use pulid::runtime::{Reporter, Runtime};
use pulid::sampler::{SamplerKind, SamplerOptions, StepWindow};
use pulid_engine::{DeviceOptions, Observer};
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// Says what is going on; a real program would also offer to cancel.
struct Lines;

impl Observer for Lines {}

impl Reporter for Lines {
    fn stage(&self, name: &str) {
        println!("{name}");
    }

    fn step(&self, step: usize, steps: usize) {
        println!("  step {step} of {steps}");
    }
}

fn main() -> Result<()> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini");
    let mut arguments = std::env::args().skip(1);
    let photo = arguments.next().map_or_else(|| models.join("../../examples/faces/ada.jpg"), PathBuf::from);
    let prompt = arguments.next().unwrap_or_else(|| "an oil painting of a person, in a garden".into());
    let bytes = std::fs::read(&photo).map_err(|e| Error::io(&photo, e))?;

    pollster::block_on(async {
        let runtime = Runtime::open("auto", DeviceOptions::default()).await?;
        let pipeline = Pipeline::open(runtime, SdxlModel::open(models.join("sdxl"))?, Storage::default())?;
        let adapter = models.join("pulid_v1.1.safetensors");
        let faces = FaceModels::open(&models)?;
        let photos = [("photo".into(), bytes)];
        let person = pipeline.identify(&faces, &adapter, &photos, &ExtractOptions::default(), &Lines).await?;
        let options = GenerateOptions {
            prompt,
            negative_prompt: None,
            long_prompt: LongPrompt::Chunks,
            width: 128,
            height: 128,
            batch: 1,
            batch_index: None,
            guidance: 3.0,
            seed: 1,
            sampler: SamplerOptions { seed: 1, ..SamplerOptions::new(SamplerKind::DpmPp2M, 12) },
            identity: Some(IdentityUse {
                tokens: person.tokens,
                adapter,
                settings: IdentitySettings::default(),
                window: StepWindow::ALL,
            }),
        };
        let made = pipeline.generate(&options, &Lines).await?;
        let metadata = ImageMetadata { parameters: None, generated: true };
        write_atomically(Path::new("person.png"), &encode_png(&made.images[0], &metadata)?)?;
        println!("person.png");
        Ok(())
    })
}
