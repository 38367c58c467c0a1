//! CLIP as a judge of pictures.

use crate::ClipPreprocess;
use pulid::image::RgbImage;
use pulid::runtime::{Loaded, Reporter, Runtime};
use pulid_models::{Clip, Precision};
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A CLIP that embeds pictures and prompts in one space, in f32.
#[derive(Debug)]
pub struct ClipJudge {
    folder: PathBuf,
    clip: Clip,
    preprocess: ClipPreprocess,
}

impl ClipJudge {
    /// Opens the folder of a CLIP in transformers' layout. Only headers and configurations are read; both graphs are built once, so that
    /// what is missing is known now.
    ///
    /// # Errors
    /// What is missing, malformed or of another kind.
    pub fn open(folder: &Path) -> Result<ClipJudge> {
        let clip = Clip::open(folder, Precision::F32)?;
        clip.vision.graph(1)?;
        clip.text.graph(1, clip.tokenizer.length())?;
        let side = u32::try_from(clip.vision.config().image_size).map_err(|_| Error::file(folder, "is no CLIP"))?;
        let preprocess = ClipPreprocess::read(folder, side)?;
        Ok(ClipJudge { folder: folder.to_owned(), clip, preprocess })
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The projected embedding of each text, not L2-normalised. What exceeds CLIP's 77 tokens is not read.
    ///
    /// # Errors
    /// A text that the tokenizer cannot take, unreadable weights, a lost device, cancellation.
    pub async fn texts(&self, runtime: &Runtime, texts: &[&str], reporter: &dyn Reporter) -> Result<Vec<Vec<f32>>> {
        let length = self.clip.tokenizer.length();
        let mut loaded = runtime.load(&self.clip.text.graph(1, length)?, reporter).await?;
        let mut embeddings = Vec::with_capacity(texts.len());
        for text in texts {
            let ids = HostTensor::from_u32([1, length], self.clip.tokenizer.encode(text)?)?;
            for (name, tensor) in self.clip.text.inputs(&ids)? {
                loaded.write(name, &tensor)?;
            }
            embeddings.push(output(loaded.run(reporter).await?, "pooled")?);
        }
        Ok(embeddings)
    }

    /// The image encoder, ready for one picture after another.
    ///
    /// # Errors
    /// Unreadable weights, a lost device, cancellation.
    pub async fn load(&self, runtime: &Runtime, reporter: &dyn Reporter) -> Result<ClipEyes> {
        let loaded = runtime.load(&self.clip.vision.graph(1)?, reporter).await?;
        Ok(ClipEyes { loaded, preprocess: self.preprocess })
    }
}

/// CLIP's image encoder on a device.
pub struct ClipEyes {
    loaded: Loaded,
    preprocess: ClipPreprocess,
}

impl ClipEyes {
    /// The projected embedding of a picture, not L2-normalised.
    ///
    /// # Errors
    /// A picture of extreme proportions, a lost device, cancellation.
    pub async fn image(&mut self, picture: &RgbImage, reporter: &dyn Reporter) -> Result<Vec<f32>> {
        self.loaded.write("pixel_values", &self.preprocess.pixel_values(picture)?)?;
        output(self.loaded.run(reporter).await?, "image_embeds")
    }
}

fn output(mut outputs: HashMap<String, HostTensor>, name: &str) -> Result<Vec<f32>> {
    let output = outputs.remove(name).ok_or_else(|| Error::invalid("CLIP", format!("gave no output `{name}`")))?;
    Ok(output.to_f32_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cosine;
    use pulid_checkpoint::Checkpoint;
    use pulid_engine::Silent;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/clip-vision").join(name)
    }

    /// Cosines of transformers' CLIPModel with its tokenizer and image processor, from pixels and words to the number.
    #[test]
    fn scores_are_transformers() {
        let judge = ClipJudge::open(&golden("weights/whole")).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(golden("preprocess/preprocess.json")).unwrap()).unwrap();
        let file = Checkpoint::open(golden("preprocess/images.safetensors")).unwrap();
        let runtime = Runtime::Reference;
        pollster::block_on(async {
            let texts: Vec<_> = json["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
            let words = judge.texts(&runtime, &texts, &Silent).await.unwrap();
            let mut eyes = judge.load(&runtime, &Silent).await.unwrap();
            let mut seen = Vec::new();
            for i in 0..json["cases"].as_array().unwrap().len() {
                let key = format!("image.{i}");
                let shape = file.info(&key).unwrap().shape;
                let bytes = file.integers(&key).unwrap().iter().map(|&v| v as u8).collect();
                let image = RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap();
                seen.push(eyes.image(&image, &Silent).await.unwrap());
            }
            let near = |got: f64, want: &serde_json::Value| {
                // Measured is 4e-7; f32 in another order of sums on both sides.
                assert!((got - want.as_f64().unwrap()).abs() < 1e-5, "{got} for {want}");
            };
            for (i, image) in seen.iter().enumerate() {
                for (t, text) in words.iter().enumerate() {
                    near(cosine(image, text).unwrap(), &json["image_text"][i][t]);
                }
                for (j, other) in seen.iter().enumerate() {
                    near(cosine(image, other).unwrap(), &json["image_image"][i][j]);
                }
            }
        });
    }

    #[test]
    fn what_is_no_whole_clip_is_refused() {
        let refusal = |name: &str| ClipJudge::open(&golden(name)).unwrap_err().to_string();
        assert!(refusal("weights/quick-gelu").contains("text_projection"));
        assert!(refusal("weights/none").contains("none"));
        let text = ClipJudge::open(&golden("../text-encoder/weights/gelu-projected")).unwrap_err().to_string();
        assert!(text.contains("no CLIP in transformers' layout"), "{text}");
    }
}
