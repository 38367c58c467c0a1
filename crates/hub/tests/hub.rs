//! Downloads from a server on this machine that drops connections, refuses and lies.

mod server;

use pulid_hub::{Cache, Client, Repo, Settings, Watch};
use pulid_tensor::{Error, Result};
use server::{Served, Server, sha256};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "/a/b/resolve/main/sub/w.bin";

struct Quiet;
impl Watch for Quiet {}

fn settings(root: &Path, address: &str) -> Settings {
    Settings {
        endpoint: address.into(),
        github: address.into(),
        cache: root.join("hub"),
        assets: root.join("assets"),
        token: None,
        offline: false,
        patience: Duration::from_millis(5),
    }
}

fn content() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 9).to_le_bytes()).collect()
}

fn repo() -> Repo {
    "a/b".parse().unwrap()
}

/// Every file below a folder that is not a reference.
fn left(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(left(&path)) } else { found.push(path) }
    }
    found.retain(|path| !path.to_string_lossy().contains("refs"));
    found
}

/// Fetches the file from a server that serves it so.
fn fetch(served: Served, change: impl Fn(&mut Settings)) -> (Result<PathBuf>, tempfile::TempDir, Server) {
    let (root, server) = (tempfile::tempdir().unwrap(), Server::start([(FILE, served)]));
    let mut settings = settings(root.path(), &server.address);
    change(&mut settings);
    let got = Client::new(settings, &Quiet).fetch(&repo(), "sub/w.bin");
    (got, root, server)
}

fn message(got: Result<PathBuf>) -> String {
    got.unwrap_err().to_string()
}

#[test]
fn cut_connections_are_taken_up_where_they_were() {
    let cuts = vec![100_000, 400_000, 0, 1];
    let (got, root, server) = fetch(Served { body: content(), cuts, ..Served::default() }, |_| {});
    let path = got.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content());
    assert_eq!(path, root.path().join("hub/models--a--b/snapshots/c0ffee/sub/w.bin"));
    let ranges: Vec<_> = ["100000", "500000", "500000", "500001"].map(|at| Some(format!("bytes={at}-"))).into();
    assert_eq!(server.ranges(FILE)[1..], ranges);
    let blob = root.path().join("hub/models--a--b/blobs").join(sha256(&content()));
    assert_eq!(left(root.path()).len(), 2, "a blob and its link: {:?}", left(root.path()));
    assert!(blob.is_file());
    // The second time nothing is fetched, and without a server the cache answers.
    let mut settings = settings(root.path(), &server.address);
    assert_eq!(Client::new(settings.clone(), &Quiet).fetch(&repo(), "sub/w.bin").unwrap(), path);
    assert_eq!(server.ranges(FILE).len(), 5);
    settings.offline = true;
    settings.endpoint = "http://127.0.0.1:9".into();
    assert_eq!(Client::new(settings.clone(), &Quiet).fetch(&repo(), "sub/w.bin").unwrap(), path);
    assert_eq!(Cache::new(root.path().join("hub")).find(&repo(), "sub/w.bin").unwrap(), path);
    assert!(message(Client::new(settings, &Quiet).fetch(&repo(), "other")).contains("--offline"));
}

#[test]
fn the_next_run_goes_on_where_the_last_gave_up() {
    let body = content();
    let cuts = vec![100_000, 0, 0, 0, 0];
    let (got, root, server) = fetch(Served { body: body.clone(), cuts, ..Served::default() }, |_| {});
    assert!(matches!(got, Err(Error::Network { .. })), "{got:?}");
    let partial = left(root.path());
    assert!(partial.len() == 1 && partial[0].extension().is_some_and(|e| e == "incomplete"), "{partial:?}");
    assert!(Cache::new(root.path().join("hub")).find(&repo(), "sub/w.bin").is_none());
    let again = Client::new(settings(root.path(), &server.address), &Quiet).fetch(&repo(), "sub/w.bin");
    assert_eq!(std::fs::read(again.unwrap()).unwrap(), body);
    assert_eq!(server.ranges(FILE).last().unwrap().as_deref(), Some("bytes=100000-"));
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let served = Served { body: content(), cuts: vec![5_000], no_ranges: true, ..Served::default() };
    let (got, _root, _server) = fetch(served, |_| {});
    assert_eq!(std::fs::read(got.unwrap()).unwrap(), content());
}

