//! `pulid-site build`, `serve [PORT]`, which builds first, and `open PORT`, which serves what is built: for `cargo xtask web` and
//! `bench-page`.

use pulid_site::{Outcome, build, router};
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = root.join("target/web");
    let done = match words.as_slice() {
        ["build"] => build(&root, &out).map(|()| println!("the site is in target/web; any static host can serve it")),
        ["serve"] => build(&root, &out).and_then(|()| serve(&out, "8080")),
        ["serve", port] => build(&root, &out).and_then(|()| serve(&out, port)),
        ["open", port] => serve(&out, port),
        _ => Err("usage: pulid-site build | serve [PORT] | open PORT".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pulid-site: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(folder: &std::path::Path, port: &str) -> Outcome {
    let address = format!("127.0.0.1:{port}");
    let listener =
        tokio::net::TcpListener::bind(&address).await.map_err(|e| format!("{address}: {e}; name another port"))?;
    println!("http://{address}/  (Ctrl-C ends it)");
    axum::serve(listener, router(folder)).await.map_err(|e| e.to_string())
}
