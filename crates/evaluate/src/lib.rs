//! How well an adapter keeps a person, follows the prompt and leaves the base model alone.
//!
//! An [`Evaluation`] makes pictures of people by prompts, with each adapter and without identity from the same seeds, and measures
//! them as the tables of the PuLID paper do (arXiv 2404.16022, section 4 and its supplement):
//!
//! - **Face Sim**: the cosine of a face recogniser's embeddings of the face in the picture and in the person's photo;
//! - **CLIP-T**: the cosine of CLIP's embeddings of the picture and of its prompt, times 100;
//! - **CLIP-I**: the cosine of CLIP's embeddings of the pictures with and without identity.
//!
//! Pictures are kept in a folder with a list of those that are finished ([`Store`]), so that an evaluation that was stopped goes on
//! there. [`Report`] holds all numbers, [`page`] shows them.

mod clip;
mod make;
mod measure;
mod page;
mod people;
mod preprocess;
mod prompts;
mod report;
mod store;

pub use clip::ClipJudge;
pub use make::{Adapter, Evaluation, Made, ReadPhoto};
pub use measure::{Judges, measure};
pub use page::page;
pub use people::{Person, people};
pub use preprocess::ClipPreprocess;
pub use prompts::{Prompt, default_prompts, read_prompts};
pub use report::{AdapterReport, PersonReport, PictureReport, Report, Scores};
pub use store::Store;

use pulid::image::RgbImage;
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Hands cancellation and notes to another reporter, each note once, and counts steps of one picture among all; the stages of single
/// pictures are not told.
struct Within<'a> {
    outer: &'a dyn Reporter,
    noted: &'a RefCell<BTreeSet<String>>,
    /// Pieces of work done before, and in all, where each has as many steps as the sampler.
    of: Option<(usize, usize)>,
}

impl Observer for Within<'_> {
    fn cancelled(&self) -> bool {
        self.outer.cancelled()
    }
}

impl Reporter for Within<'_> {
    fn note(&self, text: &str) {
        if self.noted.borrow_mut().insert(text.to_owned()) {
            self.outer.note(text);
        }
    }

    fn step(&self, step: usize, steps: usize) {
        if let Some((before, all)) = self.of {
            self.outer.step(before * steps + step, all * steps);
        }
    }

    fn preview(&self, _: &RgbImage) {}
}

/// The cosine of two vectors; none where one has no direction.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    (a.len() == b.len() && cosine.is_finite()).then_some(cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_of_directions() {
        assert_eq!(cosine(&[3.0, 0.0], &[0.5, 0.0]), Some(1.0));
        assert_eq!(cosine(&[3.0, 0.0], &[0.0, 2.0]), Some(0.0));
        assert!((cosine(&[1.0, 1.0], &[1.0, 0.0]).unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), None);
    }
}
