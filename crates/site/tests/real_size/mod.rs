//! SDXL at its real size in headless Chromium: `cargo xtask page-sdxl` makes its random weights in 4 bits, names their folder in
//! `PULID_PAGE_SDXL` and runs this. Without the folder it is ignored.

mod memory;

use crate::support::{Browser, Outcome, Server, largest_difference, native};
use crate::{LEVELS, ensure, in_a_runtime};
use memory::Watch;
use pulid::image::RgbImage;
use pulid::pipeline::SdxlModel;
use pulid::settings::Choices;
use std::path::Path;
use std::time::{Duration, Instant};

/// The environment variable that names the folder.
pub const FOLDER: &str = "PULID_PAGE_SDXL";
const PROMPT: &str = "a portrait of a person";
const SIDE: usize = 256;

/// What a tab may hold besides the GPU's buffers, which on SwiftShader are memory of the browser's GPU process.
const TAB: u64 = 400_000_000;

/// The model of the folder that [`FOLDER`] names.
pub fn sdxl() -> Outcome {
    real_size(Path::new(&std::env::var_os(FOLDER).ok_or("no folder is named")?))
}

/// One step without guidance is one call of the UNet, between the text encoders and the VAE's decoder.
fn real_size(folder: &Path) -> Outcome {
    let server = Server::with_model(folder)?;
    let mut png = Vec::new();
    in_a_runtime(async {
        let browser = Browser::start(true).await?;
        browser.page.goto(&format!("{}empty.html", server.address)).await?;
        let watch = Watch::start(browser.driver());
        let start = Instant::now();
        browser
            .run(&format!(
                "window.stages = []; window.ended = false; (async () => {{ \
                   const {{ Pulid }} = await import('./pulid/index.js'); \
                   const hear = (event) => {{ if (event.type === 'stage' && event.stage !== window.stages.at(-1)?.[0]) \
                     window.stages.push([event.stage, performance.now()]); }}; \
                   const pulid = await Pulid.create({{ models: {{ sdxl: new URL('model/', location) }}, onProgress: hear }}); \
                   window.opened = performance.now(); \
                   window.result = await pulid.generate({{ prompt: '{PROMPT}', width: {SIDE}, height: {SIDE}, steps: 1, guidance: 1, \
                     seed: 0, dtype: 'f32', onProgress: hear }}); \
                 }})().catch((e) => {{ window.failure = `${{e.name}}: ${{e.message}}`; }}).finally(() => {{ window.ended = true; }})"
            ))
            .await?;
        browser.until_within("return window.ended", Duration::from_secs(3000)).await?;
        println!("the page took {:.0} s, weights and all", start.elapsed().as_secs_f64());
        let peaks = watch.finish();
        let seen = browser
            .run("return [window.failure ?? null, window.stages, window.opened, window.result?.uploadedBytes]")
            .await?;
        println!("stages with the milliseconds at which they began: {}; opened at {}", seen[1], seen[2]);
        for (kind, peak) in &peaks {
            let [anonymous, shared, both] = [peak.anonymous, peak.shared, peak.both].map(|bytes| bytes as f64 / 1e6);
            println!("{kind}: at most {both:.0} MB ({anonymous:.0} of its own, {shared:.0} shared)");
        }
        ensure(seen[0].is_null(), format!("the page says: {}", seen[0]))?;
        let uploaded = seen[3].as_u64().unwrap_or(0);
        println!("{:.2} GB of weights went to the device", uploaded as f64 / 1e9);
        ensure(uploaded > 1_400_000_000, format!("only {uploaded} bytes of weights went to the device"))?;
        let tab = peaks.get("renderer").ok_or("the tab's process was not seen")?.both;
        ensure(tab < TAB, format!("the tab held {tab} bytes, allowed are {TAB}"))?;
        let bytes =
            browser.run_async("return [...new Uint8Array(await window.result.images[0].arrayBuffer())]").await?;
        png = serde_json::from_value(bytes)?;
        browser.end().await
    })?;
    let own = Choices { steps: Some(1), seed: Some(0), guidance: Some(1.0), ..Choices::default() };
    let own = Choices { width: Some(SIDE), height: Some(SIDE), ..own };
    let native = native(SdxlModel::open(folder)?, own, PROMPT, None)?;
    ensure(contrast(&native) > 8.0, "the native image is flat".into())?;
    let difference = largest_difference(&png, &native)?;
    println!(
        "largest difference from the native image: {difference} of 255; deviation of its values {:.1}",
        contrast(&native)
    );
    ensure(difference <= LEVELS, format!("{difference} of 255 from the native image, allowed are {LEVELS}"))
}

/// The standard deviation of all values.
fn contrast(image: &RgbImage) -> f64 {
    let values = image.as_raw();
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}
