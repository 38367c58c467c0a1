//! Where models lie: a folder that was named, the hub's cache, or the mini models.

use pulid::identity::FaceModels;
use pulid::preset::Preset;
use pulid::settings::ModelDefaults;
use pulid_checkpoint::Checkpoint;
use pulid_hub::catalog::{self, Base, Item};
use pulid_hub::{Cache, Repo, Settings};
use pulid_models::pulid::PulidVersion;
use pulid_models::sdxl::SdxlModel;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// PuLID files, by the names they are published under.
const ADAPTERS: [(PulidVersion, &str); 3] = [
    (PulidVersion::V1_1, "pulid_v1.1.safetensors"),
    (PulidVersion::V1, "pulid_v1.safetensors"),
    (PulidVersion::V1, "pulid_v1.bin"),
];

/// Where models lie unless a flag names them one by one.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelsArgs {
    /// Folder with the published files, flat or as they were packed: `antelopev2/`, `parsing_bisenet.pth`,
    /// `EVA02_CLIP_L_336_psz14_s6B.pt`, if wanted `detection_Resnet50_Final.pth`, and the defaults of --adapter
    /// (`pulid_v1.1.safetensors`, `pulid_v1.bin`) and --model (`sdxl`); .safetensors do in place of .pth, .pt and .bin. Or a
    /// folder in the hub's layout, or `hub` for the hub's own cache, where also is found what the folder lacks
    /// [default: the environment's PULID_MODELS, else what `pulid pull` has fetched for the preset or the model, else the mini models]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

/// A folder of models, and who named it.
pub struct Named {
    pub folder: PathBuf,
    by: &'static str,
}

/// The variable that names a folder of models where the flag does not.
const VARIABLE: &str = "PULID_MODELS";

impl Named {
    /// The folder that the flag names, else the environment; an empty variable is as none.
    pub fn new(flag: Option<&Path>) -> Option<Named> {
        let by_flag = flag.map(|folder| Named { folder: folder.to_owned(), by: "--models-dir" });
        by_flag.or_else(|| {
            let value = std::env::var_os(VARIABLE).filter(|value| !value.to_string_lossy().trim().is_empty())?;
            Some(Named { folder: value.into(), by: VARIABLE })
        })
    }

    /// Refuses a folder that is not there.
    fn check(&self) -> Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        let what = if self.folder.exists() { "is no folder" } else { "there is no such folder" };
        Err(Error::file(&self.folder, format!("{what}; {} names it, where a folder of models is meant", self.by)))
    }
}

/// What the flags of one command come to.
pub struct Models {
    /// A folder of models; none where the hub's cache alone is meant.
    folder: Option<PathBuf>,
    /// The hub's cache; none where the folder is to be taken as it is.
    cache: Option<Cache>,
    settings: Settings,
    preset: Option<Preset>,
}

/// The base model of a preset's application.
pub fn preset_base(preset: Preset) -> Base {
    let name = match preset {
        Preset::V1_1Lightning => "dreamshaper-lightning",
        Preset::V1_1Base => "juggernaut",
        Preset::V1Fidelity | Preset::V1Style => "sdxl-lightning",
    };
    Base::named(name).unwrap_or(catalog::BASES[0])
}

/// What `pulid pull` calls the version.
pub fn pulled_as(version: PulidVersion) -> (&'static str, Item) {
    match version {
        PulidVersion::V1 => ("v1", catalog::V1),
        PulidVersion::V1_1 => ("v1.1", catalog::V1_1),
    }
}

impl ModelsArgs {
    /// What there is without a flag.
    pub fn from_env() -> ModelsArgs {
        ModelsArgs { models_dir: None }
    }

