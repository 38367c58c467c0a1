//! What to say and do when a server says no.

use crate::Settings;
use pulid_tensor::Error;
use std::time::Duration;

/// Attempts in a row without a byte of progress.
pub(crate) const ATTEMPTS: u32 = 5;

/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why an attempt failed.
pub(crate) enum Failure {
    /// Another attempt may succeed, after this time if the server names one.
    Passing(String, Option<Duration>),
    /// No attempt will.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// The failure of a connection.
pub(crate) fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Passing(error.to_string(), None)
}

/// The failure that a status means; `None` for success and redirects.
pub(crate) fn refused(status: u16, retry_after: Option<&str>, url: &str, settings: &Settings) -> Option<Failure> {
    let endpoint = &settings.endpoint;
    let page = url.split("/resolve/").next().unwrap_or(url).replace("/api/models/", "/");
    let detail = match (status, &settings.token) {
        (0..=399, _) => return None,
        (401, None) => format!(
            "the server asks who you are (401): the repository is closed, or does not exist. Accept its terms at {page} if \
             it has some, make a token at {endpoint}/settings/tokens and set HF_TOKEN"
        ),
        (401, Some(_)) => format!(
            "the server does not accept your token (401): make a new one at {endpoint}/settings/tokens and set HF_TOKEN, or \
             unset it for open repositories"
        ),
        (403, _) => {
            format!("the server forbids it (403): accept the terms at {page} with the account of your HF_TOKEN")
        }
        (404 | 410, _) => format!("the server has no such file ({status}): check the name of the repository at {page}"),
        (408 | 425 | 429 | 500.., _) => {
            let wait = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            if let Some(wait) = wait.filter(|wait| *wait > LONGEST_WAIT) {
                let detail = format!("the server wants {} s of rest ({status}); try again then", wait.as_secs());
                return Some(Failure::Final(Error::network(url, detail)));
            }
            let why = if status == 429 { "too many requests (429)".into() } else { format!("status {status}") };
            return Some(Failure::Passing(why, wait));
        }
        _ => format!("the server answers with status {status}; it may want another address than HF_ENDPOINT's"),
    };
    Some(Failure::Final(Error::invalid(url, detail)))
}

/// What is said when the last attempt has failed.
pub(crate) fn exhausted(url: &str, why: &str, settings: &Settings) -> Error {
    let token = match (why.contains("429"), &settings.token) {
        (true, None) => " (with a token in HF_TOKEN more requests are allowed)",
        _ => "",
    };
    let detail = format!(
        "{ATTEMPTS} attempts failed: {why}; check the connection, proxy (HTTPS_PROXY) and HF_ENDPOINT, and try again later{token}: \
         what has arrived is kept"
    );
    Error::network(url, detail)
}
