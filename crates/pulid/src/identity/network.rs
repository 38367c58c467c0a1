//! Running the face networks on one image at a time.

use crate::pipeline::take;
use crate::runtime::{Loaded, Reporter, Runtime};
use pulid_models::Precision;
use pulid_models::onnx::OnnxNetwork;
use pulid_tensor::{Error, HostTensor, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// An ONNX network with one image for its input, ready to run again and again.
pub(super) struct OnnxRunner {
    loaded: Loaded,
    input: String,
}

impl OnnxRunner {
    /// Loads the network for RGB images of the given height and width.
    pub async fn load(
        runtime: &Runtime,
        path: &Path,
        network: &OnnxNetwork,
        [height, width]: [usize; 2],
        reporter: &dyn Reporter,
    ) -> Result<OnnxRunner> {
        let &[input] = network.input_names().as_slice() else {
            let detail = format!("has {} inputs, expected one image", network.input_names().len());
            return Err(Error::file(path, detail));
        };
        let input = input.to_owned();
        let shapes = BTreeMap::from([(input.clone(), vec![1, 3, height, width])]);
        let graph = network.build(&shapes, Precision::F32)?;
        Ok(OnnxRunner { loaded: runtime.load(&graph, reporter).await?, input })
    }

    /// All outputs for an image [1, H, W, 3].
    pub async fn run(&mut self, image: &HostTensor, reporter: &dyn Reporter) -> Result<HashMap<String, HostTensor>> {
        self.loaded.write(&self.input, &image.nhwc_to_nchw()?)?;
        self.loaded.run(reporter).await
    }

    /// The output of a network that has just one.
    pub async fn run_single(&mut self, image: &HostTensor, reporter: &dyn Reporter) -> Result<HostTensor> {
        let mut outputs = self.run(image, reporter).await?;
        let names: Vec<String> = outputs.keys().cloned().collect();
        match names.as_slice() {
            [name] => take(&mut outputs, name),
            _ => Err(Error::invalid("face recogniser", format!("has {} outputs, expected one", names.len()))),
        }
    }
}