    /// Decides where to look, by the model and the preset that were named.
    ///
    /// # Errors
    /// When no folder was named and the mini models are not found beside the program or the current folder.
    pub fn open(&self, model: Option<&Path>, preset: Option<Preset>) -> Result<Models> {
        let settings = Settings::from_env();
        let hub = Cache::new(&settings.cache);
        let with = |folder, cache| Models { folder, cache, settings: settings.clone(), preset };
        if let Some(named) = Named::new(self.models_dir.as_deref()) {
            let folder = &named.folder;
            if folder.as_os_str() == "hub" {
                return Ok(with(None, Some(hub)));
            }
            named.check()?;
            if Cache::is_cache(folder) {
                return Ok(with(None, Some(Cache::new(folder))));
            }
            return Ok(with(Some(folder.clone()), Some(hub)));
        }
        let adapter_there = preset.is_some_and(|p| pulled_as(p.version()).1.find(&hub, &settings).is_some());
        let pulled = match model {
            Some(name) if !name.exists() => hub_name(name).is_some(),
            Some(_) => adapter_there,
            None => preset.is_some_and(|p| preset_base(p).find(&hub).is_some()),
        };
        if pulled {
            return Ok(with(None, Some(hub)));
        }
        if let (None, Some(preset)) = (model, preset) {
            let (version, base) = (pulled_as(preset.version()).0, preset_base(preset).name);
            note!("note: the mini models are used; `pulid pull {version} --base {base}` fetches this preset's own");
        }
        let mini = mini_models();
        if mini.is_none() && model.is_some_and(Path::exists) {
            // Where nobody is shown nothing of theirs is needed; else what is needed is named.
            return Ok(with(None, Some(hub)));
        }
        let mini = mini.ok_or_else(|| {
            let detail = "the mini models (models/mini) are neither below this folder nor beside the program; name a folder \
                          of models, or fetch the published ones with `pulid pull`";
            Error::invalid("--models-dir", detail)
        })?;
        Ok(with(Some(mini), None))
    }
}

impl Models {
    /// The face networks.
    pub fn face_models(&self) -> Result<FaceModels> {
        let further = self.cache.as_ref().map(|cache| catalog::face_folders(cache, &self.settings)).unwrap_or_default();
        match (&self.folder, &self.cache) {
            (Some(folder), _) => Ok(FaceModels::open(folder)?.with_further(further)),
            (None, Some(cache)) => {
                let models = FaceModels::open(self.existing(cache)?)?.with_further(further);
                models.require_all().map_err(|error| self.advise(error))?;
                Ok(models)
            }
            (None, None) => Err(Error::invalid("--models-dir", "names no folder")),
        }
    }

