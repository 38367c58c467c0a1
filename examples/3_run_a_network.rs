//! A network from its checkpoint: the mini VAE takes a portrait apart and puts it together again.
//!
//! ```text
//! cargo run -p pulid --example 3_run_a_network [PHOTO]
//! ```
//!
//! writes `vae.png` and prints how many elements the latents have:
//!
//! ```text
//! 128 x 128 x 3 pixels as [1, 16, 16, 4] latents; vae.png shows them decoded
//! ```

use pulid::image::{
    ImageMetadata, Normalization, decode_photo, encode_png, resize_bilinear, rgb_from_tensor, tensor_from_rgb,
    write_atomically,
};
use pulid::runtime::Runtime;
use pulid_engine::{DeviceOptions, Silent};
use pulid_models::Precision;
use pulid_models::sdxl::Vae;
use pulid_tensor::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let photo = std::env::args().nth(1).map_or_else(|| root.join("examples/faces/ada.jpg"), Into::into);
    let bytes = std::fs::read(&photo).map_err(|e| Error::io(&photo, e))?;
    let photo = resize_bilinear(&decode_photo("the photo", &bytes)?, 128, 128)?;

    pollster::block_on(async {
        let runtime = Runtime::open("auto", DeviceOptions::default()).await?;
        let vae = Vae::open(root.join("models/mini/sdxl/vae"), Precision::F32)?;
        // Pixels in -1..1, channels last; a graph is built for one size.
        let sample = tensor_from_rgb(&photo, &Normalization::SYMMETRIC);
        // What is too large for the device is computed in bands.
        let encoder = vae.encoder(1, 128, 128)?;
        let encoded = runtime.run(&encoder, &HashMap::from([("sample".into(), sample)]), &Silent).await?;
        let latent = encoded["mean"].clone();
        let shape = latent.shape().clone();
        let decoder = vae.decoder(1, 16, 16)?;
        let decoded = runtime.run(&decoder, &HashMap::from([("latent".into(), latent)]), &Silent).await?;
        for image in rgb_from_tensor(&decoded["sample"])? {
            write_atomically(Path::new("vae.png"), &encode_png(&image, &ImageMetadata::default())?)?;
        }
        println!("128 x 128 x 3 pixels as {shape} latents; vae.png shows them decoded");
        Ok(())
    })
}
