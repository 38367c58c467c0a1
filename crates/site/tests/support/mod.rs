//! A server for the built site, a browser to look at it, and the native pipeline to compare with.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use fantoccini::error::CmdError;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use pulid::identity::{ExtractOptions, FaceModels, Identity, extract};
use pulid::image::RgbImage;
use pulid::pipeline::{GenerateOptions, IdentityUse, Pipeline, SdxlModel, Storage};
use pulid::runtime::Runtime;
use pulid::sampler::StepWindow;
use pulid::settings::{Choices, ModelDefaults, Settings};
use pulid_engine::{DeviceOptions, Silent};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The site that `pulid-site build` made.
pub fn site() -> PathBuf {
    root().join("target/web")
}

/// The built site on loopback, while this lives.
pub struct Server {
    pub address: String,
    weights: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start() -> Outcome<Server> {
        Self::with_worker("")
    }

    /// A server whose worker runs this script first, as in a browser that is otherwise.
    pub fn with_worker(script: &'static str) -> Outcome<Server> {
        Self::serve(pulid_site::router(&site()), script)
    }

    /// A server that has this folder at `model/` besides, and `empty.html`, a page that does nothing by itself.
    pub fn with_model(folder: &Path) -> Outcome<Server> {
        let empty = || async { Html("<!doctype html><title>empty</title>") };
        let model = Router::new().nest("/model", pulid_site::router(folder)).route("/empty.html", get(empty));
        Self::serve(model.fallback_service(pulid_site::router(&site())), "")
    }

    fn serve(router: Router, script: &'static str) -> Outcome<Server> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let weights = Arc::new(AtomicUsize::new(0));
        let count = weights.clone();
        let counted = move |request: Request, next: Next| {
            let path = request.uri().path();
            if path.starts_with("/models/") && !path.ends_with("/manifest.json") {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let is_worker = path == "/pulid/worker.js" && !script.is_empty();
            async move {
                let response = next.run(request).await;
                if !is_worker {
                    return response;
                }
                let worker = std::fs::read_to_string(site().join("pulid/worker.js")).unwrap_or_default();
                ([("content-type", "text/javascript")], format!("{script}\n{worker}")).into_response()
            }
        };
        let router = router.layer(from_fn(counted));
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        // Not the address 127.0.0.1: browsers take `localhost` for a secure place too, and it is what people type.
        let address = format!("http://localhost:{}/", listener.local_addr()?.port());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Server { address, weights, _runtime: runtime })
    }

    /// Requests for weights so far.
    pub fn weights(&self) -> usize {
        self.weights.load(Ordering::Relaxed)
    }
}

