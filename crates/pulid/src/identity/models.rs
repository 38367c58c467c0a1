//! Where the face networks lie on disk.

use pulid_checkpoint::{Checkpoint, files, json};
use pulid_models::face::{BiSeNet, RetinaFace};
use pulid_models::onnx::OnnxNetwork;
use pulid_models::{EvaClip, EvaSettings, OnnxFamily, Precision, Unread};
use pulid_tensor::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Files of the detector, by the names of insightface's `antelopev2` download. The archive holds a folder of its own
/// name, so many people end up with it nested.
const DETECTOR: &[&str] =
    &["antelopev2/scrfd_10g_bnkps.onnx", "antelopev2/antelopev2/scrfd_10g_bnkps.onnx", "scrfd_10g_bnkps.onnx"];

/// Files of the face recogniser, from the same download.
const RECOGNISER: &[&str] = &["antelopev2/glintr100.onnx", "antelopev2/antelopev2/glintr100.onnx", "glintr100.onnx"];

/// Files of insightface's other recogniser, trained on other faces, from its `buffalo_l` download.
const OTHER_RECOGNISER: &[&str] = &["w600k_r50.onnx", "buffalo_l/w600k_r50.onnx", "antelopev2/w600k_r50.onnx"];

/// Files of facexlib's detector, which not every family has.
const ALIGNER: &[&str] = &["detection_Resnet50_Final.safetensors", "detection_Resnet50_Final.pth"];

/// Files of the face parser.
const PARSER: &[&str] = &["parsing_bisenet.safetensors", "parsing_bisenet.pth"];

/// Files of the vision tower.
const TOWER: &[&str] =
    &["eva_clip.safetensors", "EVA02_CLIP_L_336_psz14_s6B.safetensors", "EVA02_CLIP_L_336_psz14_s6B.pt"];

const TOWER_PART: (&str, &[&str]) = ("vision tower", TOWER);

/// The networks that read a photo, in one folder, or in several of which the first that has a file gives it.
///
/// `scrfd_10g_bnkps.onnx` and `glintr100.onnx` (insightface's detector and recogniser) in `antelopev2/` or beside the
/// others, `parsing_bisenet.pth` or `.safetensors` (facexlib's parser) and `EVA02_CLIP_L_336_psz14_s6B.pt`,
/// `.safetensors` or `eva_clip.safetensors` (the EVA02-CLIP vision tower), the last with an optional JSON of the same
/// name beside it for what its tensors do not tell. Where `detection_Resnet50_Final.pth` or `.safetensors` (facexlib's
/// detector) lies beside them, it places the crop for parser and tower, as in the official pipelines.
#[derive(Clone, Debug)]
pub struct FaceModels {
    root: PathBuf,
    further: Vec<PathBuf>,
}

/// What `eva_clip.json` may say; other entries are for people.
#[derive(Default, Deserialize)]
struct TowerConfig {
    heads: Option<usize>,
    pretrained_grid: Option<usize>,
}

