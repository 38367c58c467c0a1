//! facexlib's detector, which places the crop for parser and tower in the official pipelines.

use super::FaceModels;
use crate::face::{Face, decode_retinaface, retinaface_input};
use crate::image::RgbImage;
use crate::pipeline::take;
use crate::runtime::{Loaded, Reporter, Runtime};
use pulid_models::Precision;
use pulid_models::face::RetinaFace;
use pulid_tensor::{Error, Result};

/// RetinaFace, ready for one photo after another. It sees a photo at its own size, so each size has its own graph.
pub(super) struct Aligner {
    network: RetinaFace,
    loaded: Option<((u32, u32), Loaded)>,
}

impl Aligner {
    /// The detector of these models; `None` where they have none.
    pub fn open(models: &FaceModels) -> Result<Option<Aligner>> {
        Ok(models.retinaface(Precision::F32)?.map(|network| Aligner { network, loaded: None }))
    }

    /// Faces in the pixels of `photo` that score above `threshold`, the best first.
    pub async fn find(
        &mut self,
        runtime: &Runtime,
        name: &str,
        photo: &RgbImage,
        threshold: f32,
        reporter: &dyn Reporter,
    ) -> Result<Vec<Face>> {
        let size = photo.dimensions();
        if self.loaded.as_ref().is_none_or(|(of, _)| *of != size) {
            let graph = self.network.graph(1, size.1 as usize, size.0 as usize).map_err(|e| match e {
                Error::Invalid { .. } => {
                    Error::photo(name, format!("faces cannot be looked for ({e}); use a larger one"))
                }
                other => other,
            })?;
            // What was loaded for another size goes first.
            self.loaded = None;
            self.loaded = Some((size, runtime.load(&graph, reporter).await?));
        }
        let Some((_, loaded)) = &mut self.loaded else {
            return Err(Error::invalid("RetinaFace", "was not loaded"));
        };
        loaded.write("image", &retinaface_input(photo))?;
        let mut outputs = loaded.run(reporter).await?;
        let [loc, conf, landms] = ["loc", "conf", "landms"].map(|output| take(&mut outputs, output));
        decode_retinaface([&loc?, &conf?, &landms?], size, threshold)
    }
}
