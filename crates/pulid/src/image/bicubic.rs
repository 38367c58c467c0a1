use pulid_tensor::{Error, HostTensor, Result};

/// Resizes [N, H, W, C] f32 to [N, `height`, `width`, C] as `torch.nn.functional.interpolate(mode="bicubic",
/// align_corners=False, antialias=False)` does: Keys' kernel with A = -0.75, edges repeated, no clipping.
///
/// Coordinates are computed in f32, where PyTorch computes them.
///
/// # Errors
/// [`Error::Invalid`] unless the tensor is f32 of rank 4 and both sizes have pixels.
pub fn resize_bicubic(image: &HostTensor, height: usize, width: usize) -> Result<HostTensor> {
    let &[batch, from_h, from_w, channels] = image.shape().extents() else {
        return Err(Error::invalid("bicubic resize", format!("{} is not [N, H, W, C]", image.shape())));
    };
    if [from_h, from_w, height, width].contains(&0) {
        return Err(Error::invalid("bicubic resize", format!("{} to {height} x {width} has no pixels", image.shape())));
    }
    let source = image.as_f32()?;
    let (across, down) = (taps(from_w, width), taps(from_h, height));
    let mut out = Vec::with_capacity(batch * height * width * channels);
    for plane in source.chunks_exact((from_h * from_w * channels).max(1)).take(batch) {
        let at = |y: usize, x: usize, c: usize| f64::from(plane[(y * from_w + x) * channels + c]);
        for (rows, row_weights) in &down {
            for (columns, column_weights) in &across {
                for c in 0..channels {
                    let line = |y: usize| (0..4).map(|k| at(y, columns[k], c) * column_weights[k]).sum::<f64>();
                    out.push((0..4).map(|k| line(rows[k]) * row_weights[k]).sum::<f64>() as f32);
                }
            }
        }
    }
    HostTensor::from_f32([batch, height, width, channels], out)
}

/// For each output position the four input positions and their weights.
fn taps(from: usize, to: usize) -> Vec<([usize; 4], [f64; 4])> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| {
            let position = scale * (i as f32 + 0.5) - 0.5;
            let base = position.floor();
            let index = std::array::from_fn(|k| (base as i64 + k as i64 - 1).clamp(0, from as i64 - 1) as usize);
            (index, keys(f64::from(position - base)))
        })
        .collect()
}

/// Keys' cubic convolution weights for a position `t` right of the second of four pixels.
fn keys(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        from: [usize; 2],
        to: [usize; 2],
        image: Vec<f32>,
        resized: Vec<f32>,
    }

    #[test]
    fn resizing_is_pytorch_s() {
        let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/data/bicubic.json")).unwrap();
        assert!(goldens.len() >= 4);
        for golden in goldens {
            let [h, w] = golden.from;
            let image = HostTensor::from_f32([1, h, w, 2], golden.image).unwrap();
            let resized = resize_bicubic(&image, golden.to[0], golden.to[1]).unwrap();
            for (i, (ours, theirs)) in resized.as_f32().unwrap().iter().zip(&golden.resized).enumerate() {
                assert!(
                    (ours - theirs).abs() < 5e-6,
                    "{:?} to {:?} [{i}]: {ours} for {theirs}",
                    golden.from,
                    golden.to
                );
            }
        }
    }

    #[test]
    fn batches_are_resized_apart() {
        let both = HostTensor::from_fn([2, 3, 4, 1], |i| (i * i % 17) as f32);
        let second = HostTensor::from_fn([1, 3, 4, 1], |i| ((i + 12) * (i + 12) % 17) as f32);
        let resized = resize_bicubic(&both, 5, 2).unwrap();
        assert_eq!(resized.as_f32().unwrap()[10..], *resize_bicubic(&second, 5, 2).unwrap().as_f32().unwrap());
    }

    #[test]
    fn wrong_tensors_are_refused() {
        assert!(resize_bicubic(&HostTensor::zeros([3, 4, 1]), 5, 5).is_err());
        assert!(resize_bicubic(&HostTensor::zeros([1, 3, 4, 1]), 0, 5).is_err());
        assert!(resize_bicubic(&HostTensor::zeros([1, 0, 4, 1]), 2, 5).is_err());
        assert!(resize_bicubic(&HostTensor::from_u32([1, 1, 1, 1], vec![1]).unwrap(), 2, 5).is_err());
        assert_eq!(resize_bicubic(&HostTensor::zeros([1, 3, 4, 0]), 2, 2).unwrap().shape().count(), 0);
    }
}