/// A browser of its own, without history.
pub struct Browser {
    pub page: Client,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts Chromium, with WebGPU on SwiftShader or without.
    pub async fn start(webgpu: bool) -> Outcome<Browser> {
        // Freed at once, and taken by the driver.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("chromedriver (Debian's chromium-driver) cannot be started: {e}"))?;
        let profile = tempfile::tempdir()?;
        let mut arguments = vec![
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--window-size=1280,1000".into(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        if webgpu {
            arguments.extend(["--enable-unsafe-webgpu".into(), "--use-webgpu-adapter=swiftshader".into()]);
        } else {
            arguments.push("--disable-gpu".into());
        }
        let capabilities = json!({ "goog:chromeOptions": { "args": arguments } });
        let capabilities = capabilities.as_object().cloned().unwrap_or_default();
        let url = format!("http://127.0.0.1:{port}");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            match builder.capabilities(capabilities.clone()).connect(&url).await {
                Ok(page) => return Ok(Browser { page, driver, _profile: profile }),
                Err(e) if Instant::now() > deadline => return Err(format!("no browser: {e}").into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// What a script gives.
    pub async fn run(&self, script: &str) -> Result<Value, CmdError> {
        self.page.execute(script, vec![]).await
    }

    /// What an asynchronous function's body gives.
    pub async fn run_async(&self, body: &str) -> Result<Value, CmdError> {
        let script = format!(
            "const done = arguments[0]; (async () => {{ {body} }})().then(done, (e) => done(`failed: ${{e}}`))"
        );
        self.page.execute_async(&script, vec![]).await
    }

    /// Waits until the page's state is one of these; gives it.
    ///
    /// # Errors
    /// When it takes longer than several minutes, or an error is shown that nobody waits for.
    pub async fn state(&self, wanted: &[&str]) -> Outcome<String> {
        let deadline = Instant::now() + Duration::from_secs(400);
        loop {
            let seen =
                self.run("return [document.getElementById('status').dataset.state, document.body.innerText]").await?;
            let state = seen[0].as_str().unwrap_or_default().to_owned();
            if wanted.contains(&state.as_str()) {
                return Ok(state);
            }
            if state == "error" || Instant::now() > deadline {
                return Err(format!("waited for {wanted:?}, the page is in `{state}` and shows: {}", seen[1]).into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a script gives true.
    pub async fn until(&self, script: &str) -> Outcome {
        self.until_within(script, Duration::from_secs(400)).await
    }

    /// Waits no longer than this until a script gives true.
    pub async fn until_within(&self, script: &str, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        while self.run(script).await? != Value::Bool(true) {
            if Instant::now() > deadline {
                return Err(format!("never true: {script}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Hands files to an input.
    pub async fn choose(&self, id: &str, file: &Path) -> Outcome {
        self.page.find(Locator::Id(id)).await?.send_keys(&file.canonicalize()?.to_string_lossy()).await?;
        Ok(())
    }

    /// Sets a field of the form.
    pub async fn set(&self, id: &str, value: &str) -> Outcome {
        let script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; \
                      e.dispatchEvent(new Event('input', { bubbles: true })); e.dispatchEvent(new Event('change', { bubbles: true }));";
        self.page.execute(script, vec![json!(id), json!(value)]).await?;
        Ok(())
    }

    /// Presses a button.
    pub async fn press(&self, id: &str) -> Outcome {
        self.page.find(Locator::Id(id)).await?.click().await?;
        Ok(())
    }

    /// The last image's file.
    pub async fn png(&self) -> Outcome<Vec<u8>> {
        let bytes = self
            .run_async("return [...new Uint8Array(await window.pulidPage.lastResult.images[0].arrayBuffer())]")
            .await?;
        Ok(serde_json::from_value(bytes)?)
    }

    /// The process from which all of the browser's descend.
    pub fn driver(&self) -> u32 {
        self.driver.id()
    }

    /// Ends browser and driver.
    pub async fn end(mut self) -> Outcome {
        let closed = self.page.clone().close().await;
        self.driver.kill()?;
        self.driver.wait()?;
        Ok(closed?)
    }
}

impl Drop for Browser {
    /// After a failed test too nothing may go on running.
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// A portrait of the examples.
pub fn portrait(name: &str) -> PathBuf {
    root().join("examples/faces").join(name)
}

/// The person of a portrait, read natively.
pub fn native_identity(portrait: &Path) -> Outcome<Identity> {
    let models = root().join("models/mini");
    let photo = (portrait.file_name().unwrap_or_default().to_string_lossy().into_owned(), std::fs::read(portrait)?);
    Ok(pollster::block_on(async {
        let runtime = Runtime::open("auto", DeviceOptions::default()).await?;
        let adapter = models.join("pulid_v1.1.safetensors");
        extract(&runtime, &FaceModels::open(&models)?, &adapter, &[photo], &ExtractOptions::default(), &Silent).await
    })?)
}

/// The image that the command line would make with the mini models' own settings.
pub fn native_image(identity: &Identity, prompt: &str, steps: usize, seed: u64) -> Outcome<RgbImage> {
    let models = root().join("models/mini");
    let own = Choices { steps: Some(steps), seed: Some(seed), ..Choices::default() };
    native(SdxlModel::open(models.join("sdxl"))?, own, prompt, Some((identity, models.join("pulid_v1.1.safetensors"))))
}

/// The image that the command line would make, with an identity and its adapter or without.
pub fn native(
    model: SdxlModel,
    own: Choices,
    prompt: &str,
    identity: Option<(&Identity, PathBuf)>,
) -> Outcome<RgbImage> {
    let settings = Settings::merge(own, None, ModelDefaults::read(model.folder())?.choices)?;
    let identity = identity.map(|(identity, adapter)| IdentityUse {
        tokens: identity.tokens.clone(),
        adapter,
        settings: settings.identity(),
        window: StepWindow::ALL,
    });
    let options = GenerateOptions { identity, ..settings.options(prompt) };
    let made = pollster::block_on(async {
        let runtime = Runtime::open("auto", DeviceOptions::default()).await?;
        Pipeline::open(runtime, model, Storage::default())?.generate(&options, &Silent).await
    })?;
    Ok(made.images.into_iter().next().ok_or("no image")?)
}

/// The largest difference of any channel of any pixel.
pub fn largest_difference(png: &[u8], native: &RgbImage) -> Outcome<u8> {
    let web = image::load_from_memory(png)?.into_rgb8();
    if web.dimensions() != native.dimensions() {
        return Err(format!("{:?} against {:?} pixels", web.dimensions(), native.dimensions()).into());
    }
    Ok(web.as_raw().iter().zip(native.as_raw()).map(|(&a, &b)| a.abs_diff(b)).max().unwrap_or(0))
}
