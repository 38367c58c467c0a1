//! Asks the servers.

use crate::cache::{plain, within};
use crate::retry::{ATTEMPTS, Failure, exhausted, refused};
use crate::transfer::{Target, fetch_into};
use crate::{Cache, Repo, Settings};
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::Response;
use ureq::{Agent, Body};

/// Sees a file arrive, and may stop it.
pub trait Watch {
    /// Whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
    /// A file begins, of which `done` bytes are there already; its size if the server says it.
    fn begin(&self, _name: &str, _done: u64, _size: Option<u64>) {}
    /// So many bytes of the file are there.
    fn arrived(&self, _done: u64) {}
    /// Something a person may want to know, such as a wait.
    fn note(&self, _text: &str) {}
}

/// Fetches files into the cache.
pub struct Client<'a> {
    pub(crate) agent: Agent,
    pub(crate) settings: Settings,
    pub(crate) watch: &'a dyn Watch,
}

/// What a server says of a file.
struct Head {
    url: String,
    commit: String,
    etag: String,
    size: Option<u64>,
}

impl<'a> Client<'a> {
    /// A client with these settings.
    pub fn new(settings: Settings, watch: &'a dyn Watch) -> Client<'a> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // A body that stalls or takes longer is taken up again where it was.
            .timeout_recv_body(Some(Duration::from_secs(120)))
            .user_agent(concat!("pulid-wgpu/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { agent: config.into(), settings, watch }
    }

    /// The cache it fills.
    pub fn cache(&self) -> Cache {
        Cache::new(&self.settings.cache)
    }

    /// A file of a repository: from the cache where it is as new as the server's, else fetched.
    ///
    /// # Errors
    /// [`Error::Network`] where the server cannot be reached, [`Error::Invalid`] where it refuses, [`Error::File`] for
    /// content that is not what was promised; [`Error::Cancelled`].
    pub fn fetch(&self, repo: &Repo, file: &str) -> Result<PathBuf> {
        let cache = self.cache();
        let found = cache.find(repo, file);
        if self.settings.offline {
            let place = cache.path().join(format!("{repo}/{file}"));
            return found.ok_or_else(|| Error::file(place, "is not in the cache; go without --offline to fetch it"));
        }
        if !within(file) {
            return Err(Error::invalid(file, "is no path within a repository"));
        }
        let url = format!("{}/{repo}/resolve/main/{file}", self.settings.endpoint);
        let head = match (self.persist(&url, || self.head(&url)), found) {
            (Err(Error::Network { detail, .. }), Some(path)) => {
                self.watch.note(&format!("{file}: the cached one is taken, newer ones were not looked for ({detail})"));
                return Ok(path);
            }
            (head, _) => head?,
        };
        let blobs = cache.folder(repo).join("blobs");
        let blob = blobs.join(&head.etag);
        let pointer = cache.folder(repo).join("snapshots").join(&head.commit).join(file);
        let whole = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && head.size.is_none_or(|s| s == m.len()));
        if !whole(&pointer) {
            if !whole(&blob) {
                let sha256 = (head.etag.len() == 64).then_some(head.etag.as_str());
                let target = Target { path: &blob, name: file, size: head.size, sha256 };
                fetch_into(self, &head.url, &target)?;
            }
            cache.link(repo, &head.commit, file, &head.etag)?;
        }
        cache.set_main(repo, &head.commit)?;
        Ok(pointer)
    }

    /// A file that is in no repository, such as GitHub's releases; one that is there already is not asked for.
    ///
    /// # Errors
    /// As [`Client::fetch`].
    pub fn fetch_plain(&self, url: &str, path: &Path, size: Option<u64>, sha256: Option<&str>) -> Result<PathBuf> {
        if path.is_file() {
            return Ok(path.to_owned());
        }
        if self.settings.offline {
            return Err(Error::file(path, "is not there; go without --offline to fetch it"));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        fetch_into(self, url, &Target { path, name: &name, size, sha256 })?;
        Ok(path.to_owned())
    }

    fn head(&self, url: &str) -> std::result::Result<Head, Failure> {
        fn told(response: &Response<Body>) -> Option<(String, String)> {
            let etag = header(response, "x-linked-etag").or(header(response, "etag"))?;
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let commit = header(response, "x-repo-commit")?.to_owned();
            (plain(&etag) && plain(&commit)).then_some((etag, commit))
        }
        let (response, url) = self.head_of(url, |response| told(response).is_some())?;
        self.accept(&response, &url)?;
        let Some((etag, commit)) = told(&response) else {
            let detail = "the server says neither version nor hash; is HF_ENDPOINT a hub?";
            return Err(Error::invalid(url, detail).into());
        };
        let own = header(&response, "content-length").filter(|_| !response.status().is_redirection());
        let size = header(&response, "x-linked-size").or(own).and_then(|size| size.parse().ok());
        Ok(Head { url, commit, etag, size })
    }

    /// The token, for the hub alone.
    pub(crate) fn authorise<B>(&self, request: ureq::RequestBuilder<B>, url: &str) -> ureq::RequestBuilder<B> {
        let own = url.strip_prefix(&self.settings.endpoint).is_some_and(|rest| rest.starts_with('/'));
        match &self.settings.token {
            Some(token) if own => request.header("authorization", format!("Bearer {token}")),
            _ => request,
        }
    }

    pub(crate) fn accept(&self, response: &Response<Body>, url: &str) -> std::result::Result<(), Failure> {
        let wait = header(response, "retry-after");
        refused(response.status().as_u16(), wait, url, &self.settings).map_or(Ok(()), Err)
    }

    /// Repeats what fails in passing.
    pub(crate) fn persist<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(why, wait)) => {
                    failed += 1;
                    if failed == ATTEMPTS {
                        return Err(exhausted(url, &why, &self.settings));
                    }
                    self.rest(&why, wait, failed)?;
                }
            }
        }
    }

    /// Waits as long as the server asks, or longer with every failure.
    pub(crate) fn rest(&self, why: &str, wait: Option<Duration>, failed: u32) -> Result<()> {
        let wait = wait.unwrap_or(self.settings.patience * (1 << failed.saturating_sub(1).min(6)));
        if wait >= Duration::from_secs(1) {
            self.watch.note(&format!("{why}; trying again in {} s", wait.as_secs()));
        }
        let end = std::time::Instant::now() + wait;
        while let Some(left) = end.checked_duration_since(std::time::Instant::now()).filter(|left| !left.is_zero()) {
            if self.watch.cancelled() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }
}

pub(crate) fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}