#[test]
fn wrong_content_is_thrown_away() {
    let served = Served { body: content(), etag: Some(sha256(b"other")), ..Served::default() };
    let (got, root, _) = fetch(served, |_| {});
    let text = message(got);
    assert!(text.contains(&sha256(b"other")) && text.contains(&sha256(&content())), "{text}");
    assert!(left(root.path()).is_empty(), "{:?}", left(root.path()));
    // More than was promised.
    let (got, root, _) = fetch(Served { body: content(), size: Some(1_000), ..Served::default() }, |_| {});
    assert!(message(got).contains("1000 were promised"));
    assert!(left(root.path()).is_empty());
}

#[test]
fn short_bodies_never_become_a_file() {
    let size = Some(content().len() + 10);
    let (got, root, _) = fetch(Served { body: content(), size, ..Served::default() }, |_| {});
    assert!(matches!(got, Err(Error::Network { .. }) | Err(Error::File { .. })), "{got:?}");
    assert!(left(root.path()).iter().all(|path| path.extension().is_some_and(|e| e == "incomplete")));
}

#[test]
fn refusals_say_what_to_do_and_leave_nothing() {
    let guarded = || Served { body: content(), token: Some("secret".into()), ..Served::default() };
    let (got, root, server) = fetch(guarded(), |_| {});
    assert!(matches!(got, Err(Error::Invalid { .. })));
    let text = message(got);
    let parts = ["401", "HF_TOKEN", &format!("{}/a/b if", server.address), "/settings/tokens"];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(left(root.path()).is_empty());
    let (got, ..) = fetch(guarded(), |s| s.token = Some("wrong".into()));
    assert!(message(got).contains("does not accept your token"));
    let (got, ..) = fetch(guarded(), |s| s.token = Some("secret".into()));
    assert!(got.is_ok());
    let server = Server::start::<String>([]);
    let missing = Client::new(settings(root.path(), &server.address), &Quiet).fetch(&repo(), "sub/w.bin");
    assert!(matches!(missing, Err(Error::Invalid { .. })) && message(missing).contains("404"));
    assert!(left(root.path()).is_empty());
}

#[test]
fn too_many_requests_wait_as_long_as_the_server_says() {
    let refusals = vec![(429, Some(1)), (503, None)];
    let start = Instant::now();
    let (got, ..) = fetch(Served { body: content(), refusals, ..Served::default() }, |_| {});
    assert!(got.is_ok() && start.elapsed() >= Duration::from_secs(1));
    let start = Instant::now();
    let (got, ..) = fetch(Served { refusals: vec![(429, Some(4_000))], ..Served::default() }, |_| {});
    let text = message(got);
    assert!(text.contains("4000 s") && start.elapsed() < Duration::from_secs(5), "{text}");
    let (got, ..) = fetch(Served { refusals: vec![(429, None); 9], ..Served::default() }, |_| {});
    assert!(message(got).contains("HF_TOKEN"));
}

#[test]
fn without_a_network_the_cached_file_serves_and_others_fail() {
    let (got, root, _) = fetch(Served { body: content(), ..Served::default() }, |_| {});
    let nowhere = || Client::new(settings(root.path(), "http://127.0.0.1:9"), &Quiet);
    assert_eq!(nowhere().fetch(&repo(), "sub/w.bin").unwrap(), got.unwrap());
    let other = nowhere().fetch(&repo(), "other.bin");
    assert!(matches!(other, Err(Error::Network { .. })) && message(other).contains("HF_ENDPOINT"));
}

