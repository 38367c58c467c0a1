//! The built page in headless Chromium: `cargo xtask test` builds it first. Without `target/web` these tests are ignored.

mod real_size;
mod support;

use libtest_mimic::{Arguments, Failed, Trial};
use pulid_ops::{Capabilities, DeviceKind};
use serde_json::json;
use std::io::Write;
use std::path::Path;
use support::{Browser, Outcome, Server, largest_difference, native_identity, native_image, portrait, site};

const PROMPT: &str = "an oil painting of a person, smiling, in a garden, soft light";

/// `generation_defaults.json` of the models on the page.
const STEPS: usize = 8;

/// Levels of 255 by which two devices' images may differ: one where a level lies between two, and one more.
const LEVELS: u8 = 2;

fn main() {
    let built = site().join("index.html").is_file();
    let trial = |name: &str, test: fn() -> Outcome| {
        let run = move || test().map_err(|e| Failed::from(e.to_string()));
        Trial::test(name, run).with_ignored_flag(!built)
    };
    let trials = vec![
        trial("the_first_load_is_small", first_load),
        trial("a_whole_visit", whole_visit),
        trial("the_kernels_page_runs_the_command_lines_checks", kernels),
        trial("the_page_of_times_prints_them", times),
        trial("without_webgpu_the_page_says_so", without_webgpu),
        trial("without_storage_weights_stay_in_memory", without_storage),
        trial("sdxl_of_four_bits_fits_a_tab", real_size::sdxl)
            .with_ignored_flag(!built || std::env::var_os(real_size::FOLDER).is_none()),
    ];
    // One browser at a time: each wants every core.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

/// Everything but weights, samples and the kernels' pages, as a server that compresses sends it.
fn first_load() -> Outcome {
    let mut total = 0;
    let mut folders = vec![site()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["models", "faces", "onnxruntime-web"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if !name.starts_with("conformance") && !name.starts_with("bench") {
                total += compressed(&path)?;
            }
        }
    }
    println!("first load: {:.2} MB compressed", total as f64 / 1e6);
    // Less than a quarter of the limit would mean that something is missing.
    match (1_000_000..4_000_000).contains(&total) {
        true => Ok(()),
        false => Err(format!("the first load takes {total} bytes compressed, allowed are 1 to 4 MB").into()),
    }
}

fn compressed(path: &Path) -> Outcome<usize> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&std::fs::read(path)?)?;
    Ok(encoder.finish()?.len())
}

