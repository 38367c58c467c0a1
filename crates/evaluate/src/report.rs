//! All numbers of an evaluation.

use crate::Prompt;
use serde::Serialize;
use std::path::PathBuf;

/// Means over pictures. A measure is null where nothing was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Pictures that were looked at.
    pub pictures: usize,
    /// Those of them in which a face was found.
    pub faces: usize,
    /// Mean cosine to the person's photos, of the pictures in which a face was found.
    pub face_sim: Option<f64>,
    /// The same with a picture without a face counted as 0.
    pub face_sim_with_missing_as_zero: Option<f64>,
    /// Mean of 100 times the cosine to the prompt.
    pub clip_t: Option<f64>,
    /// Mean cosine to the picture without identity.
    pub clip_i: Option<f64>,
}

impl Scores {
    /// The means of some pictures.
    pub fn of<'a>(pictures: impl IntoIterator<Item = &'a PictureReport>) -> Scores {
        let pictures: Vec<_> = pictures.into_iter().collect();
        let mean = |of: fn(&PictureReport) -> Option<f64>| {
            let values: Vec<f64> = pictures.iter().filter_map(|p| of(p)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let face_sim = mean(|p| p.face_sim);
        let measured = pictures.iter().filter(|p| p.face_sim.is_some()).count();
        Scores {
            pictures: pictures.len(),
            faces: pictures.iter().filter(|p| p.face_found).count(),
            face_sim,
            face_sim_with_missing_as_zero: (!pictures.is_empty())
                .then(|| face_sim.unwrap_or(0.0) * measured as f64 / pictures.len() as f64),
            clip_t: mean(|p| p.clip_t),
            clip_i: mean(|p| p.clip_i),
        }
    }
}

/// One picture. Of one without identity, Face Sim is measured to every person: it is in the report once for each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PictureReport {
    /// Its file, below the report's folder.
    pub picture: String,
    /// Which of [`Report::people`].
    pub person: usize,
    /// Which of [`Report::prompts`].
    pub prompt: usize,
    /// The seed.
    pub seed: u64,
    /// Whether a face was found in it.
    pub face_found: bool,
    /// Cosine to the person's photos, the mean of several.
    pub face_sim: Option<f64>,
    /// 100 times the cosine to the prompt.
    pub clip_t: Option<f64>,
    /// Cosine to the picture without identity.
    pub clip_i: Option<f64>,
}

/// Everything of one adapter, or of the pictures without identity.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterReport {
    /// What it is called.
    pub name: String,
    /// Its file; none without identity.
    pub file: Option<PathBuf>,
    /// SHA-256 of the file.
    pub sha256: Option<String>,
    /// Means over all pictures.
    pub mean: Scores,
    /// Means for each prompt.
    pub per_prompt: Vec<Scores>,
    /// Means for each person.
    pub per_person: Vec<Scores>,
    /// Means for each category of prompts, in the order of the list.
    pub per_category: Vec<(String, Scores)>,
    /// Each picture.
    pub pictures: Vec<PictureReport>,
}

impl AdapterReport {
    /// The means of these pictures.
    pub fn new(
        name: String,
        file: Option<(PathBuf, String)>,
        pictures: Vec<PictureReport>,
        prompts: &[Prompt],
        people: usize,
    ) -> AdapterReport {
        let mut categories: Vec<&String> = Vec::new();
        for category in prompts.iter().filter_map(|p| p.category.as_ref()) {
            if !categories.contains(&category) {
                categories.push(category);
            }
        }
        let of = |keep: &dyn Fn(&PictureReport) -> bool| Scores::of(pictures.iter().filter(|p| keep(p)));
        let within = |c: &String| of(&|p| prompts[p.prompt].category.as_ref() == Some(c));
        let (file, sha256) = file.unzip();
        AdapterReport {
            name,
            file,
            sha256,
            mean: of(&|_| true),
            per_prompt: (0..prompts.len()).map(|i| of(&|p| p.prompt == i)).collect(),
            per_person: (0..people).map(|i| of(&|p| p.person == i)).collect(),
            per_category: categories.into_iter().map(|c| (c.clone(), within(c))).collect(),
            pictures,
        }
    }
}

/// A person of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PersonReport {
    /// The name.
    pub name: String,
    /// The photos that were read.
    pub photos: Vec<PathBuf>,
}

/// The whole evaluation; `evaluation.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The program's version.
    pub version: String,
    /// The device.
    pub device: String,
    /// The base model.
    pub model: PathBuf,
    /// How the pictures were made, as the file of a picture has it; of the first adapter, prompt and seed.
    pub parameters: String,
    /// The face recogniser's file.
    pub recogniser: PathBuf,
    /// Whether it is the one that the adapters read themselves.
    pub recogniser_is_the_adapters: bool,
    /// CLIP's folder; without it CLIP-T and CLIP-I are null.
    pub clip: Option<PathBuf>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// Seeds of each person and prompt.
    pub seeds: Vec<u64>,
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// The people.
    pub people: Vec<PersonReport>,
    /// The pictures without identity. Their Face Sim is what somebody else reaches.
    pub without_identity: AdapterReport,
    /// Each adapter.
    pub adapters: Vec<AdapterReport>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_leave_out_what_was_not_measured_and_say_how_much() {
        let picture = |prompt, person, face_sim: Option<f64>, clip_i| PictureReport {
            picture: String::new(),
            person,
            prompt,
            seed: 0,
            face_found: face_sim.is_some(),
            face_sim,
            clip_t: None,
            clip_i,
        };
        let prompts = ["a", "b", "c"]
            .map(|text| Prompt { text: text.into(), category: (text != "c").then(|| "style".to_owned()) });
        let pictures = vec![
            picture(0, 0, Some(0.5), Some(0.25)),
            picture(0, 1, None, Some(0.75)),
            picture(1, 0, Some(0.25), None),
            picture(2, 1, Some(0.75), None),
        ];
        let report = AdapterReport::new("own".into(), None, pictures, &prompts, 2);
        let mean = &report.mean;
        assert_eq!(
            (mean.pictures, mean.faces, mean.face_sim, mean.clip_t, mean.clip_i),
            (4, 3, Some(0.5), None, Some(0.5))
        );
        assert_eq!(mean.face_sim_with_missing_as_zero, Some(0.375));
        assert_eq!(report.per_prompt[0].face_sim, Some(0.5));
        assert_eq!(report.per_person[1].face_sim, Some(0.75));
        assert_eq!(report.per_category[0].1.face_sim, Some(0.375));
        assert_eq!((report.per_category.len(), Scores::of([])), (1, Scores::default()));
    }
}
