//! Making the pictures.

use crate::store::sha256;
use crate::{Person, Prompt, Store, Within};
use pulid::identity::{ExtractOptions, FaceModels};
use pulid::image::{ImageFormat, ImageMetadata, encode_image};
use pulid::pipeline::{GenerateOptions, IdentityTokens, IdentityUse, Pipeline, SdxlModel};
use pulid::runtime::Reporter;
use pulid::sampler::StepWindow;
use pulid::settings::Settings;
use pulid_checkpoint::sha256_file;
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::{Error, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// An adapter to be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// What it is called.
    pub name: String,
    /// A PuLID file.
    pub file: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl Adapter {
    /// Reads the file's hash.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(name: String, file: PathBuf) -> Result<Adapter> {
        let sha256 = sha256_file(&file)?;
        Ok(Adapter { name, file, sha256 })
    }
}

/// Reads a photo's name and bytes.
pub type ReadPhoto = fn(&Path) -> Result<(String, Vec<u8>)>;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Whose pictures.
    pub people: Vec<Person>,
    /// Of what.
    pub prompts: Vec<Prompt>,
    /// By which adapters.
    pub adapters: Vec<Adapter>,
    /// Pictures of each person, prompt and adapter; their seeds are the settings' and those that follow it.
    pub images: usize,
    /// How pictures are made.
    pub settings: Settings,
    /// How photos are read.
    pub read_photo: ReadPhoto,
}

/// Where the finished pictures lie in their [`Store`], by their keys.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// Without identity: [prompt][image].
    pub plain: Vec<Vec<String>>,
    /// With each adapter: [adapter][person][prompt][image].
    pub identified: Vec<Vec<Vec<Vec<String>>>>,
}

/// A picture that is to be made.
struct Job<'a> {
    key: String,
    options: GenerateOptions,
    folders: Vec<&'a str>,
    /// Adapter and person.
    shows: Option<(usize, usize)>,
}

impl Evaluation {
    /// The seeds of each person and prompt.
    pub fn seeds(&self) -> Vec<u64> {
        (0..self.images as u64).map(|i| self.settings.seed.wrapping_add(i)).collect()
    }

    /// What a picture is made with, without identity. The unconditional pass reads an empty prompt where there is no negative one, as
    /// with identity: else the two would differ in more than identity.
    pub fn options(&self, prompt: &Prompt, seed: u64) -> GenerateOptions {
        let settings = Settings { seed, ..self.settings.clone() };
        let mut options = settings.options(&prompt.text);
        options.negative_prompt.get_or_insert_default();
        options
    }

    /// Refuses what no evaluation can be made of.
    ///
    /// # Errors
    /// Nobody, no prompt, no adapter, no picture, a batch, an identity that enters nowhere, names that stand for two adapters.
    pub fn check(&self) -> Result<()> {
        let Evaluation { people, prompts, adapters, images, settings, .. } = self;
        for (what, none) in [
            ("people", people.is_empty()),
            ("prompts", prompts.is_empty()),
            ("adapters", adapters.is_empty()),
            ("images", *images == 0),
        ] {
            if none {
                return Err(Error::invalid(what, "there are none; an evaluation needs at least one"));
            }
        }
        if settings.batch != 1 || settings.batch_index.is_some() {
            let detail = "an evaluation makes one picture after another, each from a seed of its own; leave it out";
            return Err(Error::invalid("batch", detail));
        }
        let (steps, window) = (settings.steps, settings.window()?);
        if settings.id_scale == 0.0 || !(0..steps).any(|step| window.contains(step, steps)) {
            return Err(Error::invalid(
                "id_scale",
                "identity enters at no step with these settings; there is nothing to evaluate",
            ));
        }
        let twice = adapters.iter().enumerate().find(|(i, a)| adapters[..*i].iter().any(|b| b.name == a.name));
        match twice {
            Some((_, adapter)) => {
                let detail = format!("two are named `{}`; give them names, as NAME=FILE", adapter.name);
                Err(Error::invalid("adapter", detail))
            }
            None => Ok(()),
        }
    }

    /// Makes every picture that the store does not have yet. First each person is read from the photos, so that a photo without a face is
    /// known before the first picture.
    ///
    /// # Errors
    /// [`Error::Photo`] for a photo that shows no usable face; otherwise as [`Pipeline::identify`] and [`Pipeline::generate`]. What was
    /// finished before stays in the store.
    pub async fn make(
        &self,
        pipeline: &Pipeline,
        faces: &FaceModels,
        store: &mut Store,
        reporter: &dyn Reporter,
    ) -> Result<Made> {
        self.check()?;
        let (jobs, made) = self.jobs(pipeline.model())?;
        let mut seen = BTreeSet::new();
        let missing: Vec<_> =
            jobs.into_iter().filter(|job| !store.has(&job.key) && seen.insert(job.key.clone())).collect();
        let all = self.prompts.len() * self.images * (1 + self.adapters.len() * self.people.len());
        if missing.len() < all {
            reporter.note(&format!("{} of {all} pictures are there already", all - missing.len()));
        }
        let noted = RefCell::default();
        let needed: BTreeSet<_> = missing.iter().filter_map(|job| job.shows).collect();
        let tokens = self.identify(pipeline, faces, &needed, &noted, reporter).await?;
        if missing.is_empty() {
            return Ok(made);
        }
        let count = missing.len();
        reporter.stage(&format!("making {count} pictures of {} steps", self.settings.steps));
        let (settings, window) = (self.settings.identity(), self.settings.window()?);
        for (i, job) in missing.into_iter().enumerate() {
            let mut options = job.options;
            options.identity =
                job.shows.and_then(|at| Some((at, tokens.get(&at)?.clone()))).map(|((adapter, _), tokens)| {
                    let adapter = self.adapters[adapter].file.clone();
                    IdentityUse { tokens, adapter, settings, window }
                });
            let within = Within { outer: reporter, noted: &noted, of: Some((i, count)) };
            let generated = pipeline.generate(&options, &within).await?;
            let image = generated.images.first().ok_or_else(|| Error::invalid("pipeline", "gave no picture"))?;
            let parameters = Some(options.parameters(pipeline.model().path(), 0));
            let png = encode_image(ImageFormat::Png, image, &ImageMetadata { parameters, generated: true })?;
            store.keep(&job.key, &job.folders, &options.prompt, options.seed, &png)?;
        }
        Ok(made)
    }

