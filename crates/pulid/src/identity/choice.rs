//! Which face of a photo is the person.

use crate::face::{Face, centre_most_face, large_enough, surely_largest};
use pulid_tensor::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Which face of a photo with several is the person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaceChoice {
    /// As in the official pipelines: insightface's largest face of those it is [nearly as sure](crate::face::NEARLY_AS_SURE) of as of the
    /// surest is recognised; facexlib's detector, where it is at hand, shows parser
    /// and tower the face nearest to the photo's middle, which may be another one.
    #[default]
    Official,
    /// The largest, however sure the detector is of it.
    Largest,
    /// The one nearest to the photo's middle.
    Centre,
    /// The leftmost in the photo.
    Left,
    /// The rightmost in the photo.
    Right,
    /// The one at this place, from 1, of the list that [`detect`](super::detect) gives, best score first.
    Number(usize),
}

/// Words of a choice and what they mean.
const WORDS: [(&str, FaceChoice); 5] = [
    ("largest", FaceChoice::Largest),
    ("centre", FaceChoice::Centre),
    ("center", FaceChoice::Centre),
    ("left", FaceChoice::Left),
    ("right", FaceChoice::Right),
];

impl FromStr for FaceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, choice)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*choice);
        }
        match text.parse() {
            Ok(number @ 1..) => Ok(FaceChoice::Number(number)),
            _ => {
                let detail = format!("`{text}` is none of largest, centre, left, right or a face's number from 1");
                Err(Error::invalid("face", detail))
            }
        }
    }
}

impl fmt::Display for FaceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaceChoice::Official => f.write_str("the largest that is clearly a face"),
            FaceChoice::Largest => f.write_str("the largest"),
            FaceChoice::Centre => f.write_str("the one nearest to the middle"),
            FaceChoice::Left => f.write_str("the leftmost"),
            FaceChoice::Right => f.write_str("the rightmost"),
            FaceChoice::Number(number) => write!(f, "number {number}"),
        }
    }
}

impl FaceChoice {
    /// The position of the person's face among those of a photo of the given size, best score first.
    ///
    /// # Errors
    /// [`Error::Photo`] when there is no such face, or it is too small.
    pub(super) fn of(self, name: &str, faces: &[Face], size: (u32, u32)) -> Result<usize> {
        let middle = |face: &Face| face.bbox[0] + face.bbox[2];
        let by_middle = |a: &usize, b: &usize| middle(&faces[*a]).total_cmp(&middle(&faces[*b]));
        let chosen = match self {
            FaceChoice::Official => surely_largest(faces),
            FaceChoice::Largest => (0..faces.len()).max_by(|a, b| faces[*a].area().total_cmp(&faces[*b].area())),
            FaceChoice::Centre => centre_most_face(faces, size),
            FaceChoice::Left => (0..faces.len()).min_by(by_middle),
            FaceChoice::Right => (0..faces.len()).max_by(by_middle),
            FaceChoice::Number(number) => {
                if !faces.is_empty() && number > faces.len() {
                    let count = faces.len();
                    let shows = if count == 1 { "one face".into() } else { format!("{count} faces") };
                    return Err(Error::photo(name, format!("it shows {shows}; there is no number {number}")));
                }
                number.checked_sub(1).filter(|i| *i < faces.len())
            }
        };
        // Says that there is none, or that it is tiny.
        large_enough(name, chosen.map(|i| &faces[i]))?;
        Ok(chosen.unwrap_or(0))
    }

    /// What is worth saying of a photo with several faces, of which the first was taken; `scale` pixels of the photo make one of theirs.
    pub(super) fn note(self, name: &str, faces: &[Face], scale: f32) -> Option<String> {
        let [taken, others @ ..] = faces else { return None };
        let (size, count) = (taken.size(), faces.len());
        let [width, height, left, top] = [size.0, size.1, taken.bbox[0], taken.bbox[1]].map(|v| v * scale);
        (!others.is_empty()).then(|| {
            format!(
                "{name} shows {count} faces; {self} was taken, {width:.0} x {height:.0} pixels at ({left:.0}, {top:.0}). `face` chooses \
                 another: largest, centre, left, right or its number"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(left: f32, top: f32, side: f32, score: f32) -> Face {
        Face { bbox: [left, top, left + side, top + side], score, landmarks: [[0.0; 2]; 5] }
    }

    #[test]
    fn faces_are_chosen_by_place_size_and_number() {
        let faces = [face(300.0, 0.0, 90.0, 0.9), face(10.0, 20.0, 120.0, 0.8), face(200.0, 100.0, 60.0, 0.7)];
        let of = |text: &str| text.parse::<FaceChoice>().unwrap().of("us.jpg", &faces, (480, 270));
        for (text, index) in
            [("largest", 1), ("left", 1), ("right", 0), ("centre", 2), ("center", 2), ("1", 0), ("3", 2)]
        {
            assert_eq!(of(text).unwrap(), index, "{text}");
        }
        assert_eq!(FaceChoice::Official.of("us.jpg", &faces, (480, 270)).unwrap(), 1);
        let doubtful = [face(300.0, 0.0, 90.0, 0.9), face(10.0, 20.0, 120.0, 0.55)];
        assert_eq!(FaceChoice::Official.of("us.jpg", &doubtful, (480, 270)).unwrap(), 0);
        assert_eq!(FaceChoice::Largest.of("us.jpg", &doubtful, (480, 270)).unwrap(), 1);
        assert!(of("4").unwrap_err().to_string().contains("shows 3 faces; there is no number 4"));
        for text in ["0", "-1", "biggest", ""] {
            assert!(text.parse::<FaceChoice>().unwrap_err().to_string().contains("largest, centre"), "{text}");
        }
        let none = FaceChoice::Number(1).of("us.jpg", &[], (480, 270)).unwrap_err();
        assert!(none.to_string().contains("no face was found"), "{none}");
        assert!(FaceChoice::Left.of("us.jpg", &[face(0.0, 0.0, 9.0, 1.0)], (480, 270)).is_err(), "it is tiny");
    }

    #[test]
    fn the_one_that_was_taken_is_said_where_there_are_several() {
        let faces = [face(10.0, 20.0, 120.0, 0.8), face(300.0, 0.0, 90.0, 0.9)];
        let note = FaceChoice::Official.note("us.jpg", &faces, 1.5).unwrap();
        assert!(
            note.contains("2 faces; the largest that is clearly a face was taken, 180 x 180 pixels at (15, 30)"),
            "{note}"
        );
        assert_eq!(FaceChoice::Official.note("me.jpg", &faces[..1], 1.0), None);
    }
}
