//! What of the training data does not change: latents, text states and the identity encoder's inputs of each image, in a folder.
//!
//! `cache.json` says what it was made with. `items.jsonl` has a line for each image that is in it, written after the image's own file in
//! `items/`; `rejected.jsonl` one for each that is not, and why.

use crate::buckets::Size;
use pulid_checkpoint::{Checkpoint, files, json, safetensors, write_atomically};
use pulid_tensor::{DType, Error, HostTensor, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Hidden states of the vision tower.
pub const HIDDEN_STATES: usize = 5;

const DESCRIPTION: &str = "cache.json";
const ITEMS: &str = "items.jsonl";
const REJECTED: &str = "rejected.jsonl";
const EMPTY_PROMPT: &str = "empty-prompt.safetensors";

/// What a cache was made with: another model, size or tower makes another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Of the layout of this folder.
    pub version: u32,
    /// Pixels of a side of a square.
    pub resolution: usize,
    /// Whether images keep about their shape, with such a square's area.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub buckets: bool,
    /// Where the model lay, for people.
    pub model: String,
    /// Of the VAE's, text encoders' and face networks' files.
    pub networks: String,
    /// Type of what is stored.
    pub dtype: String,
}

impl Description {
    /// The layout that is written here.
    pub const VERSION: u32 = 2;
}

/// A line of `items.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The image's name within the data.
    pub image_file: String,
    /// The person, if known.
    pub person: Option<String>,
    /// The caption.
    pub text: String,
    /// Its file in `items/`.
    pub file: String,
    /// SDXL's size conditioning: height and width as the image came, top and left of the crop, height and width of the target.
    pub time_ids: [f32; 6],
}

impl Entry {
    /// Height and width of the image in pixels, as it is trained on.
    pub fn size(&self) -> Size {
        [self.time_ids[4], self.time_ids[5]].map(|side| side as usize)
    }
}

/// A line of `rejected.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The image's name within the data.
    pub image_file: String,
    /// In words.
    pub why: String,
}

/// What both text encoders make of a caption.
#[derive(Clone, Debug, PartialEq)]
pub struct TextStates {
    /// [1, 77, D].
    pub hidden: HostTensor,
    /// [1, P].
    pub pooled: HostTensor,
}

/// Tensors of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// [1, h, w, 4], the mean of the VAE's posterior, channels last, without the scaling factor.
    pub mean: HostTensor,
    /// [1, h, w, 4], the logarithm of its variance.
    pub logvar: HostTensor,
    /// The caption.
    pub text: TextStates,
    /// [1, C].
    pub id_cond: HostTensor,
    /// [1, tokens, W] each.
    pub hidden: Vec<HostTensor>,
    /// [1, 112, 112, 3], the face as a recogniser takes it: red, green and blue of 0 to 255.
    pub face: HostTensor,
}

/// A folder of prepared images.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    description: Description,
    entries: Vec<Entry>,
    rejected: Vec<Rejected>,
}

impl Cache {
    /// Whether a folder is a cache.
    pub fn is_cache(folder: &Path) -> bool {
        files::is_file(folder.join(DESCRIPTION))
    }

