//! Measuring the pictures.

use crate::report::PersonReport;
use crate::{AdapterReport, ClipJudge, Evaluation, Made, PictureReport, Report, Store, Within, cosine};
use pulid::identity::{FaceModels, FaceReader};
use pulid::image::decode_photo;
use pulid::pipeline::Pipeline;
use pulid::runtime::Reporter;
use pulid_tensor::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Who measures.
#[derive(Debug)]
pub struct Judges {
    /// A face recogniser's ONNX file.
    pub recogniser: PathBuf,
    /// Whether it is the one that the adapters read themselves.
    pub recogniser_is_the_adapters: bool,
    /// CLIP; without it CLIP-T and CLIP-I are left out.
    pub clip: Option<ClipJudge>,
    /// What a reader has to know of them.
    pub notes: Vec<String>,
}

/// What the judges make of one picture.
struct Seen {
    picture: String,
    face: Option<Vec<f32>>,
    clip: Option<Vec<f32>>,
}

/// Measures every picture of an evaluation.
///
/// # Errors
/// [`Error::Photo`] where a photo shows no face; a picture that is not there; files that are missing or of another kind, a lost device,
/// cancellation.
pub async fn measure(
    evaluation: &Evaluation,
    made: &Made,
    store: &Store,
    pipeline: &Pipeline,
    faces: &FaceModels,
    judges: Judges,
    reporter: &dyn Reporter,
) -> Result<Report> {
    let runtime = pipeline.runtime();
    let noted = RefCell::default();
    let within = Within { outer: reporter, noted: &noted, of: None };
    reporter.stage("measuring the photos");
    let mut reader = FaceReader::load(runtime, faces, &judges.recogniser, &within).await?;
    let mut references = Vec::new();
    for (done, person) in evaluation.people.iter().enumerate() {
        let mut photos = Vec::new();
        for path in &person.photos {
            let (name, bytes) = (evaluation.read_photo)(path)?;
            let seen = reader.read(&name, &decode_photo(&name, &bytes)?, &within).await?;
            let seen = seen.ok_or_else(|| {
                Error::photo(&name, "no face was found; use a photo that shows one face clearly, from the front")
            })?;
            photos.push(seen.embedding);
        }
        references.push(photos);
        reporter.step(done + 1, evaluation.people.len());
    }

    let keys: Vec<&String> =
        made.plain.iter().flatten().chain(made.identified.iter().flatten().flatten().flatten()).collect();
    reporter.stage(&format!("measuring {} pictures", keys.len()));
    let mut eyes = match &judges.clip {
        Some(clip) => Some(clip.load(runtime, &within).await?),
        None => None,
    };
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    for (done, key) in keys.iter().enumerate() {
        if !seen.contains_key(key.as_str()) {
            if reporter.cancelled() {
                return Err(Error::Cancelled);
            }
            let image = store.read(key)?;
            let picture = store.picture(key)?.to_owned();
            let face = reader.read(&picture, &image, &within).await?.map(|face| face.embedding);
            let clip = match &mut eyes {
                Some(eyes) => Some(eyes.image(&image, &within).await?),
                None => None,
            };
            seen.insert(key, Seen { picture, face, clip });
        }
        reporter.step(done + 1, keys.len());
    }
    drop((reader, eyes));
    let texts = match &judges.clip {
        Some(clip) => {
            let prompts: Vec<_> = evaluation.prompts.iter().map(|p| p.text.as_str()).collect();
            Some(clip.texts(runtime, &prompts, &within).await?)
        }
        None => None,
    };

    let seeds = evaluation.seeds();
    let score = |key: &str, plain: Option<&str>, person: usize, prompt: usize, image: usize| -> Result<PictureReport> {
        let of = |key: &str| seen.get(key).ok_or_else(|| Error::invalid("pictures", "one was not measured"));
        let one = of(key)?;
        let face_sim = one.face.as_ref().and_then(|face| {
            let cosines: Option<Vec<f64>> = references[person].iter().map(|photo| cosine(face, photo)).collect();
            cosines.map(|all| all.iter().sum::<f64>() / all.len() as f64)
        });
        let text = texts.as_ref().map(|texts| &texts[prompt]);
        let clip_t = one.clip.as_ref().zip(text).and_then(|(image, text)| cosine(image, text)).map(|c| 100.0 * c);
        let clip_i = match plain {
            Some(plain) => one.clip.as_ref().zip(of(plain)?.clip.as_ref()).and_then(|(a, b)| cosine(a, b)),
            None => None,
        };
        let face_found = one.face.is_some();
        let picture = one.picture.clone();
        Ok(PictureReport { picture, person, prompt, seed: seeds[image], face_found, face_sim, clip_t, clip_i })
    };
    let mut plain = Vec::new();
    for person in 0..evaluation.people.len() {
        for (prompt, row) in made.plain.iter().enumerate() {
            for (image, key) in row.iter().enumerate() {
                plain.push(score(key, None, person, prompt, image)?);
            }
        }
    }
    let mut adapters = Vec::new();
    for (adapter, people) in evaluation.adapters.iter().zip(&made.identified) {
        let mut pictures = Vec::new();
        for (person, prompts) in people.iter().enumerate() {
            for (prompt, row) in prompts.iter().enumerate() {
                for (image, key) in row.iter().enumerate() {
                    pictures.push(score(key, Some(&made.plain[prompt][image]), person, prompt, image)?);
                }
            }
        }
        let file = Some((adapter.file.clone(), adapter.sha256.clone()));
        let people = evaluation.people.len();
        adapters.push(AdapterReport::new(adapter.name.clone(), file, pictures, &evaluation.prompts, people));
    }
    let without_identity =
        AdapterReport::new("without identity".into(), None, plain, &evaluation.prompts, evaluation.people.len());
    let parameters = evaluation.options(&evaluation.prompts[0], seeds[0]).parameters(pipeline.model().path(), 0);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION").into(),
        device: runtime.name(),
        model: pipeline.model().path().to_owned(),
        parameters,
        recogniser: judges.recogniser,
        recogniser_is_the_adapters: judges.recogniser_is_the_adapters,
        clip: judges.clip.map(|clip| clip.folder().to_owned()),
        notes: judges.notes,
        seeds,
        prompts: evaluation.prompts.clone(),
        people: evaluation
            .people
            .iter()
            .map(|p| PersonReport { name: p.name.clone(), photos: p.photos.clone() })
            .collect(),
        without_identity,
        adapters,
    })
}
