//! Sample images of a run: the same prompts and faces at each, without and with the identity side by side.

use image::imageops::replace;
use pulid::identity::{ExtractOptions, FaceModels};
use pulid::image::{RgbImage, encode_png};
use pulid::pipeline::{GenerateOptions, IdentityUse, Pipeline};
use pulid::runtime::{Quiet, Reporter, Runtime};
use pulid::sampler::StepWindow;
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{Error, Result};
use std::path::Path;

/// Pixels that a contact sheet has at most in all.
const MOST_PIXELS: u64 = 1 << 28;

/// What sample images are made of.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Settings of every image; prompt and identity are set for each.
    pub options: GenerateOptions,
    /// How the identity enters.
    pub settings: IdentitySettings,
    /// Prompts.
    pub prompts: Vec<String>,
    /// Photos, a name and the file's bytes each.
    pub photos: Vec<(String, Vec<u8>)>,
}

impl Sampling {
    /// Whether there is nothing to make.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty() || self.photos.is_empty()
    }

    /// Refuses more images than one sheet holds.
    ///
    /// # Errors
    /// Names prompts and photos.
    pub fn check(&self) -> Result<()> {
        let one = 2 * self.options.width as u64 * self.options.height as u64;
        let rows = self.prompts.len() as u64 * self.photos.len() as u64;
        match one.checked_mul(rows) {
            Some(pixels) if pixels <= MOST_PIXELS => Ok(()),
            _ => {
                let detail = format!(
                    "{} and {} photos make {rows} pairs of images of {} x {}, which are more than one sheet holds",
                    self.prompts.len(),
                    self.photos.len(),
                    self.options.width,
                    self.options.height
                );
                Err(Error::invalid("prompts", detail))
            }
        }
    }

    /// A sheet as PNG: a row for each photo and prompt, without the identity on the left and with it on the right.
    ///
    /// # Errors
    /// Photos without a face, an adapter that does not fit, a lost device, cancellation.
    pub async fn make(
        &self,
        pipeline: &Pipeline,
        faces: &FaceModels,
        adapter: &Path,
        reporter: &dyn Reporter,
    ) -> Result<Vec<u8>> {
        reporter.stage("sample images");
        let quiet = Quiet(reporter);
        let (width, height) = (self.options.width as u32, self.options.height as u32);
        let rows = self.photos.len() * self.prompts.len();
        let mut sheet = RgbImage::new(2 * width, height * rows as u32);
        let mut row = 0;
        for photo in &self.photos {
            let photos = std::slice::from_ref(photo);
            let identity = pipeline.identify(faces, adapter, photos, &ExtractOptions::default(), &quiet).await?;
            for prompt in &self.prompts {
                for (column, with) in [false, true].into_iter().enumerate() {
                    let identity = with.then(|| IdentityUse {
                        tokens: identity.tokens.clone(),
                        adapter: adapter.to_owned(),
                        settings: self.settings,
                        window: StepWindow::ALL,
                    });
                    // Both encode an empty negative prompt, or they would differ in that too.
                    let negative_prompt = Some(self.options.negative_prompt.clone().unwrap_or_default());
                    let options =
                        GenerateOptions { prompt: prompt.clone(), negative_prompt, identity, ..self.options.clone() };
                    let made = pipeline.generate(&options, &quiet).await?;
                    if let Some(image) = made.images.first() {
                        replace(&mut sheet, image, i64::from(column as u32 * width), i64::from(row as u32 * height));
                    }
                }
                row += 1;
                reporter.step(row, rows);
            }
        }
        // What made them is not needed until the next ones.
        let runtime: &Runtime = pipeline.runtime();
        runtime.clear();
        encode_png(&sheet, &pulid::image::ImageMetadata { parameters: None, generated: true })
    }
}
