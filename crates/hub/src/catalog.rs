//! The files that PuLID needs beside an SDXL: where they lie and what their licences say.

use crate::{Cache, Client, Repo, Settings};
use pulid_tensor::Result;
use std::path::PathBuf;

/// Where a file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A repository of the hub.
    Hub(&'static str),
    /// A release on GitHub: the path of the address before the file's name.
    GitHub(&'static str),
}

/// One file.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// Its name there and here.
    pub file: &'static str,
    /// Where it comes from.
    pub place: Place,
    /// What it is.
    pub what: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Whether the licence lets people earn money with it.
    pub commercial: bool,
    /// Bytes, where the server's word is not enough.
    pub size: Option<u64>,
    /// Its SHA-256, where no server tells it.
    pub sha256: Option<&'static str>,
}

/// A PuLID with everything that reads photos, as far as it is the same for all.
const fn hub(repo: &'static str, file: &'static str, what: &'static str, licence: &'static str) -> Item {
    Item { file, place: Place::Hub(repo), what, licence, commercial: true, size: None, sha256: None }
}

const PULID: &str = "guozinan/PuLID";
const NON_COMMERCIAL: &str = "for non-commercial research only (insightface's models)";

/// PuLID v1.
pub const V1: Item = hub(PULID, "pulid_v1.bin", "PuLID v1", "Apache-2.0");
/// PuLID v1.1.
pub const V1_1: Item = hub(PULID, "pulid_v1.1.safetensors", "PuLID v1.1", "Apache-2.0");
/// The vision tower.
pub const TOWER: Item = hub("QuanSun/EVA-CLIP", "EVA02_CLIP_L_336_psz14_s6B.pt", "vision tower", "MIT");
/// insightface's detector and recogniser, with which PuLID was trained.
pub const ANTELOPE: [Item; 2] = [
    Item {
        commercial: false,
        ..hub("DIAMONIK7777/antelopev2", "scrfd_10g_bnkps.onnx", "face detector", NON_COMMERCIAL)
    },
    Item { commercial: false, ..hub("DIAMONIK7777/antelopev2", "glintr100.onnx", "face recogniser", NON_COMMERCIAL) },
];
/// Detector and recogniser of the same shapes that may be used for anything.
pub const AURAFACE: [Item; 2] = [
    hub("fal/AuraFace-v1", "scrfd_10g_bnkps.onnx", "face detector", "Apache-2.0"),
    hub("fal/AuraFace-v1", "glintr100.onnx", "face recogniser", "Apache-2.0"),
];
/// facexlib's detector and parser.
pub const FACEXLIB: [Item; 2] = [
    Item {
        place: Place::GitHub("xinntao/facexlib/releases/download/v0.1.0"),
        size: Some(109_497_761),
        sha256: Some("6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d"),
        ..hub("", "detection_Resnet50_Final.pth", "RetinaFace", "MIT")
    },
    Item {
        place: Place::GitHub("xinntao/facexlib/releases/download/v0.2.0"),
        size: Some(53_289_463),
        sha256: Some("468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567"),
        ..hub("", "parsing_bisenet.pth", "face parser", "MIT")
    },
];
/// SDXL-Lightning's UNet of four steps.
pub const LIGHTNING_UNET: Item =
    hub("ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors", "UNet", "CreativeML Open RAIL++-M");

/// A base model by its short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The name on the command line.
    pub name: &'static str,
    /// The repository in diffusers' layout.
    pub repo: &'static str,
    /// Whether SDXL-Lightning's UNet goes over it.
    pub lightning: bool,
}

/// Every base with a short name.
pub const BASES: [Base; 3] = [
    Base { name: "juggernaut", repo: "RunDiffusion/Juggernaut-XL-v9", lightning: false },
    Base { name: "dreamshaper-lightning", repo: "Lykon/dreamshaper-xl-lightning", lightning: false },
    Base { name: "sdxl-lightning", repo: "stabilityai/stable-diffusion-xl-base-1.0", lightning: true },
];

impl Base {
    /// The base of this short name.
    pub fn named(name: &str) -> Option<Base> {
        BASES.into_iter().find(|base| base.name == name)
    }

    /// Its folder and, where another goes over it, the UNet; `None` unless all of it is in the cache.
    pub fn find(self, cache: &Cache) -> Option<(PathBuf, Option<PathBuf>)> {
        let folder = find_sdxl(cache, &Repo::known(self.repo), !self.lightning)?;
        match self.lightning {
            true => Some((folder, Some(LIGHTNING_UNET.find_hub(cache)?))),
            false => Some((folder, None)),
        }
    }
}

/// The snapshot of an SDXL in diffusers' layout.
pub fn find_sdxl(cache: &Cache, repo: &Repo, with_unet: bool) -> Option<PathBuf> {
    let folder = cache.snapshot(repo, &["tokenizer/vocab.json", "tokenizer_2/vocab.json"])?;
    let weighty = |part: &str| {
        let entries = std::fs::read_dir(folder.join(part)).into_iter().flatten().flatten();
        // A link whose blob is missing is no file.
        entries
            .map(|entry| entry.path())
            .any(|path| path.is_file() && path.extension().is_some_and(|e| e == "safetensors"))
    };
    let parts = ["text_encoder", "text_encoder_2", "vae"].into_iter().chain(with_unet.then_some("unet"));
    let whole = parts.into_iter().all(weighty) && folder.join("unet/config.json").is_file();
    whole.then_some(folder)
}

impl Item {
    fn find_hub(&self, cache: &Cache) -> Option<PathBuf> {
        match self.place {
            Place::Hub(repo) => cache.find(&Repo::known(repo), self.file),
            Place::GitHub(_) => None,
        }
    }

    /// Where it lies in the caches, if it does.
    pub fn find(&self, cache: &Cache, settings: &Settings) -> Option<PathBuf> {
        match self.place {
            Place::Hub(_) => self.find_hub(cache),
            Place::GitHub(_) => Some(settings.facexlib().join(self.file)).filter(|path| path.is_file()),
        }
    }

    /// Fetches it.
    ///
    /// # Errors
    /// As [`Client::fetch`].
    pub fn fetch(&self, client: &Client<'_>) -> Result<PathBuf> {
        match self.place {
            Place::Hub(repo) => client.fetch(&Repo::known(repo), self.file),
            Place::GitHub(folder) => {
                let url = format!("{}/{folder}/{}", client.settings.github, self.file);
                client.fetch_plain(&url, &client.settings.facexlib().join(self.file), self.size, self.sha256)
            }
        }
    }

    /// Its place as people read it.
    pub fn source(&self) -> &'static str {
        match self.place {
            Place::Hub(repo) => repo,
            Place::GitHub(_) => "github.com/xinntao/facexlib",
        }
    }
}

/// The folders of the caches in which the networks that read photos lie, in the order of preference.
pub fn face_folders(cache: &Cache, settings: &Settings) -> Vec<PathBuf> {
    // A pair comes from one place.
    let pair = |items: [Item; 2]| match items[0].place {
        Place::Hub(repo) => cache.snapshot(&Repo::known(repo), &items.map(|item| item.file)),
        Place::GitHub(_) => None,
    };
    let tower = TOWER.find_hub(cache).and_then(|path| Some(path.parent()?.to_owned()));
    let facexlib = Some(settings.facexlib()).filter(|folder| folder.is_dir());
    pair(ANTELOPE).or_else(|| pair(AURAFACE)).into_iter().chain(tower).chain(facexlib).collect()
}