fn in_a_runtime(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// One visit after another with one profile: what is kept matters.
fn whole_visit() -> Outcome {
    let ada = native_identity(&portrait("ada.jpg"))?;
    let server = Server::start()?;
    in_a_runtime(async {
        let browser = Browser::start(true).await?;
        browser.page.goto(&server.address).await?;
        browser.state(&["idle"]).await?;
        ensure(server.weights() > 10, format!("only {} requests for weights", server.weights()))?;

        generates_the_native_image(&browser, &native_image(&ada, PROMPT, STEPS, 0)?).await?;
        cancels(&browser).await?;
        refuses_bad_photos(&browser).await?;

        let fetched = server.weights();
        browser.page.refresh().await?;
        browser.state(&["idle"]).await?;
        ensure(server.weights() == fetched, format!("{} downloads after a reload", server.weights() - fetched))?;
        browser.until("return document.getElementById('kept').textContent.includes('MB')").await?;

        takes_a_saved_identity(&browser, &ada.to_bytes()?, &native_image(&ada, PROMPT, 3, 5)?).await?;
        browser.end().await
    })
}

/// A photo from a person's hand, through every network, with the model's own settings.
async fn generates_the_native_image(browser: &Browser, native: &pulid::image::RgbImage) -> Outcome {
    browser.choose("photos", &portrait("ada.jpg")).await?;
    browser.until("return Boolean(document.querySelector('#crops img'))").await?;
    let watch = "window.longest = 0; window.previews = 0; \
        new PerformanceObserver((l) => { for (const e of l.getEntries()) window.longest = Math.max(window.longest, e.duration); }) \
        .observe({ type: 'longtask' }); window.pulidPage.pulid.addEventListener('preview', () => { window.previews += 1; });";
    browser.run(watch).await?;
    browser.set("prompt", PROMPT).await?;
    let start = std::time::Instant::now();
    browser.press("generate").await?;
    browser.state(&["done"]).await?;
    let first = start.elapsed().as_secs_f64();
    let png = browser.png().await?;
    let seen = browser.run("return [window.longest, window.previews, window.pulidPage.lastResult.parameters]").await?;
    // A figure to look at, not to fail by: on two cores the browser's threads wait for the shaders'.
    println!("longest task of the page's thread while generating: {} ms", seen[0]);
    ensure(seen[1] == json!(STEPS), format!("{} previews for {STEPS} steps", seen[1]))?;
    let steps = format!("Steps: {STEPS}");
    let parameters = seen[2].as_str().unwrap_or_default();
    ensure(parameters.contains(&steps) && parameters.starts_with(PROMPT), format!("parameters: {parameters}"))?;
    let text = String::from_utf8_lossy(&png).into_owned();
    ensure(text.contains(&steps), "the file lacks its parameters".into())?;
    let difference = largest_difference(&png, native)?;
    println!("largest difference from the native image: {difference} of 255");
    ensure(difference <= LEVELS, format!("{difference} of 255 from the native image, allowed are {LEVELS}"))?;

    // The networks are still there for the next image.
    const COST: &str = "const { uploadedBytes, compiledKernels } = window.pulidPage.lastResult; return [uploadedBytes, compiledKernels]";
    let cost = browser.run(COST).await?;
    ensure(cost[0].as_f64() > Some(0.0) && cost[1].as_f64() > Some(0.0), format!("the first image cost {cost}"))?;
    let start = std::time::Instant::now();
    browser.press("generate").await?;
    browser.state(&["working"]).await?;
    browser.state(&["done"]).await?;
    println!("an image took {first:.1} s, the next {:.1} s", start.elapsed().as_secs_f64());
    let cost = browser.run(COST).await?;
    ensure(cost == json!([0, 0]), format!("the second image uploaded and compiled {cost}"))?;
    ensure(browser.png().await? == png, "the same settings gave another file".into())
}

async fn cancels(browser: &Browser) -> Outcome {
    browser.run("window.stepped = false; window.pulidPage.pulid.addEventListener('step', () => { window.stepped = true; });").await?;
    let before = browser.run("return document.getElementById('result').src").await?;
    browser.press("generate").await?;
    browser.until("return window.stepped").await?;
    browser.press("cancel").await?;
    browser.state(&["cancelled"]).await?;
    let after = browser.run("return document.getElementById('result').src").await?;
    ensure(before == after, "a cancelled image took the other's place".into())
}

async fn refuses_bad_photos(browser: &Browser) -> Outcome {
    let folder = tempfile::tempdir()?;
    let broken = folder.path().join("broken.jpg");
    std::fs::write(&broken, b"\xff\xd8\xff\xe0 this is no picture")?;
    let empty = folder.path().join("wall.png");
    image::RgbImage::from_pixel(200, 200, image::Rgb([90, 120, 60])).save(&empty)?;
    for (photo, words) in [(&broken, "broken.jpg"), (&empty, "face")] {
        browser.choose("photos", photo).await?;
        browser.until("return document.getElementById('error').dataset.name === 'PhotoError'").await?;
        let text = browser.run("return document.getElementById('error').innerText").await?;
        ensure(text.as_str().is_some_and(|t| t.contains(words)), format!("of {}: {text}", photo.display()))?;
        let crops = browser.run("return document.querySelectorAll('#crops img').length").await?;
        ensure(crops == json!(1), format!("{crops} photos are left, the first one should be"))?;
    }
    Ok(())
}

/// The file of `pulid embed`, which the page reads as the command line does.
async fn takes_a_saved_identity(browser: &Browser, file: &[u8], native: &pulid::image::RgbImage) -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("ada.safetensors");
    std::fs::write(&path, file)?;
    browser.choose("load-identity", &path).await?;
    browser.set("prompt", PROMPT).await?;
    browser.set("steps", "3").await?;
    browser.set("seed", "5").await?;
    browser.press("generate").await?;
    browser.state(&["done"]).await?;
    let difference = largest_difference(&browser.png().await?, native)?;
    ensure(difference <= LEVELS, format!("{difference} of 255 from the native image with the same identity"))?;
    // What the page saves is that file again: the photos' names and the adapter's hash too.
    let saved = browser
        .run_async(
            "const response = await fetch('faces/ada.jpg'); const photo = new File([await response.blob()], 'ada.jpg'); \
             return [...new Uint8Array(await (await window.pulidPage.pulid.embed([photo])).arrayBuffer())]",
        )
        .await?;
    let saved: Vec<u8> = serde_json::from_value(saved)?;
    let header =
        |bytes: &[u8]| bytes.get(8..8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1])).map(<[u8]>::to_vec);
    ensure(saved.len() == file.len() && header(&saved) == header(file), "the saved identity's header differs".into())
}

fn without_webgpu() -> Outcome {
    let server = Server::start()?;
    in_a_runtime(async {
        let browser = Browser::start(false).await?;
        browser.page.goto(&server.address).await?;
        browser.until("return document.getElementById('error').dataset.name === 'DeviceError'").await?;
        let text = browser.run("return document.getElementById('error').innerText").await?;
        ensure(text.as_str().is_some_and(|t| t.contains("WebGPU")), format!("the page says: {text}"))?;
        ensure(server.weights() == 0, "weights were fetched for nothing".into())?;
        browser.end().await
    })
}

