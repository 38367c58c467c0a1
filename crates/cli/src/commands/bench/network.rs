//! One call of a model's UNet: its plan's sizes, its time, and where that goes.

use super::super::profile::{Share, say_shares, shares};
use super::{Args, median};
use pulid::runtime::{Loaded, Runtime};
use pulid::settings::ModelDefaults;
use pulid_conformance::sizes;
use pulid_engine::Silent;
use pulid_models::Precision;
use pulid_models::pulid::IdentitySettings;
use pulid_models::sdxl::{SdxlModel, UnetSize};
use pulid_ops::Storage;
use pulid_tensor::{DType, Error, HostTensor, Result};
use std::path::Path;
use std::time::Instant;

/// CLIP's text length.
const TEXT_TOKENS: usize = 77;
/// Tokens of a PuLID v1.1 identity.
const ID_TOKENS: usize = 32;

/// Figures of one call: of the UNet, the two guidance passes as a batch of two, or of the VAE's decoder.
#[derive(serde::Serialize)]
pub(super) struct Figures {
    network: String,
    batch: usize,
    dtype: &'static str,
    pixels: usize,
    /// Seconds from a graph to a session that can run: planning, measuring variants, weights, shaders.
    load_seconds: f64,
    /// The first call with the prologue, which later calls leave out; drivers compile shaders in it.
    first_call_milliseconds: f64,
    call_milliseconds: f64,
    call_gflops: f64,
    dispatches: usize,
    prologue_dispatches: usize,
    weight_bytes: usize,
    /// Bytes of everything but weights: the plan's peak.
    working_bytes: usize,
    /// Time by operator and variant: by the device's clock, or where it has none each operator waited for by itself.
    operators: Vec<Share>,
}

/// Measures the UNet of an SDXL model, or its VAE's decoder.
pub(super) async fn measure(runtime: &Runtime, model: &Path, args: &Args) -> Result<Figures> {
    let pixels = args.size.or(ModelDefaults::read(model)?.choices.width).unwrap_or(1024);
    if pixels == 0 || pixels % 8 != 0 || pixels > 4096 {
        return Err(Error::invalid("--size", format!("{pixels} is not a multiple of 8 up to 4096")));
    }
    let storage = args.dtype[0];
    let precision = precision(runtime, storage);
    let identity = args.identity.then(|| IdentitySettings::default().inputs(ID_TOKENS));
    let side = pixels / 8;
    let (model, batch) = (SdxlModel::open(model)?, if args.decoder { 1 } else { 2 });
    let graph = if args.decoder {
        // The VAE computes in f32, whatever its weights are.
        let precision = Precision { activations: DType::F32, ..precision };
        model.vae(precision)?.decoder(batch, side, side)?
    } else {
        model.unet(precision)?.graph(UnetSize {
            batch,
            height: side,
            width: side,
            text_tokens: TEXT_TOKENS,
            identity,
        })?
    };
    let start = Instant::now();
    let Loaded::Session(mut session) = runtime.load(&graph, &Silent).await? else {
        return Err(Error::invalid("--device", "the reference is no device to measure"));
    };
    let load_seconds = start.elapsed().as_secs_f64();
    if identity.is_some() {
        session.write("id_scale", &HostTensor::from_fn([2], |_| IdentitySettings::default().id_scale))?;
    }
    // Zeros are easier on hardware than what a network sees.
    let ports: Vec<_> = session.plan().inputs.iter().map(|p| (p.name.clone(), p.ty.clone())).collect();
    for (salt, (name, ty)) in ports.iter().enumerate() {
        if ["sample", "latent", "encoder_hidden_states", "text_embeds"].contains(&name.as_str()) {
            session.write(name, &sizes::noise(ty, salt as u64))?;
        }
    }
    let start = Instant::now();
    session.run(&Silent).await?;
    let first = start.elapsed().as_secs_f64();
    let mut seconds = Vec::with_capacity(args.repeats.max(1));
    for _ in 0..args.repeats.max(1) {
        let start = Instant::now();
        session.run(&Silent).await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let call = median(seconds);
    let operators = shares(&session.profile(args.repeats).await?);
    let summary = session.plan().summary();
    let figures = Figures {
        batch,
        dtype: storage.name(),
        network: session.plan().network.clone(),
        pixels,
        load_seconds,
        first_call_milliseconds: first * 1e3,
        call_milliseconds: call * 1e3,
        call_gflops: summary.step_flops as f64 / call / 1e9,
        dispatches: summary.step_dispatches,
        prologue_dispatches: summary.prologue_dispatches,
        weight_bytes: summary.weight_bytes,
        working_bytes: summary.working_bytes,
        operators,
    };
    if !args.json {
        print(&figures);
    }
    Ok(figures)
}

/// How the network's values and weights are stored.
fn precision(runtime: &Runtime, storage: Storage) -> Precision {
    let dtype = if storage.half_activations() { DType::F16 } else { DType::F32 };
    let weights = if storage == Storage::PackedWeights { Some(DType::F16) } else { storage.quantized() };
    runtime.precision(dtype, weights)
}

fn print(f: &Figures) {
    say!("{} in {} at {} x {} pixels, a batch of {}", f.network, f.dtype, f.pixels, f.pixels, f.batch);
    say!("{:>10.1} ms a call, {:.1} GFLOP/s", f.call_milliseconds, f.call_gflops);
    say!("{:>10.1} ms the first call, after {:.2} s of loading", f.first_call_milliseconds, f.load_seconds);
    say!("{:>10} dispatches a call, {} before the first", f.dispatches, f.prologue_dispatches);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    say!(
        "{:>10.1} MiB of weights, {:.1} MiB of everything else at its peak",
        mib(f.weight_bytes),
        mib(f.working_bytes)
    );
    say_shares(&f.operators);
}