#[test]
fn a_server_cannot_reach_outside_the_cache() {
    let (got, root, _) = fetch(Served { body: content(), etag: Some("../../x".into()), ..Served::default() }, |_| {});
    assert!(matches!(got, Err(Error::Invalid { .. })) && left(root.path()).is_empty());
}

#[test]
fn files_of_no_repository_are_held_to_their_known_hash_without_the_token() {
    let (root, server) =
        (tempfile::tempdir().unwrap(), Server::start([("/x/w.pth", Served { body: content(), ..Served::default() })]));
    let client = Client::new(settings(root.path(), &server.address), &Quiet);
    let (path, url) = (root.path().join("f/w.pth"), format!("{}/x/w.pth", server.address));
    let wrong = client.fetch_plain(&url, &path, None, Some(&sha256(b"")));
    assert!(matches!(wrong, Err(Error::File { .. })) && left(root.path()).is_empty());
    let wrong = client.fetch_plain(&url, &path, Some(7), None);
    assert!(matches!(wrong, Err(Error::File { .. })) && left(root.path()).is_empty());
    let hash = sha256(&content());
    client.fetch_plain(&url, &path, Some(content().len() as u64), Some(&hash)).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    // The hub's token is the hub's alone.
    let mut elsewhere = settings(root.path(), "http://127.0.0.1:9");
    elsewhere.token = Some("secret".into());
    Client::new(elsewhere, &Quiet).fetch_plain(&url, &root.path().join("other"), None, None).unwrap();
    assert!(server.seen.lock().unwrap().iter().all(|seen| seen.3.is_none()));
}

#[test]
fn mirrors_that_send_to_another_server_are_followed_without_the_token() {
    for code in [301, 302, 307, 308] {
        // The second server breaks the connection once, which is taken up there.
        let body = content();
        let other = Server::start([(FILE, Served { body: body.clone(), cuts: vec![100_000], ..Served::default() })]);
        let redirect = Some((code, format!("{}{FILE}", other.address)));
        let token = Some("secret".to_owned());
        let asked = Served { redirect, token: token.clone(), ..Served::default() };
        let (got, _root, mirror) = fetch(asked, |settings| settings.token = token.clone());
        assert_eq!(std::fs::read(got.unwrap()).unwrap(), body, "{code}");
        assert!(mirror.tokens().iter().all(|token| token.as_deref() == Some("Bearer secret")), "{code}");
        assert!(
            !other.tokens().is_empty() && other.tokens().iter().all(Option::is_none),
            "{code}: {:?}",
            other.tokens()
        );
        assert_eq!(other.ranges(FILE), [None, Some("bytes=100000-".into())]);
    }
}

#[test]
fn a_renamed_repository_keeps_the_token() {
    let (root, new) = (tempfile::tempdir().unwrap(), "/new/b/resolve/main/sub/w.bin");
    let token = Some("secret".to_owned());
    let there = Served { body: content(), token: token.clone(), ..Served::default() };
    let moved = Served { redirect: Some((307, new.into())), token: token.clone(), ..Served::default() };
    let server = Server::start([(FILE, moved), (new, there)]);
    let settings = Settings { token, ..settings(root.path(), &server.address) };
    let got = Client::new(settings, &Quiet).fetch(&repo(), "sub/w.bin").unwrap();
    assert_eq!(std::fs::read(got).unwrap(), content());
}

#[test]
fn redirects_without_an_end_or_to_no_server_are_refused() {
    for (to, part) in [(FILE, "from one address to the next"), ("file:///etc/passwd", "no address on the web")] {
        let (got, root, _server) = fetch(Served { redirect: Some((308, to.into())), ..Served::default() }, |_| {});
        let message = message(got);
        assert!(message.contains(part), "{message}");
        assert_eq!(left(root.path()), Vec::<PathBuf>::new());
    }
}