/// Private windows and blocked site data: what the browser does not keep is in memory, and the page says so.
fn without_storage() -> Outcome {
    const CLOSED: &str =
        "navigator.storage.getDirectory = async () => { throw new DOMException('closed', 'SecurityError'); };";
    const TINY: &str = "navigator.storage.estimate = async () => ({ usage: 0, quota: 1000 });";
    for (script, words) in [(CLOSED, "does not let this page keep weights"), (TINY, "lets this site keep 1 kB")] {
        let server = Server::with_worker(script)?;
        in_a_runtime(async {
            let browser = Browser::start(true).await?;
            browser.page.goto(&server.address).await?;
            // The note may be over before anybody looks: what was said stays.
            browser
                .run(
                    "window.said = ''; new MutationObserver(() => { window.said += document.body.innerText; }) \
                     .observe(document.body, { subtree: true, childList: true, characterData: true });",
                )
                .await?;
            browser.state(&["idle"]).await?;
            let said = browser.run("return window.said").await?;
            let said = said.as_str().unwrap_or_default();
            ensure(said.contains(words) && said.contains("stay in memory"), format!("the page said: {said}"))?;
            browser.set("prompt", PROMPT).await?;
            browser.set("steps", "1").await?;
            browser.press("generate").await?;
            browser.state(&["done"]).await?;
            ensure(!browser.png().await?.is_empty(), "no image".into())?;
            // Nothing was kept, so that the next visit asks again.
            let fetched = server.weights();
            browser.page.refresh().await?;
            browser.state(&["idle"]).await?;
            ensure(server.weights() >= 2 * fetched, format!("{fetched} requests, then {}", server.weights()))?;
            browser.end().await
        })?;
    }
    Ok(())
}

/// One operator's checks by the ids of the command line, and the report in its form.
fn kernels() -> Outcome {
    let server = Server::start()?;
    let filter = "norm/layer_norm";
    let known = pulid_conformance::checks(&Capabilities::baseline(DeviceKind::Cpu))?;
    let known: Vec<String> = known.into_iter().map(|c| c.id).filter(|id| id.contains(filter)).collect();
    in_a_runtime(async {
        let browser = Browser::start(true).await?;
        browser.page.goto(&format!("{}conformance.html#{filter}", server.address)).await?;
        browser.state(&["done"]).await?;
        let report = browser.run("return window.report").await?;
        let summary = |key: &str| report["summary"][key].as_u64().unwrap_or(u64::MAX);
        ensure(summary("fail") == 0 && summary("pass") > 0, format!("{report}"))?;
        let ids: Vec<_> = report["checks"].as_array().into_iter().flatten().filter_map(|c| c["id"].as_str()).collect();
        ensure(known == ids, format!("ids differ: {known:?} against {ids:?}"))?;
        let links = browser.run("return document.querySelectorAll('a[download]:not([hidden])').length").await?;
        ensure(links == json!(2), "the report is not offered".into())?;
        browser.end().await
    })
}

/// The smallest kernel, ours alone unless the site holds ONNX Runtime Web; with `PULID_BENCH_PAGE=small` or `sdxl` all of these sizes, as
/// `cargo xtask bench-page` asks for. Times are printed and not judged.
fn times() -> Outcome {
    let server = Server::start()?;
    let sizes = std::env::var("PULID_BENCH_PAGE").ok();
    let (query, filter) = sizes.as_ref().map_or(("small", "matmul/m=64"), |sizes| (sizes.as_str(), "*"));
    in_a_runtime(async {
        let browser = Browser::start(true).await?;
        browser.page.goto(&format!("{}bench.html?sizes={query}#{filter}", server.address)).await?;
        let state = browser.state(&["done", "failed"]).await?;
        let seen = browser.run("return [window.report, document.body.innerText]").await?;
        ensure(state == "done", format!("the page shows: {}", seen[1]))?;
        let (report, shown) = (&seen[0], seen[1].as_str().unwrap_or_default());
        println!("{}", report["markdown"].as_str().unwrap_or_default());
        let rows = report["rows"].as_array().cloned().unwrap_or_default();
        ensure(!rows.is_empty() && (sizes.is_some() || rows.len() == 1), format!("{} rows", rows.len()))?;
        let both = site().join("onnxruntime-web").is_dir();
        ensure(both || shown.contains("cargo xtask bench-page"), format!("nothing said of what is missing: {shown}"))?;
        for row in &rows {
            let kernel = row["kernel"].as_str().unwrap_or_default();
            ensure(row["ours"].as_f64() > Some(0.0) && shown.contains(kernel), format!("no time: {row}"))?;
            // Both sum in f32, in orders of their own.
            let close = row["difference"].as_f64().is_some_and(|d| d < 1e-4) && row["ratio"].as_f64() > Some(0.0);
            ensure(!both || close, format!("not ONNX Runtime's result: {row}"))?;
        }
        browser.end().await
    })
}

fn ensure(holds: bool, otherwise: String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
