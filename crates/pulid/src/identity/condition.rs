//! What the identity encoder is given: features of all photos of a person, one after another.

use pulid_tensor::{Error, HostTensor, Result};
use std::collections::HashMap;

/// Hidden states that the identity encoder reads from the vision tower.
pub(super) const HIDDEN_STATES: usize = 5;

/// What the networks see in one photo.
#[derive(Clone, Debug)]
pub(super) struct PhotoFeatures {
    /// The recogniser's raw embedding [1, 512].
    pub face: HostTensor,
    /// The tower's class embedding [1, D], as the network gives it.
    pub class: HostTensor,
    /// The tower's hidden states, [1, tokens, W] each.
    pub hidden: Vec<HostTensor>,
}

/// The encoder's inputs for one person: `id_cond` [1, photos, 512 + D] of raw face embedding and class embedding of
/// length 1, and `hidden_0` .. `hidden_4` [1, photos * tokens, W].
///
/// # Errors
/// When there is no photo, or photos differ in shape.
pub(super) fn encoder_inputs(photos: &[PhotoFeatures]) -> Result<HashMap<String, HostTensor>> {
    let mut inputs = HashMap::from([("id_cond".to_owned(), conditions(photos)?)]);
    for scale in 0..HIDDEN_STATES {
        let state = |p| PhotoFeatures::state(p, scale);
        let states = photos.iter().map(state).collect::<Result<Vec<_>>>()?;
        inputs.insert(format!("hidden_{scale}"), join_tokens(&states)?);
    }
    Ok(inputs)
}

/// The identity conditions alone, [1, photos, 512 + D].
///
/// # Errors
/// As [`encoder_inputs`].
pub(super) fn conditions(photos: &[PhotoFeatures]) -> Result<HostTensor> {
    let mut conditions = Vec::with_capacity(photos.len());
    for photo in photos {
        let condition = [photo.face.as_f32()?, &unit_length(photo.class.as_f32()?)].concat();
        conditions.push(HostTensor::from_f32([1, 1, condition.len()], condition)?);
    }
    join_tokens(&conditions.iter().collect::<Vec<_>>())
}

impl PhotoFeatures {
    fn state(&self, scale: usize) -> Result<&HostTensor> {
        let missing = || Error::invalid("vision tower", format!("gave no hidden state {scale}"));
        self.hidden.get(scale).ok_or_else(missing)
    }
}

/// As `torch.nn.functional.normalize`: lengths below 1e-12 count as 1e-12.
fn unit_length(values: &[f32]) -> Vec<f32> {
    let length = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
    values.iter().map(|&v| (f64::from(v) / length) as f32).collect()
}

/// Tensors [1, n, C] one after another along the middle axis.
pub(super) fn join_tokens(parts: &[&HostTensor]) -> Result<HostTensor> {
    let wrong = |detail: String| Error::invalid("identity features", detail);
    let (mut rows, mut width, mut values) = (0, None, Vec::new());
    for part in parts {
        let &[1, n, c] = part.shape().extents() else {
            return Err(wrong(format!("{} is not [1, tokens, channels]", part.shape())));
        };
        if width.is_some_and(|w| w != c) {
            return Err(wrong(format!("photos give different widths ({width:?} and {c})")));
        }
        width = Some(c);
        rows += n;
        values.extend_from_slice(part.as_f32()?);
    }
    HostTensor::from_f32([1, rows, width.ok_or_else(|| wrong("there is no photo".into()))?], values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(start: f32) -> PhotoFeatures {
        PhotoFeatures {
            face: HostTensor::from_fn([1, 512], |i| start + i as f32),
            class: HostTensor::from_f32([1, 2], vec![3.0, -4.0]).unwrap(),
            hidden: (0..HIDDEN_STATES)
                .map(|k| HostTensor::from_fn([1, 5, 2], |i| start + (100 * k + i) as f32))
                .collect(),
        }
    }

    #[test]
    fn photos_follow_one_another() {
        for n in 1..=4 {
            let photos: Vec<_> = (0..n).map(|i| photo(1000.0 * i as f32)).collect();
            let inputs = encoder_inputs(&photos).unwrap();
            assert_eq!(inputs.len(), 6);
            let condition = &inputs["id_cond"];
            assert_eq!(condition.shape().extents(), [1, n, 514]);
            for (i, row) in condition.as_f32().unwrap().chunks(514).enumerate() {
                // The face stays raw, the class gets length 1.
                assert_eq!(&row[..2], &[1000.0 * i as f32, 1000.0 * i as f32 + 1.0]);
                assert_eq!(&row[512..], &[0.6, -0.8]);
            }
            let hidden = &inputs["hidden_3"];
            assert_eq!(hidden.shape().extents(), [1, n * 5, 2]);
            let last = hidden.as_f32().unwrap()[(n - 1) * 10];
            assert_eq!(last, 1000.0 * (n - 1) as f32 + 300.0);
        }
    }

    #[test]
    fn features_that_do_not_fit_are_refused() {
        assert!(encoder_inputs(&[]).is_err());
        let mut odd = photo(0.0);
        odd.hidden[2] = HostTensor::zeros([1, 5, 3]);
        assert!(encoder_inputs(&[photo(0.0), odd.clone()]).is_err());
        odd.hidden.truncate(2);
        assert!(encoder_inputs(&[odd]).is_err());
        assert_eq!(unit_length(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
