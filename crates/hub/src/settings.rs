//! What the environment says, by the names every hub client shares.

use std::path::PathBuf;
use std::time::Duration;

/// Servers, folders and token.
#[derive(Clone)]
pub struct Settings {
    /// The hub (`HF_ENDPOINT`), without a slash at the end.
    pub endpoint: String,
    /// Where GitHub's releases lie (`PULID_GITHUB_ENDPOINT`), for mirrors and tests.
    pub github: String,
    /// The hub's cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Files from elsewhere (`HF_ASSETS_CACHE`, or `assets` in `HF_HOME`).
    pub assets: PathBuf,
    /// The token (`HF_TOKEN`, or the file that logging in leaves).
    pub token: Option<String>,
    /// Ask no server (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// The first wait before another attempt; it doubles.
    pub patience: Duration,
}

impl Settings {
    /// From the environment.
    pub fn from_env() -> Settings {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()))
    }

    fn from(var: impl Fn(&str) -> Option<String>) -> Settings {
        let path = |name: &str| var(name).map(PathBuf::from);
        let caches = || path("XDG_CACHE_HOME").or_else(|| Some(dirs::home_dir()?.join(".cache")));
        let home = path("HF_HOME").unwrap_or_else(|| caches().unwrap_or_default().join("huggingface"));
        let server = |name: &str, own: &str| var(name).unwrap_or_else(|| own.into()).trim_end_matches('/').to_owned();
        let kept = || std::fs::read_to_string(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
        let token = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")).or_else(kept);
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str());
        Settings {
            endpoint: server("HF_ENDPOINT", "https://huggingface.co"),
            github: server("PULID_GITHUB_ENDPOINT", "https://github.com"),
            cache: path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub")),
            assets: path("HF_ASSETS_CACHE").unwrap_or_else(|| home.join("assets")),
            token: token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline: var("HF_HUB_OFFLINE").is_some_and(on),
            patience: Duration::from_secs(1),
        }
    }

    /// Where facexlib's files lie: the assets cache as other programs divide it.
    pub fn facexlib(&self) -> PathBuf {
        self.assets.join("pulid-wgpu").join("facexlib").join("default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &'static [(&str, &str)]) -> Settings {
        Settings::from(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn folders_follow_the_environment_as_in_other_clients() {
        assert_eq!(with(&[("HF_HOME", "/h")]).cache, PathBuf::from("/h/hub"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x")]).cache, PathBuf::from("/x/huggingface/hub"));
        let all =
            with(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "http://m/"), ("HF_TOKEN", " t\n"), ("HF_HUB_OFFLINE", "1")]);
        assert_eq!((all.endpoint.as_str(), all.token.as_deref(), all.offline), ("http://m", Some("t"), true));
        let none = with(&[("HF_HOME", "/nowhere"), ("HF_HUB_OFFLINE", "0")]);
        assert!(none.token.is_none() && !none.offline && none.endpoint == "https://huggingface.co");
    }
}
