//! From one address to the next.
//!
//! Mirrors answer 307 or 308 with another host, the hub answers with its storage's. Redirects are followed here and not by the library
//! beneath, which takes two ports of a host for one server: the token goes to the hub that was named and to nobody else.

use crate::Client;
use crate::client::header;
use crate::retry::{Failure, broken};
use pulid_tensor::Error;
use ureq::Body;
use ureq::http::Response;

/// Redirects that are followed, as many as browsers allow half of.
const MAX_MOVES: usize = 10;

impl Client<'_> {
    /// What lies at an address or where that sends, from a byte on.
    pub(crate) fn get(&self, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut at = url.to_owned();
        for _ in 0..=MAX_MOVES {
            let request = self.agent.get(&at).config().max_redirects(0).max_redirects_will_error(false).build();
            let mut request = self.authorise(request, &at);
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(broken)?;
            match moved(&response, &at)? {
                Some(next) => at = next,
                None => return Ok(response),
            }
        }
        Err(round(url))
    }

    /// The answer to a question for a file's headers, and the address that gave it. `enough` says whether a redirect answers it.
    pub(crate) fn head_of(
        &self,
        url: &str,
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<(Response<Body>, String), Failure> {
        let mut at = url.to_owned();
        for _ in 0..=MAX_MOVES {
            let request = self.agent.head(&at).config().max_redirects(0).max_redirects_will_error(false).build();
            let response = self.authorise(request, &at).call().map_err(broken)?;
            // A renamed repository's new place is on the same server, and tells more than the old one.
            let within = header(&response, "location").is_some_and(|to| to.starts_with('/') && !to.starts_with("//"));
            if !within && enough(&response) {
                return Ok((response, at));
            }
            match moved(&response, &at)? {
                Some(next) => at = next,
                None => return Ok((response, at)),
            }
        }
        Err(round(url))
    }
}

fn round(url: &str) -> Failure {
    Error::network(url, "the server sends from one address to the next").into()
}

/// Where a response sends; none where it does not.
fn moved(response: &Response<Body>, from: &str) -> Result<Option<String>, Failure> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let Some(location) = header(response, "location") else {
        return Err(Error::network(from, "the server sends elsewhere and does not say where").into());
    };
    let Some(next) = resolve(from, location) else {
        return Err(
            Error::network(from, format!("the server sends to {location}, which is no address on the web")).into()
        );
    };
    if from.starts_with("https://") && !next.starts_with("https://") {
        return Err(Error::network(from, format!("the server sends to {location}, which is not encrypted")).into());
    }
    Ok(Some(next))
}

/// An address that may be relative to another one.
fn resolve(from: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default().trim();
    let (scheme, rest) = from.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    if let Some((scheme, _)) =
        location.split_once("://").filter(|(scheme, _)| scheme.bytes().all(|b| b.is_ascii_alphanumeric()))
    {
        return ["http", "https"].iter().any(|own| scheme.eq_ignore_ascii_case(own)).then(|| {
            let (_, rest) = location.split_at(scheme.len());
            format!("{}{rest}", scheme.to_ascii_lowercase())
        });
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{host}{location}"));
    }
    if location.is_empty() {
        return None;
    }
    let path = rest[host.len()..].split(['?', '#']).next()?;
    let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
    Some(format!("{scheme}://{host}{folder}{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_from_where_they_stand() {
        let from = "https://hub.example:8443/a/b/resolve/main/c?x=1";
        for (location, want) in [
            ("https://cdn.example/d?e#f", Some("https://cdn.example/d?e")),
            ("HTTP://other:1/d", Some("http://other:1/d")),
            ("//other.example/d", Some("https://other.example/d")),
            ("/n/b/resolve/main/c", Some("https://hub.example:8443/n/b/resolve/main/c")),
            ("d?to=https://x", Some("https://hub.example:8443/a/b/resolve/main/d?to=https://x")),
            ("file:///etc/passwd", None),
            ("ftp://x/y", None),
            ("", None),
        ] {
            assert_eq!(resolve(from, location).as_deref(), want, "{location}");
        }
        assert_eq!(resolve("http://127.0.0.1:9", "x").as_deref(), Some("http://127.0.0.1:9/x"));
    }
}