    /// Identity tokens of adapters and people, where pictures are missing.
    async fn identify(
        &self,
        pipeline: &Pipeline,
        faces: &FaceModels,
        needed: &BTreeSet<(usize, usize)>,
        noted: &RefCell<BTreeSet<String>>,
        reporter: &dyn Reporter,
    ) -> Result<BTreeMap<(usize, usize), IdentityTokens>> {
        let mut tokens = BTreeMap::new();
        if needed.is_empty() {
            return Ok(tokens);
        }
        reporter.stage("reading the people");
        for (done, &(adapter, person)) in needed.iter().enumerate() {
            let photos = self.people[person].photos.iter().map(|path| (self.read_photo)(path));
            let photos = photos.collect::<Result<Vec<_>>>()?;
            let within = Within { outer: reporter, noted, of: None };
            let file = &self.adapters[adapter].file;
            let identity = pipeline.identify(faces, file, &photos, &ExtractOptions::default(), &within).await?;
            tokens.insert((adapter, person), identity.tokens);
            reporter.step(done + 1, needed.len());
        }
        Ok(tokens)
    }

    /// Every picture, those without identity first.
    fn jobs(&self, model: &SdxlModel) -> Result<(Vec<Job<'_>>, Made)> {
        let model = model_key(model)?;
        let (identity, window, storage) = (self.settings.identity(), self.settings.window()?, self.settings.storage());
        let photos = self.people.iter().map(|person| {
            let hashes = person.photos.iter().map(sha256_file).collect::<Result<Vec<_>>>()?;
            Ok(hashes.join(","))
        });
        let photos = photos.collect::<Result<Vec<String>>>()?;
        let seeds = self.seeds();
        let plain_key = |options: &GenerateOptions| {
            let version = env!("CARGO_PKG_VERSION");
            sha256(&[version.as_bytes(), model.as_bytes(), format!("{storage:?} {options:?}").as_bytes()])
        };
        let with_key = |plain: &str, adapter: &Adapter, photos: &str| {
            let how = identity_key(identity, window);
            sha256(&[plain.as_bytes(), adapter.sha256.as_bytes(), photos.as_bytes(), how.as_bytes()])
        };
        let mut jobs = Vec::new();
        let mut made = Made::default();
        for prompt in &self.prompts {
            let mut row = Vec::new();
            for &seed in &seeds {
                let options = self.options(prompt, seed);
                let key = plain_key(&options);
                row.push(key.clone());
                jobs.push(Job { key, options, folders: vec!["without-identity"], shows: None });
            }
            made.plain.push(row);
        }
        for (a, adapter) in self.adapters.iter().enumerate() {
            let mut of_adapter = Vec::new();
            for (p, person) in self.people.iter().enumerate() {
                let mut of_person = Vec::new();
                for (prompt, plain) in self.prompts.iter().zip(&made.plain) {
                    let mut row = Vec::new();
                    for (&seed, plain) in seeds.iter().zip(plain) {
                        let key = with_key(plain, adapter, &photos[p]);
                        row.push(key.clone());
                        let folders = vec!["with-identity", adapter.name.as_str(), person.name.as_str()];
                        jobs.push(Job { key, options: self.options(prompt, seed), folders, shows: Some((a, p)) });
                    }
                    of_person.push(row);
                }
                of_adapter.push(of_person);
            }
            made.identified.push(of_adapter);
        }
        Ok((jobs, made))
    }
}

fn identity_key(settings: IdentitySettings, window: StepWindow) -> String {
    format!("{settings:?} {window:?}")
}

/// What the model's files are: path, length and time of change of each, which is what a weight on the device is known by too. Their
/// contents would take minutes to read.
fn model_key(model: &SdxlModel) -> Result<String> {
    let mut key = String::new();
    let roots = [Some(model.path()), model.other_unet(), model.config_folder()];
    for root in roots.into_iter().flatten() {
        let mut waiting = vec![root.to_owned()];
        let mut files = Vec::new();
        while let Some(path) = waiting.pop() {
            let about = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?;
            if about.is_dir() {
                for entry in std::fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
                    waiting.push(entry.map_err(|e| Error::io(&path, e))?.path());
                }
            } else {
                let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                let path = path.canonicalize().unwrap_or(path);
                files.push(format!("{path:?} {} {changed:?}", about.len()));
            }
        }
        files.sort();
        key += &format!("[{}]", files.join("\n"));
    }
    Ok(key)
}