    fn existing<'c>(&self, cache: &'c Cache) -> Result<&'c Path> {
        let there = cache.path().is_dir();
        let missing = || self.advise(Error::file(cache.path(), "the hub's cache does not exist"));
        there.then_some(cache.path()).ok_or_else(missing)
    }

    fn advise(&self, error: Error) -> Error {
        let version = self.preset.map_or("v1.1", |p| pulled_as(p.version()).0);
        let base = self.preset.map_or("juggernaut", |p| preset_base(p).name);
        let path = self.cache.as_ref().map_or_else(PathBuf::new, |cache| cache.path().to_owned());
        let detail = match error {
            Error::File { detail, .. } => detail,
            other => other.to_string(),
        };
        Error::file(path, format!("{detail}; `pulid pull {version} --base {base}` fetches what is missing"))
    }

    /// What an image is made from, as far as it is there: the model, the networks that read photos, and the adapter.
    pub fn inputs(&self, model: &SdxlModel, adapter: Option<&Path>) -> Vec<PathBuf> {
        let faces = self.face_models().map(|faces| faces.files()).unwrap_or_default();
        let adapter = adapter.map(Path::to_owned).or_else(|| self.own_adapter().ok());
        let own = [model.path().to_owned()].into_iter().chain(model.other_unet().map(Path::to_owned));
        // One that is missing beside a single file would be read by the next run.
        let beside = || Some(model.folder().join(ModelDefaults::FILE));
        let own = own
            .chain(model.config_folder().map(Path::to_owned))
            .chain(ModelDefaults::file(model.folder()).or_else(beside));
        own.chain(adapter).chain(faces).collect()
    }

    /// The adapter that was named, or the folder's own: of the preset's version, else of v1.1 before v1.
    ///
    /// # Errors
    /// When there is none, or it does not fit the preset.
    pub fn adapter(&self, named: Option<&Path>) -> Result<PathBuf> {
        let adapter = match named {
            Some(path) => path.to_owned(),
            None => self.own_adapter()?,
        };
        // A file without an identity encoder belongs to either.
        if let Some(preset) = self.preset
            && let Some(version) = PulidVersion::of(&Checkpoint::open(&adapter)?)
        {
            preset.check(&adapter.display().to_string(), version)?;
        }
        Ok(adapter)
    }

    fn own_adapter(&self) -> Result<PathBuf> {
        let wanted = self.preset.map(|p| p.version());
        let fits = |version: PulidVersion| wanted.is_none_or(|w| w == version);
        let names: Vec<_> = ADAPTERS.iter().filter(|(version, _)| fits(*version)).map(|(_, name)| *name).collect();
        if let Some(folder) = &self.folder
            && let Some(found) = names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
        {
            return Ok(found);
        }
        if let Some(cache) = &self.cache {
            let items = [PulidVersion::V1_1, PulidVersion::V1].into_iter().filter(|v| fits(*v)).map(|v| pulled_as(v).1);
            if let Some(found) = items.into_iter().find_map(|item| item.find(cache, &self.settings)) {
                return Ok(found);
            }
        }
        let what = wanted.map_or("PuLID".into(), |version| version.to_string());
        let why = self.preset.map_or(String::new(), |preset| format!(", to which the preset `{preset}` belongs"));
        let looked = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
        let detail = format!("holds no {what} file{why}: looked for {looked}; --adapter names another one");
        match &self.folder {
            Some(folder) => Err(Error::file(folder, detail)),
            None => Err(self.advise(Error::file("", detail))),
        }
    }

    /// Opens the model that was named, or the folder's own, with the configurations and the UNet that were named beside it.
    pub fn open_model(&self, named: Option<&Path>, config: Option<&Path>, unet: Option<&Path>) -> Result<SdxlModel> {
        let (path, over) = self.model(named)?;
        let mut model = SdxlModel::open(path)?;
        if let Some(folder) = config {
            model = model.with_config(folder)?;
        }
        Ok(match unet.map(Path::to_owned).or(over) {
            Some(path) => model.with_unet(path),
            None => model,
        })
    }

    /// The model that was named, or the folder's own, and the UNet that goes over it if there is one.
    pub fn model(&self, named: Option<&Path>) -> Result<(PathBuf, Option<PathBuf>)> {
        let Some(path) = named else { return self.own_model() };
        match hub_name(path) {
            Some(name) if !path.exists() => {
                let own = Cache::new(&self.settings.cache);
                let cache = self.cache.as_ref().unwrap_or(&own);
                let found = match &name {
                    HubName::Base(base) => base.find(cache),
                    HubName::Repo(repo) => catalog::find_sdxl(cache, repo, true).map(|folder| (folder, None)),
                };
                found.ok_or_else(|| {
                    let version = self.preset.map_or("v1.1", |p| pulled_as(p.version()).0);
                    let shown = path.display();
                    let detail = format!(
                        "is neither a file or folder here nor in the hub's cache {}; `pulid pull {version} --base {shown}` \
                         fetches it",
                        cache.path().display()
                    );
                    Error::file(path, detail)
                })
            }
            _ => Ok((path.to_owned(), None)),
        }
    }

    fn own_model(&self) -> Result<(PathBuf, Option<PathBuf>)> {
        if let Some(path) = self.folder.as_ref().map(|folder| folder.join("sdxl")).filter(|path| path.exists()) {
            return Ok((path, None));
        }
        if let (Some(cache), Some(preset)) = (&self.cache, self.preset)
            && let Some(found) = preset_base(preset).find(cache)
        {
            return Ok(found);
        }
        match (&self.folder, &self.cache) {
            (Some(folder), _) => Err(Error::file(folder.join("sdxl"), "does not exist; --model names another one")),
            _ => {
                let names = catalog::BASES.map(|base| base.name).join(", ");
                let detail =
                    format!("which base model of the hub's cache? Name one: {names}, OWNER/NAME, a file or a folder");
                Err(Error::invalid("--model", detail))
            }
        }
    }
}

/// A model by a name of the hub.
enum HubName {
    Base(Base),
    Repo(Repo),
}

fn hub_name(path: &Path) -> Option<HubName> {
    let text = path.to_str()?;
    Base::named(text).map(HubName::Base).or_else(|| {
        // Files are named as files, even where they do not exist.
        let file = path
            .extension()
            .is_some_and(|e| ["safetensors", "gguf", "ckpt", "pt", "pth", "bin"].iter().any(|own| e == *own));
        if file { None } else { text.parse().ok().map(HubName::Repo) }
    })
}

/// `models/mini` in the current folder or above it, else in the program's folder or above it.
pub fn mini_models() -> Option<PathBuf> {
    // As it was started before where links lead to: Windows' whole paths (`\\?\`) are none to show.
    let program = std::env::current_exe().ok();
    let linked = program.as_ref().and_then(|p| p.canonicalize().ok());
    let starts = [std::env::current_dir().ok(), program, linked];
    starts.into_iter().flatten().find_map(|start| {
        start
            .ancestors()
            .map(|folder| folder.join("models").join("mini"))
            .find(|folder| folder.join("eva_clip.json").is_file())
    })
}