    /// Opens a cache. A last line that was not wholly written is left out.
    ///
    /// # Errors
    /// When it is none, of another version, or malformed.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Cache> {
        let folder = folder.into();
        let path = folder.join(DESCRIPTION);
        let text = files::read_to_string(&path)?;
        let description: Description =
            json::from_str(&text).map_err(|e| Error::file(&path, format!("is malformed: {e}")))?;
        if description.version != Description::VERSION {
            let detail = format!(
                "is of version {}, this program writes {}; prepare the data anew into another folder",
                description.version,
                Description::VERSION
            );
            return Err(Error::file(path, detail));
        }
        let entries = lines(&folder.join(ITEMS))?;
        let rejected = lines(&folder.join(REJECTED))?;
        Ok(Cache { folder, description, entries, rejected })
    }

    /// Opens a cache that was made with the same networks and settings, or begins one.
    ///
    /// # Errors
    /// When the folder holds something else, or was made with others; when it cannot be written.
    pub fn begin(folder: impl Into<PathBuf>, description: &Description) -> Result<Cache> {
        let folder = folder.into();
        if Cache::is_cache(&folder) {
            let cache = Cache::open(&folder)?;
            if cache.description != *description {
                let (was, is) = (&cache.description, description);
                let differs = if was.resolution != is.resolution {
                    format!("resolution {}, not {}", was.resolution, is.resolution)
                } else if was.buckets != is.buckets {
                    let words = |buckets| if buckets { "buckets" } else { "squares" };
                    format!("{}, not {}", words(was.buckets), words(is.buckets))
                } else if was.dtype != is.dtype {
                    format!("dtype {}, not {}", was.dtype, is.dtype)
                } else {
                    format!("other networks than those of {} and the models folder", is.model)
                };
                return Err(Error::file(folder, format!("was made with {differs}; prepare into another folder")));
            }
            return Ok(cache);
        }
        let filled = std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some());
        if filled {
            return Err(Error::file(folder, "holds other files and no cache.json; name a new folder for the cache"));
        }
        let items = folder.join("items");
        std::fs::create_dir_all(&items).map_err(|e| Error::io(&items, e))?;
        let text = serde_json::to_vec_pretty(description).map_err(|e| Error::invalid("cache", e.to_string()))?;
        write_whole(&folder.join(DESCRIPTION), &text)?;
        Ok(Cache { folder, description: description.clone(), entries: Vec::new(), rejected: Vec::new() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it was made with.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Images that are in it, in the order in which they came.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Images that are not, and why.
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// Names of images that were looked at already.
    pub fn known(&self) -> HashSet<String> {
        let entries = self.entries.iter().map(|e| e.image_file.clone());
        entries.chain(self.rejected.iter().map(|r| r.image_file.clone())).collect()
    }

    /// Adds an image.
    ///
    /// # Errors
    /// When it cannot be written; it is not in the cache then.
    pub fn add(&mut self, entry: Entry, sample: &Sample) -> Result<()> {
        let dtype = match self.description.dtype.as_str() {
            "f16" => DType::F16,
            _ => DType::F32,
        };
        let mut tensors = BTreeMap::from([
            ("latent_mean".to_owned(), sample.mean.clone()),
            ("latent_logvar".to_owned(), sample.logvar.clone()),
            ("encoder_hidden_states".to_owned(), sample.text.hidden.cast(dtype)),
            ("text_embeds".to_owned(), sample.text.pooled.cast(dtype)),
            ("id_cond".to_owned(), sample.id_cond.clone()),
            // Whole numbers of 8 bits, which half precision has all of.
            ("face".to_owned(), sample.face.cast(DType::F16)),
        ]);
        for (i, state) in sample.hidden.iter().enumerate() {
            tensors.insert(format!("hidden_{i}"), state.cast(dtype));
        }
        self.write_tensors(&Path::new("items").join(&entry.file), &tensors)?;
        append(&self.folder.join(ITEMS), &entry)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Notes an image that cannot be used.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn reject(&mut self, rejected: Rejected) -> Result<()> {
        append(&self.folder.join(REJECTED), &rejected)?;
        self.rejected.push(rejected);
        Ok(())
    }

    /// Keeps what the text encoders make of an empty caption.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_empty_prompt(&self, text: &TextStates) -> Result<()> {
        let tensors = BTreeMap::from([
            ("encoder_hidden_states".to_owned(), text.hidden.clone()),
            ("text_embeds".to_owned(), text.pooled.clone()),
        ]);
        self.write_tensors(Path::new(EMPTY_PROMPT), &tensors)
    }

    /// Whether [`Cache::set_empty_prompt`] was done.
    pub fn has_empty_prompt(&self) -> bool {
        files::is_file(self.folder.join(EMPTY_PROMPT))
    }

    /// What the text encoders make of an empty caption.
    ///
    /// # Errors
    /// When it is not there or malformed.
    pub fn empty_prompt(&self) -> Result<TextStates> {
        text_states(&Checkpoint::open(self.folder.join(EMPTY_PROMPT))?)
    }

    /// The tensors of an image, in f32.
    ///
    /// # Errors
    /// When its file is missing, malformed or holds NaN or infinity.
    pub fn sample(&self, index: usize) -> Result<Sample> {
        let none = || Error::invalid("cache", format!("has no image {index}"));
        let entry = self.entries.get(index).ok_or_else(none)?;
        let path = self.folder.join("items").join(&entry.file);
        let file = Checkpoint::open(&path)?;
        let get = |name: &str| finite(&file, name);
        let sample = Sample {
            mean: get("latent_mean")?,
            logvar: get("latent_logvar")?,
            text: text_states(&file)?,
            id_cond: get("id_cond")?,
            hidden: (0..HIDDEN_STATES).map(|i| get(&format!("hidden_{i}"))).collect::<Result<_>>()?,
            face: get("face")?,
        };
        Ok(sample)
    }

    fn write_tensors(&self, below: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        write_whole(&self.folder.join(below), &safetensors::to_bytes(named, &BTreeMap::new())?)
    }
}

/// A file name for an image of any name.
pub fn file_name(id: &str) -> String {
    let hash = Sha256::digest(id.as_bytes());
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.safetensors")
}

fn text_states(file: &Checkpoint) -> Result<TextStates> {
    Ok(TextStates { hidden: finite(file, "encoder_hidden_states")?, pooled: finite(file, "text_embeds")? })
}

fn finite(file: &Checkpoint, name: &str) -> Result<HostTensor> {
    let tensor = file.tensor(name)?.cast(DType::F32);
    if tensor.as_f32()?.iter().any(|v| !v.is_finite()) {
        let detail = "holds NaN or infinity; delete the cache and prepare the data anew".to_owned();
        return Err(Error::Weight { key: name.into(), source_name: file.name().into(), detail });
    }
    Ok(tensor)
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |w| w.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Adds a line to a file of JSON lines. One that was not wholly written before is cut off first.
pub(crate) fn append(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value).map_err(|e| Error::invalid("JSON", e.to_string()))?;
    line.push(b'\n');
    let failed = |e| Error::io(path, e);
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?.len();
    file.write_all(&line).map_err(|e| {
        // A full disk must not leave half a line in the middle of the file.
        let _ = file.set_len(before);
        failed(e)
    })
}

/// The lines of a file of JSON lines, none where there is no file. A torn last line, as a killed program leaves it, is cut off.
pub(crate) fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    if !files::is_file(path) {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        let file = OpenOptions::new().write(true).open(path).map_err(|e| Error::io(path, e))?;
        file.set_len(whole as u64).map_err(|e| Error::io(path, e))?;
    }
    let parse = |(i, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|e| Error::file(path, format!("line {} is malformed: {e}", i + 1)))
    };
    let given = bytes[..whole].split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    given.map(parse).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn description() -> Description {
        Description {
            version: Description::VERSION,
            resolution: 64,
            buckets: false,
            model: "m".into(),
            networks: "n".into(),
            dtype: "f32".into(),
        }
    }

    pub(crate) fn sample(start: f32) -> Sample {
        let tensor = |shape: &[usize]| HostTensor::from_fn(shape.to_vec(), |i| start + i as f32 * 0.01);
        Sample {
            mean: tensor(&[1, 2, 2, 4]),
            logvar: tensor(&[1, 2, 2, 4]),
            text: TextStates { hidden: tensor(&[1, 3, 2]), pooled: tensor(&[1, 2]) },
            id_cond: tensor(&[1, 6]),
            hidden: (0..HIDDEN_STATES).map(|_| tensor(&[1, 4, 2])).collect(),
            face: HostTensor::from_fn([1, 112, 112, 3], |i| (i % 256) as f32),
        }
    }

    pub(crate) fn entry(id: &str, person: Option<&str>) -> Entry {
        Entry {
            image_file: id.into(),
            person: person.map(str::to_owned),
            text: "text".into(),
            file: file_name(id),
            time_ids: [64.0; 6],
        }
    }

    #[test]
    fn what_was_prepared_is_there_again_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        let mut cache = Cache::begin(&path, &description()).unwrap();
        cache.add(entry("a", Some("p")), &sample(1.0)).unwrap();
        cache.reject(Rejected { image_file: "b".into(), why: "no face".into() }).unwrap();
        cache.set_empty_prompt(&sample(0.0).text).unwrap();
        let mut torn = OpenOptions::new().append(true).open(path.join(ITEMS)).unwrap();
        torn.write_all(b"{\"image_file\": \"c").unwrap();
        let mut cache = Cache::begin(&path, &description()).unwrap();
        assert_eq!(cache.known(), HashSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(cache.sample(0).unwrap(), sample(1.0));
        assert_eq!(cache.empty_prompt().unwrap(), sample(0.0).text);
        cache.add(entry("c", None), &sample(2.0)).unwrap();
        let cache = Cache::open(&path).unwrap();
        assert_eq!(cache.entries().len(), 2);
        assert_eq!(cache.sample(1).unwrap(), sample(2.0));
        assert!(cache.sample(2).is_err());
    }

    #[test]
    fn a_cache_of_other_networks_or_another_folder_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache");
        Cache::begin(&path, &description()).unwrap();
        let other = Description { resolution: 32, ..description() };
        let message = Cache::begin(&path, &other).unwrap_err().to_string();
        assert!(message.contains("resolution 64, not 32"), "{message}");
        let other = Description { buckets: true, ..description() };
        let message = Cache::begin(&path, &other).unwrap_err().to_string();
        assert!(message.contains("squares, not buckets"), "{message}");
        let filled = folder.path().join("photos");
        std::fs::create_dir(&filled).unwrap();
        std::fs::write(filled.join("a.png"), "x").unwrap();
        let message = Cache::begin(&filled, &description()).unwrap_err().to_string();
        assert!(message.contains("holds other files"), "{message}");
        std::fs::write(path.join(DESCRIPTION), "{").unwrap();
        assert!(Cache::open(&path).unwrap_err().to_string().contains("malformed"));
    }

    #[test]
    fn values_that_are_no_numbers_are_not_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::begin(folder.path().join("cache"), &description()).unwrap();
        let mut broken = sample(1.0);
        broken.mean = HostTensor::from_fn([1, 2, 2, 4], |i| if i == 3 { f32::NAN } else { 0.0 });
        cache.add(entry("a", None), &broken).unwrap();
        let message = cache.sample(0).unwrap_err().to_string();
        assert!(message.contains("latent_mean") && message.contains("NaN"), "{message}");
    }
}