impl FaceModels {
    /// The networks in this folder. Each file is looked for when it is needed: finding faces takes the detector alone.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !files::is_dir(&root) {
            return Err(Error::file(root, "is no folder; give the folder that holds the face networks"));
        }
        Ok(FaceModels { root, further: Vec::new() })
    }

    /// Looks into these folders too, in their order, for what the first one lacks. A folder that has every file it
    /// needs is taken as it is.
    pub fn with_further(mut self, folders: impl IntoIterator<Item = PathBuf>) -> Self {
        if self.require_all().is_err() {
            self.further.extend(folders);
        }
        self
    }

    /// What is needed and missing: what it is called, and the names it was looked for by.
    pub fn missing_parts(&self) -> Vec<(&'static str, &'static [&'static str])> {
        let needed =
            [("face detector", DETECTOR), ("face recogniser", RECOGNISER), ("face parser", PARSER), TOWER_PART];
        needed.into_iter().filter(|(_, names)| self.look_for(names).is_none()).collect()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Checks that every file is there, so that nothing is computed in vain.
    ///
    /// # Errors
    /// Names the first missing file and where it was looked for.
    pub fn require_all(&self) -> Result<()> {
        self.detector().and(self.recogniser()).and(self.parser_file()).and(self.tower_file()).map(drop)
    }

    /// Every file that is there and may be read.
    pub fn files(&self) -> Vec<PathBuf> {
        let found = |names: &[&str]| self.look_for(names);
        let all: Vec<_> = [DETECTOR, RECOGNISER, ALIGNER, PARSER, TOWER].into_iter().filter_map(found).collect();
        let beside = all.iter().map(|path| path.with_extension("json")).filter(|path| files::is_file(path));
        let beside: Vec<_> = beside.collect();
        [all, beside].concat()
    }

    /// The detector's file.
    ///
    /// # Errors
    /// Says where it was looked for.
    pub fn detector(&self) -> Result<PathBuf> {
        self.find("face detector", DETECTOR, "it is part of insightface's antelopev2 download")
    }

    /// The recogniser's file.
    ///
    /// # Errors
    /// Says where it was looked for.
    pub fn recogniser(&self) -> Result<PathBuf> {
        self.find("face recogniser", RECOGNISER, "it is part of insightface's antelopev2 download")
    }

    /// A recogniser that no adapter reads, to judge by: insightface's `w600k_r50.onnx`, where it lies beside the others.
    pub fn other_recogniser(&self) -> Option<PathBuf> {
        self.look_for(OTHER_RECOGNISER)
    }

    fn parser_file(&self) -> Result<PathBuf> {
        self.find("face parser", PARSER, "it is facexlib's parsing_bisenet")
    }

    fn tower_file(&self) -> Result<PathBuf> {
        self.find("vision tower", TOWER, "it is the EVA02_CLIP_L_336_psz14_s6B download")
    }

    /// facexlib's detector; `None` where the folder has none.
    ///
    /// # Errors
    /// When its file holds something else.
    pub fn retinaface(&self, precision: Precision) -> Result<Option<RetinaFace>> {
        match self.look_for(ALIGNER) {
            Some(file) => RetinaFace::new(&Checkpoint::open(file)?, precision).map(Some),
            None => Ok(None),
        }
    }

    /// What to say where facexlib's detector is needed and missing.
    pub(super) fn no_retinaface(&self) -> Error {
        self.missing("RetinaFace", ALIGNER, "it is facexlib's detection_Resnet50_Final")
    }

    /// The face parser.
    ///
    /// # Errors
    /// When its file is missing or holds something else.
    pub fn parser(&self, precision: Precision) -> Result<BiSeNet> {
        BiSeNet::new(&Checkpoint::open(self.parser_file()?)?, precision)
    }

    /// The vision tower.
    ///
    /// # Errors
    /// When its file is missing or holds something else, or the JSON beside it is malformed.
    pub fn tower(&self, precision: Precision) -> Result<EvaClip> {
        let file = self.tower_file()?;
        let settings = tower_settings(&file.with_extension("json"))?;
        EvaClip::new(&Checkpoint::open(file)?, precision, settings)
    }

    /// Looks at the networks before any runs: whether each file holds the one that its name says and all of it, and which tensors have
    /// no use. Only headers are read.
    ///
    /// # Errors
    /// A file that is missing, of another kind, or not whole.
    pub fn examine(&self) -> Result<Vec<Unread>> {
        let precision = Precision::F32;
        OnnxNetwork::open(self.detector()?)?.require(OnnxFamily::Scrfd)?;
        OnnxNetwork::open(self.recogniser()?)?.require(OnnxFamily::ArcFace)?;
        let mut found = vec![
            (self.parser_file()?, self.parser(precision)?.unread()?),
            (self.tower_file()?, self.tower(precision)?.unread()?),
        ];
        if let (Some(path), Some(aligner)) = (self.look_for(ALIGNER), self.retinaface(precision)?) {
            found.push((path, aligner.unread()?));
        }
        let unread = found.into_iter().filter(|(_, keys)| !keys.is_empty());
        Ok(unread.map(|(path, keys)| Unread { path, network: None, keys }).collect())
    }

    fn find(&self, what: &str, names: &[&str], advice: &str) -> Result<PathBuf> {
        self.look_for(names).ok_or_else(|| self.missing(what, names, advice))
    }

    fn look_for(&self, names: &[&str]) -> Option<PathBuf> {
        let roots = std::iter::once(&self.root).chain(&self.further);
        roots.flat_map(|root| names.iter().map(move |name| root.join(name))).find(|p| files::is_file(p))
    }

    fn missing(&self, what: &str, names: &[&str], advice: &str) -> Error {
        let looked = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" and ");
        let others = match self.further.len() {
            0 => String::new(),
            count => format!(" and {count} more of the download caches"),
        };
        Error::file(&self.root, format!("holds no {what}: looked for {looked} in this folder{others}; {advice}"))
    }
}

