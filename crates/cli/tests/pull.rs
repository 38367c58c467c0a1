//! From `pulid pull` to an image, against a stand-in for the hub that serves the mini models under the published names.

#[path = "../../hub/tests/server/mod.rs"]
mod server;
mod support;

use serde_json::{Value, json};
use server::{Served, Server};
use std::path::{Path, PathBuf};
use std::process::Output;
use support::{program, repository};

const JUGGERNAUT: &str = "RunDiffusion/Juggernaut-XL-v9";
const DREAMSHAPER: &str = "Lykon/dreamshaper-xl-lightning";

/// What the presets need beside a base model, and which mini model stands in for it.
const FILES: [(&str, &str); 4] = [
    ("guozinan/PuLID/resolve/main/pulid_v1.1.safetensors", "pulid_v1.1.safetensors"),
    ("QuanSun/EVA-CLIP/resolve/main/EVA02_CLIP_L_336_psz14_s6B.pt", "eva_clip.safetensors"),
    ("fal/AuraFace-v1/resolve/main/scrfd_10g_bnkps.onnx", "antelopev2/scrfd_10g_bnkps.onnx"),
    ("fal/AuraFace-v1/resolve/main/glintr100.onnx", "antelopev2/glintr100.onnx"),
];

fn mini(path: &str) -> PathBuf {
    repository("models/mini").join(path)
}

fn served(path: &Path) -> Served {
    Served { body: std::fs::read(path).unwrap(), ..Served::default() }
}

/// Files of a folder, as paths below it.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(below(&path).into_iter().map(|file| format!("{name}/{file}")));
        } else {
            found.push(name);
        }
    }
    found
}

/// A repository with the mini SDXL: its listing, and its files.
fn base(repo: &str, licence: &str) -> Vec<(String, Served)> {
    let files = below(&mini("sdxl"));
    let siblings: Vec<_> = files.iter().map(|file| json!({ "rfilename": file })).collect();
    let listing = json!({ "siblings": siblings, "tags": [format!("license:{licence}")] });
    let listing = Served { body: listing.to_string().into_bytes(), ..Served::default() };
    let mut all = vec![(format!("/api/models/{repo}/revision/main"), listing)];
    all.extend(files.iter().map(|file| (format!("/{repo}/resolve/main/{file}"), served(&mini("sdxl").join(file)))));
    all
}

/// The stand-in, and somebody's home without anything.
struct Home {
    folder: tempfile::TempDir,
    server: Server,
}

impl Home {
    fn new(change: impl Fn(&str, &mut Served)) -> Home {
        let mut files: Vec<_> = FILES.iter().map(|(path, file)| (format!("/{path}"), served(&mini(file)))).collect();
        files.extend(base(JUGGERNAUT, "creativeml-openrail-m"));
        files.extend(base(DREAMSHAPER, "cc-by-nc-4.0"));
        files.iter_mut().for_each(|(path, file)| change(path, file));
        let home = Home { folder: tempfile::tempdir().unwrap(), server: Server::start(files) };
        // facexlib's files have known hashes, which no stand-in can have; what is there is not asked for.
        let facexlib = home.folder.path().join("hf/assets/pulid-wgpu/facexlib/default");
        std::fs::create_dir_all(&facexlib).unwrap();
        std::fs::copy(mini("parsing_bisenet.safetensors"), facexlib.join("parsing_bisenet.pth")).unwrap();
        let detector = repository("tests/goldens/retinaface/wide-pyramid/weights.safetensors");
        std::fs::copy(detector, facexlib.join("detection_Resnet50_Final.pth")).unwrap();
        home
    }

    fn run(&self, arguments: &[&str], server: bool) -> Output {
        let mut command = program(self.folder.path(), arguments);
        // What is fetched is found because it was fetched.
        command.env_remove("PULID_MODELS");
        if server {
            command.env("HF_ENDPOINT", &self.server.address).env("PULID_GITHUB_ENDPOINT", &self.server.address);
        }
        command.output().expect("the program starts")
    }

    fn succeed(&self, arguments: &[&str], server: bool) -> String {
        let output = self.run(arguments, server);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refuse(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments, true);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        message
    }

    /// The image that these flags give.
    fn image(&self, name: &str, flags: &[&str]) -> Vec<u8> {
        let ada = repository("examples/faces/ada.jpg");
        let same = ["generate", "--id", ada.to_str().unwrap(), "--prompt", "a photo of a person", "--output", name];
        let small = ["--steps", "2", "--width", "128", "--height", "128", "--no-metadata", "--autotune", "off"];
        self.succeed(&[&same[..], &small, flags].concat(), false);
        std::fs::read(self.folder.path().join(name)).unwrap()
    }
}

#[test]
fn a_mirror_that_sends_to_another_server_is_followed_without_the_token() {
    let home = Home::new(|_, _| {});
    let paths = base(JUGGERNAUT, "").into_iter().map(|(path, _)| path);
    let paths = paths.chain(FILES.iter().map(|(path, _)| format!("/{path}")));
    let mirror = Server::start(paths.map(|path| {
        // The listing with one status, files with the other.
        let code = if path.starts_with("/api/") { 307 } else { 308 };
        let redirect = Some((code, format!("{}{path}", home.server.address)));
        (path, Served { redirect, ..Served::default() })
    }));
    let pull = ["pull", "v1.1", "--base", "juggernaut", "--faces", "auraface"];
    let mut command = program(home.folder.path(), &pull);
    command.env("HF_ENDPOINT", &mirror.address).env("PULID_GITHUB_ENDPOINT", &mirror.address).env("HF_TOKEN", "secret");
    let output = command.env_remove("PULID_MODELS").output().expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(mirror.tokens().iter().all(|token| token.as_deref() == Some("Bearer secret")));
    assert!(!home.server.tokens().is_empty() && home.server.tokens().iter().all(Option::is_none));
    // It is the hub's own file by every name.
    home.succeed(&[&pull[..], &["--offline"]].concat(), false);
}

