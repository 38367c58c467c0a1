use crate::progress::{self, Arrival};
use pulid_hub::catalog::{self, Base, Item};
use pulid_hub::{Client, Repo, Settings, Watch, diffusers_files};
use pulid_tensor::{Error, Result};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Flags of `pulid pull`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid pull v1.1 --base juggernaut\n  \
    pulid pull v1 --base sdxl-lightning --faces auraface\n  \
    pulid pull v1.1 --base my-sdxl.safetensors\n\n\
    Files go into the hub's cache (HF_HUB_CACHE, HF_HOME), facexlib's into HF_HOME/assets/pulid-wgpu. A run that was cut\n\
    goes on where it stopped. HF_ENDPOINT names a mirror, HF_TOKEN a token for closed repositories. Afterwards\n\
    `pulid generate --preset v1.1-base --id a.jpg --prompt ...` needs no further flags.")]
pub struct Args {
    /// The PuLID: v1.1 or v1
    #[arg(value_parser = ["v1.1", "v1"])]
    version: String,
    /// The base model: juggernaut, dreamshaper-lightning, sdxl-lightning, a repository OWNER/NAME in diffusers' SDXL layout, or
    /// a file or folder that is here already; without it no base model is fetched
    #[arg(long, value_name = "BASE")]
    base: Option<String>,
    /// Detector and recogniser: antelopev2, with which PuLID was trained, for non-commercial research only; or auraface,
    /// Apache-2.0, of the same shapes
    #[arg(long, default_value = "antelopev2", value_parser = ["antelopev2", "auraface"])]
    faces: String,
    /// Accept licences that forbid commercial use, without being asked
    #[arg(long, visible_alias = "accept-license")]
    accept_licence: bool,
    /// Ask no server: say whether everything is there already
    #[arg(long)]
    offline: bool,
}

/// The base model that was asked for.
enum Chosen {
    None,
    Here(PathBuf),
    Hub(Repo, bool),
}

/// Fetches what is missing.
pub fn run(args: &Args) -> Result<()> {
    let base = choose(args.base.as_deref())?;
    let mut settings = Settings::from_env();
    settings.offline |= args.offline;
    let arrival = Arrival::new();
    let client = Client::new(settings.clone(), &arrival);
    let items = items(args, &base);
    for item in &items {
        say!("{:<38} {} from {}: {}", item.file, item.what, item.source(), item.licence);
    }
    let missing = |item: &&Item| item.find(&client.cache(), &settings).is_none();
    if items.iter().filter(missing).any(|item| !item.commercial) && !settings.offline {
        consent(
            args.accept_licence,
            "antelopev2",
            "--faces auraface fetches files of the same shapes under Apache-2.0",
        )?;
    }
    // The base model first asks whether it is one, before gigabytes arrive.
    let files = match &base {
        Chosen::Hub(repo, lightning) if !settings.offline => {
            let listing = client.list(repo)?;
            let licence = listing.licence.as_deref().unwrap_or("see its page");
            say!("{:<38} base model; licence: {licence}", repo.to_string());
            let page = format!("its terms are at {}/{repo}", settings.endpoint);
            if forbids(licence) && catalog::find_sdxl(&client.cache(), repo, !lightning).is_none() {
                consent(args.accept_licence, &repo.to_string(), &page)?;
            }
            diffusers_files(repo, &listing.files, !lightning)?
        }
        _ => Vec::new(),
    };
    for item in &items {
        done(item.file, &item.fetch(&client)?, &arrival);
    }
    match &base {
        Chosen::Hub(repo, lightning) if settings.offline => {
            let found = catalog::find_sdxl(&client.cache(), repo, !lightning);
            let place = client.cache().path().join(repo.to_string());
            let found =
                found.ok_or_else(|| Error::file(place, "is not in the cache as a whole; go without --offline"))?;
            done(&repo.to_string(), &found, &arrival);
        }
        Chosen::Hub(repo, _) => {
            for file in &files {
                done(&format!("{repo}/{file}"), &client.fetch(repo, file)?, &arrival);
            }
        }
        Chosen::Here(path) => done("base model", path, &arrival),
        Chosen::None => {}
    }
    arrival.finish();
    say!("{}", next(args, &base));
    Ok(())
}

fn done(name: &str, path: &Path, arrival: &Arrival) {
    arrival.finish();
    say!("{name}: {}", path.display());
}

fn choose(base: Option<&str>) -> Result<Chosen> {
    let Some(text) = base else { return Ok(Chosen::None) };
    if let Some(base) = Base::named(text) {
        return Ok(Chosen::Hub(base.repo.parse()?, base.lightning));
    }
    if Path::new(text).exists() {
        return Ok(Chosen::Here(PathBuf::from(text)));
    }
    text.parse().map(|repo| Chosen::Hub(repo, false)).map_err(|_| {
        let names = catalog::BASES.map(|base| base.name).join(", ");
        let detail =
            format!("`{text}` is neither a file or folder here, nor one of {names}, nor a repository OWNER/NAME");
        Error::invalid("--base", detail)
    })
}

fn items(args: &Args, base: &Chosen) -> Vec<Item> {
    let pulid = if args.version == "v1" { catalog::V1 } else { catalog::V1_1 };
    let faces = if args.faces == "auraface" { catalog::AURAFACE } else { catalog::ANTELOPE };
    let lightning = matches!(base, Chosen::Hub(_, true)).then_some(catalog::LIGHTNING_UNET);
    let all = [pulid, catalog::TOWER].into_iter().chain(faces).chain(catalog::FACEXLIB).chain(lightning);
    all.collect()
}

/// Whether the short name of a licence says that it forbids commercial use.
fn forbids(licence: &str) -> bool {
    let licence = licence.to_lowercase();
    licence.contains("-nc") || licence.contains("non-commercial") || licence.contains("noncommercial")
}

/// Asks for a word of consent.
fn consent(given: bool, what: &str, otherwise: &str) -> Result<()> {
    if given {
        return Ok(());
    }
    let terms = format!("the licence of {what} forbids commercial use");
    if std::io::stdin().is_terminal() {
        eprint!("{terms}; {otherwise}. Do you accept it? Type yes: ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_ok() && answer.trim().eq_ignore_ascii_case("yes") {
            return Ok(());
        }
    }
    Err(Error::invalid("--accept-licence", format!("{terms}; say that you accept it with this flag, or: {otherwise}")))
}

/// What to type now.
fn next(args: &Args, base: &Chosen) -> String {
    let named = args.base.as_deref().unwrap_or("MODEL");
    let (preset, own) = match (args.version.as_str(), named) {
        ("v1.1", "juggernaut") => ("v1.1-base", true),
        ("v1.1", "dreamshaper-lightning") => ("v1.1-lightning", true),
        ("v1.1", _) => ("v1.1-base", false),
        (_, "sdxl-lightning") => ("v1-fidelity", true),
        _ => ("v1-fidelity", false),
    };
    let model = if own && matches!(base, Chosen::Hub(..)) { String::new() } else { format!(" --model {named}") };
    let models = if args.base.is_none() { " --models-dir hub" } else { "" };
    format!("now: pulid generate --preset {preset}{model}{models} --id PHOTO --prompt 'portrait'")
}

impl Watch for Arrival {
    fn cancelled(&self) -> bool {
        progress::cancelled()
    }
    fn begin(&self, name: &str, done: u64, size: Option<u64>) {
        self.start(name, done, size);
    }
    fn arrived(&self, done: u64) {
        self.set(done);
    }
    fn note(&self, text: &str) {
        self.print(text);
    }
}
