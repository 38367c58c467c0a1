use super::RgbImage;
use pulid_tensor::{Error, HostTensor, Result};

/// A preview of latents [B, 4, h, w] without the VAE: the first image, a pixel each, by a linear map from latents to red, green
/// and blue in -1..1 whose last row is added to all.
///
/// # Errors
/// When the latents have another shape.
pub fn rgb_from_latents(latents: &HostTensor, map: &[[f32; 3]; 5]) -> Result<RgbImage> {
    let &[_, 4, height, width] = latents.shape().extents() else {
        return Err(Error::invalid("latents", format!("are {}, expected [B, 4, h, w]", latents.shape())));
    };
    let plane = height * width;
    let values = latents.as_f32()?;
    let pixel = |at: usize| -> [u8; 3] {
        std::array::from_fn(|rgb| {
            let sum: f32 = (0..4).map(|c| map[c][rgb] * values[c * plane + at]).sum();
            ((sum + map[4][rgb] + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
        })
    };
    let pixels = (0..plane).flat_map(pixel).collect();
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or_else(|| Error::invalid("latents", "have more pixels than an image can"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pixel_is_the_map_of_its_latents() {
        let latents = HostTensor::from_fn([2, 4, 1, 2], |i| [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0][i % 8]);
        let mut map = [[0.0; 3]; 5];
        (map[0], map[3], map[4]) = ([1.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]);
        let image = rgb_from_latents(&latents, &map).unwrap();
        assert_eq!(image.dimensions(), (2, 1));
        assert_eq!(image.as_raw(), &[128, 128, 255, 255, 0, 0]);
        assert!(rgb_from_latents(&HostTensor::zeros([1, 3, 2, 2]), &map).is_err());
    }
}