#[test]
fn what_was_pulled_makes_the_image_of_its_preset_without_a_network() {
    let tower = "/QuanSun/EVA-CLIP/resolve/main/EVA02_CLIP_L_336_psz14_s6B.pt";
    let home = Home::new(|path, file| match path {
        p if p == tower => file.cuts = vec![1_000_000, 2_000_000],
        p if p.ends_with("pulid_v1.1.safetensors") => file.refusals = vec![(429, Some(1))],
        _ => {}
    });
    let pull = ["pull", "v1.1", "--base", "juggernaut", "--faces", "auraface"];
    let said = home.succeed(&pull, true);
    for part in ["creativeml-openrail-m", "Apache-2.0", "now: pulid generate --preset v1.1-base --id PHOTO"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let ranges = home.server.ranges(tower);
    assert_eq!(ranges, [None, Some("bytes=1000000-".into()), Some("bytes=3000000-".into())]);

    // All of it is there now: neither a second pull nor one without a network fetches anything.
    let fetched = home.server.seen.lock().unwrap().iter().filter(|seen| seen.0 == "GET").count();
    home.succeed(&pull, true);
    home.succeed(&[&pull[..], &["--offline"]].concat(), false);
    let listed = home.server.seen.lock().unwrap().iter().filter(|seen| seen.0 == "GET").count() - fetched;
    assert_eq!(listed, 1, "the listing alone is asked for again");

    // The preset finds base, adapter and face networks in the cache: the image is that of the same files by name.
    let preset = home.image("preset.png", &["--preset", "v1.1-base"]);
    let flat = home.folder.path().join("flat");
    std::fs::create_dir(&flat).unwrap();
    for (path, file) in FILES {
        std::fs::copy(mini(file), flat.join(path.rsplit('/').next().unwrap())).unwrap();
    }
    let facexlib = home.folder.path().join("hf/assets/pulid-wgpu/facexlib/default");
    for file in ["parsing_bisenet.pth", "detection_Resnet50_Final.pth"] {
        std::fs::copy(facexlib.join(file), flat.join(file)).unwrap();
    }
    let sdxl = mini("sdxl");
    let named = ["--preset", "v1.1-base", "--models-dir", "flat", "--model", sdxl.to_str().unwrap()];
    assert!(preset == home.image("named.png", &named), "the cache's files give another image");
    assert!(preset == home.image("model.png", &["--preset", "v1.1-base", "--model", "juggernaut"]));
    assert!(preset == home.image("layout.png", &["--preset", "v1.1-base", "--models-dir", "hf/hub"]));

    let doctor: Value = serde_json::from_str(&home.succeed(&["doctor", "--json"], false)).unwrap();
    let juggernaut = doctor["bases"].as_array().unwrap().iter().find(|base| base["name"] == "juggernaut").unwrap();
    assert!(juggernaut.to_string().contains("models--RunDiffusion"), "{doctor}");
}

#[test]
fn terms_and_refusals_stop_before_gigabytes_arrive() {
    let home = Home::new(|path, file| {
        if path.contains("Juggernaut") {
            file.token = Some("secret".into());
        }
    });
    let weights = |home: &Home| {
        let seen = home.server.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.0 == "GET" && seen.1.contains("/resolve/")).count()
    };
    // A base model for non-commercial use asks, as antelopev2 does.
    let message = home.refuse(&["pull", "v1.1", "--base", "dreamshaper-lightning", "--faces", "auraface"], 2);
    assert!(message.contains(DREAMSHAPER) && message.contains("--accept-licence"), "{message}");
    // A closed repository.
    let message = home.refuse(&["pull", "v1.1", "--base", "juggernaut", "--faces", "auraface"], 2);
    assert!(message.contains("401") && message.contains("HF_TOKEN"), "{message}");
    // One that is no SDXL, one that is not there, one that cannot be.
    let message = home.refuse(&["pull", "v1.1", "--base", "guozinan/PuLID", "--faces", "auraface"], 2);
    assert!(message.contains("404"), "{message}");
    let message = home.refuse(&["pull", "v1.1", "--base", "neither here nor there"], 2);
    assert!(message.contains("juggernaut"), "{message}");
    assert_eq!(weights(&home), 0);
    let consent = ["pull", "v1.1", "--base", "dreamshaper-lightning", "--faces", "auraface", "--accept-licence"];
    assert!(home.succeed(&consent, true).contains("--preset v1.1-lightning"));
}

#[test]
fn a_lying_server_leaves_no_file_and_a_broken_one_leaves_what_arrived() {
    let adapter = "/guozinan/PuLID/resolve/main/pulid_v1.1.safetensors";
    let home = Home::new(|path, file| {
        if path == adapter {
            file.etag = Some("0".repeat(64));
        }
    });
    let pull = ["pull", "v1.1", "--faces", "auraface"];
    let message = home.refuse(&pull, 2);
    assert!(message.contains("SHA-256"), "{message}");
    assert!(!below(&home.folder.path().join("hf")).iter().any(|file| file.contains("PuLID")), "something was kept");

    let short = Home::new(|path, file| {
        if path == adapter {
            file.size = Some(file.body.len() + 5);
        }
    });
    let message = short.refuse(&pull, 1);
    assert!(message.contains("pulid_v1.1.safetensors") && !message.contains("panicked"), "{message}");
    let kept = below(&short.folder.path().join("hf/hub"));
    assert!(kept.iter().all(|file| file.ends_with(".incomplete")), "{kept:?}");
}
