//! The library against the goldens in `tests/goldens/samplers` and `tests/goldens/face`, which their generators describe.

use pulid::face::{
    LabelMap, SCORE_THRESHOLD, Similarity, choose_face, decode_detections, estimate_lmeds, gray_on_white, warp,
};
use pulid::image::{Normalization, RgbImage, resize_bicubic, resize_bilinear, resize_lanczos4};
use pulid::random::TorchGenerator;
use pulid::sampler::{
    FinalSigma, NoiseSchedule, PredictionType, Sampler, SamplerKind, SamplerOptions, SchedulerConfig, Spacing,
    StepNoise,
};
use pulid_tensor::{HostTensor, deviation};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

fn json(folder: &Path, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name).with_extension("json")).unwrap()).unwrap()
}

/// The tensors beside a JSON file; unsigned bytes stay countable as floats.
struct Tensors(Vec<u8>);

impl Tensors {
    fn open(folder: &Path, name: &str) -> Self {
        Tensors(std::fs::read(folder.join(name).with_extension("safetensors")).unwrap())
    }

    fn get(&self, name: &str) -> HostTensor {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
            Dtype::I64 => view.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
            other => panic!("{name} is {other:?}"),
        };
        HostTensor::from_f32(view.shape(), values).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).to_f32_vec()
    }

    /// An image [H, W, 3] of unsigned bytes.
    fn picture(&self, name: &str) -> RgbImage {
        let tensor = self.get(name);
        let (height, width) = (tensor.shape()[0] as u32, tensor.shape()[1] as u32);
        let bytes = tensor.as_f32().unwrap().iter().map(|&v| v as u8).collect();
        RgbImage::from_raw(width, height, bytes).unwrap()
    }
}

