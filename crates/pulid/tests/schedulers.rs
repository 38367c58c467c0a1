//! Schedulers as diffusers saves them, against diffusers: `tests/goldens/samplers/spacings.py` and `scheduler_defaults.py`.

use pulid::sampler::{NoiseSchedule, Sampler, SamplerKind, SamplerOptions, SchedulerConfig, StepNoise};
use serde_json::{Value, json};
use std::path::Path;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/samplers").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn near(ours: &[f64], theirs: &[f64], relative: f64, absolute: f64, name: &str) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= relative * b.abs() + absolute, "{name}[{i}]: {a} for {b}");
    }
}

/// The steps' noise of a stochastic solver whose steps are not compared.
struct Silence(usize);

impl StepNoise for Silence {
    fn between(&mut self, _: f64, _: f64) -> Vec<f64> {
        vec![0.0; self.0]
    }
}

#[test]
fn saved_schedulers_draw_what_diffusers_draws() {
    let golden = golden("spacings.json");
    let (a, b) = (golden["a"].as_f64().unwrap(), golden["b"].as_f64().unwrap());
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 130);
    for case in cases {
        let (saved, steps) = (case["config"].to_string(), case["steps"].as_u64().unwrap() as usize);
        let name = format!("{saved} {steps}");
        let config = SchedulerConfig::from_json(&saved).unwrap();
        let (schedule, found) = (NoiseSchedule::new(&config).unwrap(), config.suggestion());
        assert_eq!(found.why, "", "{name}");
        let choices = found.choices;
        let kind = choices.sampler.unwrap();
        let options = SamplerOptions {
            spacing: choices.spacing.unwrap(),
            final_sigma: choices.final_sigma.unwrap_or_default(),
            ..SamplerOptions::new(kind, steps)
        };
        let noise: Vec<f32> = match case["noise"].is_null() {
            true => vec![1.0],
            false => numbers(&case["noise"]).iter().map(|&x| x as f32).collect(),
        };
        let silence = Silence(noise.len());
        let mut sampler = Sampler::with_noise(&schedule, &options, noise.clone(), Box::new(silence)).unwrap();
        // diffusers' variance-preserving latents are these over sqrt(sigma^2 + 1) on the way.
        let preserving = matches!(kind, SamplerKind::DpmPp2M | SamplerKind::Ddim);
        let first = sampler.levels().sigmas[0];
        let scale = if preserving { (first * first + 1.0).sqrt() } else { 1.0 };
        near(
            &[f64::from(sampler.latents()[0]) / f64::from(noise[0]) / scale],
            &[case["start"].as_f64().unwrap()],
            1e-5,
            0.0,
            &name,
        );
        if let Some(sigmas) = case.get("sigmas") {
            // diffusers keeps sigmas in f32.
            near(&sampler.levels().sigmas, &numbers(sigmas), 2e-5, 0.0, &name);
        }
        let mut told = Vec::new();
        while let Some(request) = sampler.next_request() {
            told.push(request.timestep);
            let shift = b * (request.timestep / 100.0).cos();
            let prediction: Vec<f32> = request.x_in.iter().map(|&x| (a * f64::from(x) + shift) as f32).collect();
            sampler.advance(&prediction).unwrap();
        }
        // Times between timesteps come from logarithms in f32 there.
        near(&told, &numbers(&case["timesteps"]), 1e-6, 2e-3, &name);
        if let Some(latents) = case.get("latents") {
            let ours: Vec<f64> = sampler.latents().iter().map(|&x| f64::from(x)).collect();
            let theirs = numbers(latents);
            let largest = theirs.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            // f32 throughout there, which rounds to some 1e-7 of the first latents, and of each step's. Those of pure noise have
            // variance one, and are divided by nothing.
            let reach = if first > 5000.0 { 1.0 } else { first };
            near(&ours, &theirs, 0.0, 2e-6 * reach.max(10.0 * largest), &name);
        }
    }
}

#[test]
fn what_a_file_leaves_open_is_as_in_its_class() {
    let golden = golden("scheduler_defaults.json");
    let betas = golden["betas"].as_array().unwrap();
    assert!(betas.len() > 20);
    for case in betas {
        let class = case["class"].as_str().unwrap();
        let config = SchedulerConfig::from_json(&json!({"_class_name": class}).to_string()).unwrap();
        let sigmas: Vec<f64> = NoiseSchedule::new(&config).unwrap().sigmas().iter().copied().step_by(111).collect();
        near(&sigmas, &numbers(&case["sigmas"]), 2e-5, 0.0, class);
        let ours = serde_json::to_value(&config).unwrap();
        for key in ["timestep_spacing", "steps_offset"].into_iter().filter(|key| case.get(*key).is_some()) {
            assert_eq!(ours[key], case[key], "{class} {key}");
        }
    }
}

#[test]
fn every_other_scheduler_is_refused_by_name() {
    let golden = golden("scheduler_defaults.json");
    let others = golden["others"].as_array().unwrap();
    assert!(others.len() > 20);
    for class in others {
        let message = SchedulerConfig::from_json(&json!({"_class_name": class}).to_string()).unwrap_err().to_string();
        let class = class.as_str().unwrap();
        assert!(message.contains(&format!("{class}: is for networks trained on")), "{message}");
    }
}
