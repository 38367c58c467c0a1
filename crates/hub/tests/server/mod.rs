//! A hub that misbehaves on request.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// How one path is served.
#[derive(Clone, Debug, Default)]
pub struct Served {
    pub body: Vec<u8>,
    /// The hash that is promised; that of the body if none.
    pub etag: Option<String>,
    /// The size that is promised; that of the body if none.
    pub size: Option<usize>,
    /// Connections that end after so many bytes of the body.
    pub cuts: Vec<usize>,
    /// Answers to give before that: status and `Retry-After`.
    pub refusals: Vec<(u16, Option<u64>)>,
    /// Answer every range with the whole.
    pub no_ranges: bool,
    /// The token that is wanted.
    pub token: Option<String>,
    /// Status and address to send to.
    pub redirect: Option<(u16, String)>,
}

/// A request as it came in: method, path, range, token.
pub type Seen = (String, String, Option<String>, Option<String>);

pub struct Server {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Server {
    pub fn start<P: Into<String>>(files: impl IntoIterator<Item = (P, Served)>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let files: HashMap<String, Served> = files.into_iter().map(|(path, s)| (path.into(), s)).collect();
        let (files, log) = (Arc::new(Mutex::new(files)), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (files.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &files, &log));
            }
        });
        Server { address, seen }
    }

    /// The tokens of all requests, without their kind.
    pub fn tokens(&self) -> Vec<Option<String>> {
        self.seen.lock().unwrap().iter().map(|seen| seen.3.clone()).collect()
    }

    /// The ranges of all downloads of a path.
    pub fn ranges(&self, path: &str) -> Vec<Option<String>> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|s| s.0 == "GET" && s.1 == path).map(|s| s.2.clone()).collect()
    }
}

fn answer(mut stream: TcpStream, files: &Mutex<HashMap<String, Served>>, log: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let (range, token) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    log.lock().unwrap().push((method.clone(), path.clone(), range.clone(), token.clone()));
    let (served, cut) = {
        let mut files = files.lock().unwrap();
        let Some(file) = files.get_mut(&path) else { return status(&mut stream, 404, None) };
        if file.token.as_ref().is_some_and(|wanted| token != Some(format!("Bearer {wanted}"))) {
            return status(&mut stream, 401, None);
        }
        if let Some((code, to)) = &file.redirect {
            let head =
                format!("HTTP/1.1 {code} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return stream.write_all(head.as_bytes()).ok();
        }
        if !file.refusals.is_empty() {
            let (code, wait) = file.refusals.remove(0);
            return status(&mut stream, code, wait);
        }
        let cut = (method == "GET" && !file.cuts.is_empty()).then(|| file.cuts.remove(0));
        (file.clone(), cut)
    };
    let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0usize);
    let start = if served.no_ranges { 0 } else { start };
    if start >= served.body.len() && start > 0 {
        return status(&mut stream, 416, None);
    }
    let body = &served.body[start..];
    let (etag, total) = (served.etag.unwrap_or_else(|| sha256(&served.body)), served.size.unwrap_or(served.body.len()));
    let mut head = if start > 0 {
        format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\n", total - 1)
    } else {
        "HTTP/1.1 200 OK\r\n".into()
    };
    head += &format!("Content-Length: {}\r\nConnection: close\r\nX-Repo-Commit: c0ffee\r\n", body.len());
    head += &format!("X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {total}\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    if method == "GET" {
        stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())]).ok()?;
    }
    stream.flush().ok()
}

fn status(stream: &mut TcpStream, code: u16, wait: Option<u64>) -> Option<()> {
    let wait = wait.map_or(String::new(), |wait| format!("Retry-After: {wait}\r\n"));
    write!(stream, "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n{wait}\r\n").ok()
}