fn cases(value: &Value) -> &[Value] {
    let cases = value["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    cases
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn points(value: &Value) -> Vec<[f64; 2]> {
    numbers(value).as_chunks().0.to_vec()
}

#[test]
fn noise_is_pytorch_s() {
    let folder = folder("samplers");
    let (golden, tensors) = (json(&folder, "randn"), Tensors::open(&folder, "randn"));
    for case in cases(&golden) {
        let mut generator = TorchGenerator::new(case["seed"].as_u64().unwrap());
        for name in case["tensors"].as_array().unwrap() {
            let expected = tensors.values(text(name));
            let drawn = generator.randn(expected.len());
            for (i, (a, b)) in drawn.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{name}[{i}]: {a} for {b}");
            }
        }
    }
}

#[test]
fn schedules_are_the_published_ones() {
    let golden = json(&folder("samplers"), "schedules");
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    for (spacing, key) in [(Spacing::Karras, "karras"), (Spacing::Trailing, "trailing")] {
        for case in golden[key].as_array().unwrap() {
            let levels =
                schedule.levels(SamplerKind::DpmPp2M, spacing, case["steps"].as_u64().unwrap() as usize).unwrap();
            assert_eq!(levels.timesteps, numbers(&case["timesteps"]), "{spacing}");
            for (a, b) in levels.sigmas.iter().zip(numbers(&case["sigmas"])) {
                // The Karras reference squares its betas in f64, diffusers in f32: up to 1e-4 apart at the lowest levels.
                assert!((a - b).abs() <= 1e-4 * b, "{spacing}: {a} for {b}");
            }
        }
    }
}

/// Recorded step noise, in the order in which it was used.
struct Recorded(std::vec::IntoIter<Vec<f64>>);

impl StepNoise for Recorded {
    fn between(&mut self, _: f64, _: f64) -> Vec<f64> {
        self.0.next().unwrap()
    }
}

#[test]
fn trajectories_are_those_of_the_references() {
    let folder = folder("samplers");
    let (golden, tensors) = (json(&folder, "trajectories"), Tensors::open(&folder, "trajectories"));
    let (a, b) = (golden["a"].as_f64().unwrap(), golden["b"].as_f64().unwrap());
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    let mut ran = 0;
    for case in cases(&golden) {
        let kind: SamplerKind = text(&case["sampler"]).parse().unwrap();
        let spacing: Spacing = text(&case["spacing"]).parse().unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let sigma = numbers(&case["sigmas"])[0];
        let states = tensors.get(text(&case["states"]));
        let states: Vec<&[f32]> = states.as_f32().unwrap().chunks_exact(states.shape().count() / (steps + 1)).collect();
        let preserving = case["space"] == "variance preserving";
        // Latents here are unscaled; the sampler multiplies the noise given to it by one of two factors.
        let start = match (preserving, kind, spacing) {
            (true, ..) => 1.0,
            (false, SamplerKind::DpmPp2M, Spacing::Trailing) => 1.0 / (sigma * sigma + 1.0).sqrt(),
            _ => 1.0 / sigma,
        };
        let noise: Vec<f32> = states[0].iter().map(|&x| (f64::from(x) * start) as f32).collect();
        let final_sigma = case["final_sigma"].as_str().map_or(FinalSigma::Zero, |text| text.parse().unwrap());
        let options = SamplerOptions { spacing, final_sigma, ..SamplerOptions::new(kind, steps) };
        let step_noise: Vec<Vec<f64>> = match case["noise"].as_str() {
            Some(name) => {
                let all = tensors.values(name);
                all.chunks_exact(noise.len()).map(|n| n.iter().map(|&x| f64::from(x)).collect()).collect()
            }
            None => Vec::new(),
        };
        let recorded = Box::new(Recorded(step_noise.into_iter()));
        let mut sampler = Sampler::with_noise(&schedule, &options, noise, recorded).unwrap();
        while let Some(request) = sampler.next_request() {
            let constant = b * request.sigma.sin();
            let epsilon: Vec<f32> = request.x_in.iter().map(|&x| (a * f64::from(x) + constant) as f32).collect();
            sampler.advance(&epsilon).unwrap();
            let done = sampler.next_request().map_or(steps, |next| next.step);
            if done == request.step {
                continue;
            }
            let next = sampler.levels().sigmas[done];
            // The finished latents have diffusers' own scale, whatever noise is left in them.
            let scale = if preserving && done < steps { 1.0 / (next * next + 1.0).sqrt() } else { 1.0 };
            let ours: Vec<f32> = sampler.latents().iter().map(|&x| (f64::from(x) * scale) as f32).collect();
            let error = deviation(&ours, states[done]);
            // The two schedules differ by up to 1e-4, see above.
            assert!(error < 2e-4, "{} after step {done}: {error:.1e}", case["name"]);
        }
        ran += 1;
    }
    assert!(ran >= 12, "{ran}");
}

fn matrix(value: &Value) -> [[f64; 3]; 2] {
    let m = numbers(value);
    [[m[0], m[1], m[2]], [m[3], m[4], m[5]]]
}

fn assert_same_mapping(found: &Similarity, value: &Value, landmarks: &[[f64; 2]], tolerance: f64, name: &Value) {
    let [[a, b, c], [d, e, f]] = matrix(value);
    for &[x, y] in landmarks {
        let [u, v] = found.apply([x, y]);
        let (p, q) = (a * x + b * y + c, d * x + e * y + f);
        assert!((u - p).abs() < tolerance && (v - q).abs() < tolerance, "{name}: ({u}, {v}) for ({p}, {q})");
    }
}

#[test]
fn alignment_is_scikit_image_s_and_opencv_s() {
    let folder = folder("face");
    let golden = json(&folder, "similarity");
    for case in cases(&golden) {
        let landmarks = points(&case["landmarks"]);
        let found = Similarity::least_squares(&landmarks, &points(&golden["template"])).unwrap();
        assert_same_mapping(&found, &case["matrix"], &landmarks, 1e-8, &case["name"]);
    }
    let golden = json(&folder, "robust_similarity");
    for case in cases(&golden) {
        let landmarks = points(&case["landmarks"]);
        let size = case["size"].as_f64().unwrap();
        let narrow = |p: &[f64; 2], scale: f64| p.map(|v| (v * scale) as f32);
        let from: Vec<[f32; 2]> = landmarks.iter().map(|p| narrow(p, 1.0)).collect();
        let to: Vec<[f32; 2]> = points(&golden["template_512"]).iter().map(|p| narrow(p, size / 512.0)).collect();
        let found = estimate_lmeds(&from, &to).unwrap();
        // OpenCV's iterative refinement ends about 1e-3 pixel away from the least squares that it minimises.
        assert_same_mapping(&found, &case["matrix"], &landmarks, 5e-3, &case["name"]);
    }
}

#[test]
fn crops_lie_between_opencv_4_and_exact_interpolation() {
    let folder = folder("face");
    let (golden, tensors) = (json(&folder, "crops"), Tensors::open(&folder, "crops"));
    for case in cases(&golden) {
        let [[a, _, tx], [b, _, ty]] = matrix(&case["matrix"]);
        let size = case["size"].as_u64().unwrap() as u32;
        let border = numbers(&case["border"]);
        let border = [border[0] as u8, border[1] as u8, border[2] as u8];
        let image = tensors.picture(text(&case["image"]));
        let warped = warp(&image, &Similarity { a, b, tx, ty }, size, size, border).unwrap();
        let exact = tensors.values(text(&case["exact"]));
        let each: Vec<f32> = warped.iter().zip(&exact).map(|(&x, e)| (f32::from(x) - e).abs()).collect();
        let mean = each.iter().sum::<f32>() / each.len() as f32;
        let worst = each.iter().copied().fold(0.0, f32::max);
        // Rounding positions to 1/32 pixel moves them by 1/64 at most; the border's edge is 150 high in these images.
        assert!(mean < 0.5 && worst < 5.0, "{}: mean {mean}, worst {worst}", case["name"]);
    }
}

#[test]
fn resizing_is_pytorch_s_and_opencv_s() {
    let folder = folder("face");
    let (golden, tensors) = (json(&folder, "resize"), Tensors::open(&folder, "resize"));
    for case in cases(&golden) {
        let (from, to) = (text(&case["in"]), text(&case["out"]));
        let size = numbers(&case["size"]);
        let (height, width) = (size[0] as u32, size[1] as u32);
        match text(&case["kind"]) {
            "bicubic" => {
                let image = tensors.get(from).nchw_to_nhwc().unwrap();
                let resized = resize_bicubic(&image, height as usize, width as usize).unwrap();
                let ours = resized.nhwc_to_nchw().unwrap();
                assert!(deviation(ours.as_f32().unwrap(), &tensors.values(to)) < 3e-5, "{from}");
            }
            "bilinear" => {
                assert_eq!(resize_bilinear(&tensors.picture(from), width, height).unwrap(), tensors.picture(to))
            }
            "lanczos4" => {
                assert_eq!(resize_lanczos4(&tensors.picture(from), width, height).unwrap(), tensors.picture(to))
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn detections_are_scrfd_s() {
    let folder = folder("face");
    let (golden, tensors) = (json(&folder, "detections"), Tensors::open(&folder, "detections"));
    for case in cases(&golden) {
        let canvas = numbers(&case["canvas"]);
        let names = ["score", "box", "landmarks"].map(|kind| case["tensors"][kind].as_array().unwrap());
        let outputs: Vec<HostTensor> = names.into_iter().flatten().map(|name| tensors.get(text(name))).collect();
        let scale = case["scale"].as_f64().unwrap() as f32;
        let faces = decode_detections(&outputs, (canvas[1] as u32, canvas[0] as u32), scale, SCORE_THRESHOLD).unwrap();
        let expected = case["faces"].as_array().unwrap();
        assert_eq!(faces.len(), expected.len(), "{}", case["name"]);
        for (face, expected) in faces.iter().zip(expected) {
            let ours = face.bbox.iter().chain(face.landmarks.as_flattened()).chain([&face.score]);
            let theirs = [&expected["box"], &expected["landmarks"], &expected["score"]].map(numbers).concat();
            for (a, b) in ours.zip(theirs) {
                assert!((f64::from(*a) - b).abs() < 1e-3, "{}: {a} for {b}", case["name"]);
            }
        }
        match case["largest"].as_u64() {
            Some(index) => assert_eq!(choose_face("photo", &faces).unwrap(), &faces[index as usize]),
            None => assert!(choose_face("photo", &faces).is_err()),
        }
    }
}

#[test]
fn the_vision_tower_s_image_is_pulid_s() {
    let folder = folder("face");
    let tensors = Tensors::open(&folder, "features");
    let labels = LabelMap::from_logits(&tensors.get("logits").nchw_to_nhwc().unwrap()).unwrap();
    let ours: Vec<f32> = labels.labels().iter().map(|&l| f32::from(l)).collect();
    assert_eq!(ours, tensors.values("labels"));
    let crop = tensors.get("crop").nchw_to_nhwc().unwrap();
    let near = |tensor: &HostTensor, name: &str, tolerance: f64| {
        let error = deviation(tensor.nhwc_to_nchw().unwrap().as_f32().unwrap(), &tensors.values(name));
        assert!(error < tolerance, "{name}: {error:.1e}");
    };
    near(&Normalization::IMAGENET.apply(&crop).unwrap(), "parser_input", 1e-5);
    let features = tensors.get("features").nchw_to_nhwc().unwrap();
    let resized = resize_bicubic(&features, 21, 21).unwrap();
    near(&resized, "resized", 3e-5);
    near(&Normalization::OPENAI_CLIP.apply(&resized).unwrap(), "tower_input", 3e-5);

    // A photo's crop has 8 bits a channel, this one has not: compare after rounding, to half a step and a little.
    let bytes = crop.as_f32().unwrap().iter().map(|v| (v * 255.0).round() as u8).collect();
    let masked = gray_on_white(&RgbImage::from_raw(32, 32, bytes).unwrap(), &labels).unwrap();
    let worst = masked.as_f32().unwrap().iter().zip(features.as_f32().unwrap()).map(|(a, b)| (a - b).abs());
    assert!(worst.fold(0.0, f32::max) < 0.51 / 255.0);
}

/// Networks that predict velocity down to pure noise, at diffusers' last noise level of 4096; and the other schedules of betas.
#[test]
fn zero_terminal_snr_is_diffusers() {
    let golden = json(&folder("samplers"), "zero_snr");
    let (a, b) = (golden["a"].as_f64().unwrap(), golden["b"].as_f64().unwrap());
    let config = SchedulerConfig {
        prediction_type: PredictionType::VPrediction,
        rescale_betas_zero_snr: true,
        ..SchedulerConfig::default()
    };
    let schedule = NoiseSchedule::new(&config).unwrap();
    assert!((schedule.sigma_max() - 4096.0).abs() < 1e-3);
    for case in cases(&golden) {
        let kind: SamplerKind = text(&case["sampler"]).parse().unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let options = SamplerOptions { spacing: Spacing::Trailing, ..SamplerOptions::new(kind, steps) };
        let noise = numbers(&case["noise"]).iter().map(|&x| x as f32).collect();
        let mut sampler = Sampler::new(&schedule, &options, noise).unwrap();
        for (ours, theirs) in sampler.levels().sigmas.iter().zip(numbers(&case["sigmas"])) {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{kind} {steps}: {ours} for {theirs}");
        }
        let mut timesteps = Vec::new();
        while let Some(request) = sampler.next_request() {
            timesteps.push(request.timestep);
            let added = b * (request.timestep / 100.0).cos();
            let velocity: Vec<f32> = request.x_in.iter().map(|&x| (a * f64::from(x) + added) as f32).collect();
            sampler.advance(&velocity).unwrap();
        }
        assert_eq!(timesteps, numbers(&case["timesteps"]), "{kind} {steps}");
        for (ours, theirs) in sampler.into_latents().unwrap().iter().zip(numbers(&case["latents"])) {
            // diffusers takes a step of 4096 from latents of 4096 in f32, whose last bit is 2^-11 there.
            assert!((f64::from(*ours) - theirs).abs() < 6e-4, "{kind} {steps}: {ours} for {theirs}");
        }
    }
    for table in golden["tables"].as_array().unwrap() {
        let config = SchedulerConfig::from_json(&table["config"].to_string()).unwrap();
        let schedule = NoiseSchedule::new(&config).unwrap();
        for (ours, theirs) in schedule.sigmas().iter().step_by(111).zip(numbers(&table["sigmas"])) {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{}: {ours} for {theirs}", table["config"]);
        }
    }
    let cosine = SchedulerConfig::from_json(&golden["cosine"]["config"].to_string()).unwrap();
    let schedule = NoiseSchedule::new(&cosine).unwrap();
    for (ours, theirs) in schedule.sigmas().iter().step_by(111).zip(numbers(&golden["cosine"]["alphas_cumprod"])) {
        let product = 1.0 / (ours * ours + 1.0);
        assert!((product - theirs).abs() < 2e-6, "{product} for {theirs}");
    }
}

/// Every scheduler class that diffusers saves says the same of the noise; what it says of the steps is followed where it is built.
#[test]
fn schedulers_are_read_as_diffusers_saves_them() {
    let golden = json(&folder("samplers"), "saved_schedulers");
    let sampler = |kind, spacing| Some((Some(kind), Some(spacing)));
    let mut infinite = 0;
    for case in cases(&golden) {
        let (class, variant, saved) = (text(&case["class"]), text(&case["variant"]), text(&case["text"]));
        let name = format!("{class} {variant}");
        infinite += usize::from(saved.contains("Infinity"));
        if class.starts_with("EDM") || class.starts_with("FlowMatch") {
            let message = SchedulerConfig::from_json(saved).unwrap_err().to_string();
            assert!(message.contains(class) && message.contains("not supported"), "{message}");
            continue;
        }
        let config = SchedulerConfig::from_json(saved).unwrap_or_else(|error| panic!("{name}: {error}"));
        let trailing = variant == "trailing";
        let schedule = NoiseSchedule::new(&config).unwrap();
        let highest = if trailing { 4096.0 } else { 14.6146 };
        assert!((schedule.sigma_max() - highest).abs() < 1e-3, "{name}: {}", schedule.sigma_max());
        let prediction = if trailing { PredictionType::VPrediction } else { PredictionType::Epsilon };
        assert_eq!((config.prediction_type, config.rescale_betas_zero_snr), (prediction, trailing), "{name}");
        let expected = match (class, variant) {
            ("EulerDiscreteScheduler", "trailing") => sampler(SamplerKind::Euler, Spacing::Trailing),
            ("DPMSolverMultistepScheduler", "trailing") => sampler(SamplerKind::DpmPp2M, Spacing::Trailing),
            ("DPMSolverMultistepScheduler", "karras") => sampler(SamplerKind::DpmPp2M, Spacing::KarrasDiffusers),
            ("EulerDiscreteScheduler", "karras") => sampler(SamplerKind::Euler, Spacing::KarrasDiffusers),
            ("EulerDiscreteScheduler", "") => sampler(SamplerKind::Euler, Spacing::Leading),
            ("DPMSolverMultistepScheduler", "") => sampler(SamplerKind::DpmPp2M, Spacing::Leading),
            // It has no Karras levels.
            ("DDIMScheduler" | "DDIMParallelScheduler", "trailing") => sampler(SamplerKind::Ddim, Spacing::Trailing),
            ("DDIMScheduler" | "DDIMParallelScheduler", _) => sampler(SamplerKind::Ddim, Spacing::Leading),
            _ => None,
        };
        let found = config.suggestion();
        match expected {
            Some(expected) => assert_eq!((found.choices.sampler, found.choices.spacing), expected, "{name}"),
            None => {
                assert!(found.choices.sampler.is_none(), "{name}");
                assert!(found.why.contains(class) && found.why.contains("not built"), "{name}: {}", found.why);
            }
        }
    }
    assert!(infinite > 0);
}