/// The published tower's settings, changed by what the file says if there is one.
fn tower_settings(path: &Path) -> Result<EvaSettings> {
    let config: TowerConfig = match files::is_file(path) {
        true => json::from_str(&files::read_to_string(path)?)
            .map_err(|e| Error::file(path, format!("is malformed: {e}")))?,
        false => TowerConfig::default(),
    };
    let published = EvaSettings::default();
    Ok(EvaSettings {
        heads: config.heads.or(published.heads),
        pretrained_grid: config.pretrained_grid.unwrap_or(published.pretrained_grid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_files_are_named_with_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let models = FaceModels::open(folder.path()).unwrap();
        let message = models.require_all().unwrap_err().to_string();
        let place = folder.path().display().to_string();
        assert!(message.contains(&place) && message.contains("scrfd_10g_bnkps.onnx"), "{message}");
        std::fs::create_dir_all(folder.path().join("antelopev2/antelopev2")).unwrap();
        for name in [DETECTOR[1], RECOGNISER[1], PARSER[0]] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let message = models.require_all().unwrap_err().to_string();
        assert!(message.contains("eva_clip.safetensors"), "{message}");
        assert!(FaceModels::open(folder.path().join("elsewhere")).is_err());
    }

    #[test]
    fn the_downloads_do_as_they_are_and_flat() {
        let folder = tempfile::tempdir().unwrap();
        let models = FaceModels::open(folder.path()).unwrap();
        for name in ["scrfd_10g_bnkps.onnx", "glintr100.onnx", "parsing_bisenet.pth", "EVA02_CLIP_L_336_psz14_s6B.pt"] {
            assert!(models.require_all().is_err());
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        models.require_all().unwrap();
    }

    #[test]
    fn what_a_folder_lacks_comes_from_further_ones_and_only_then() {
        let (own, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let names = ["scrfd_10g_bnkps.onnx", "glintr100.onnx", "parsing_bisenet.pth", "eva_clip.safetensors"];
        std::fs::write(own.path().join(names[0]), b"").unwrap();
        names.iter().chain(&["detection_Resnet50_Final.pth"]).for_each(|name| {
            std::fs::write(cache.path().join(name), b"").unwrap();
        });
        let open = || FaceModels::open(own.path()).unwrap().with_further([cache.path().to_owned()]);
        let models = open();
        assert_eq!(models.detector().unwrap(), own.path().join(names[0]));
        assert_eq!(models.recogniser().unwrap(), cache.path().join(names[1]));
        assert!(models.missing_parts().is_empty() && models.look_for(ALIGNER).is_some());
        names.iter().for_each(|name| std::fs::write(own.path().join(name), b"").unwrap());
        assert!(open().look_for(ALIGNER).is_none());
    }

    #[test]
    fn the_tower_s_settings_come_from_the_file_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eva_clip.json");
        assert_eq!(tower_settings(&path).unwrap(), EvaSettings::default());
        std::fs::write(&path, r#"{"width": 192, "heads": 3, "pretrained_grid": 8}"#).unwrap();
        assert_eq!(tower_settings(&path).unwrap(), EvaSettings { heads: Some(3), pretrained_grid: 8 });
        std::fs::write(&path, "{").unwrap();
        assert!(tower_settings(&path).is_err());
    }
}
