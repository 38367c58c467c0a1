//! A pipeline that is held: what its images cost the second time, and what stays on the device.

use image::RgbImage;
use pulid::pipeline::{
    Conditioning, GenerateOptions, IdentityTokens, IdentityUse, LongPrompt, Pipeline, SdxlModel, Start, StartOptions,
    Storage,
};
use pulid::runtime::{Keep, Runtime};
use pulid::sampler::{SamplerKind, SamplerOptions, StepWindow};
use pulid_engine::{DeviceMemory, DeviceOptions, Silent};
use pulid_models::Precision;
use pulid_models::pulid::IdentitySettings;
use pulid_models::sdxl::UnetSize;
use pulid_tensor::{Error, HostTensor};
use std::path::{Path, PathBuf};

fn mini() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mini")
}

async fn runtime() -> Runtime {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Runtime::open(&selector, DeviceOptions::default()).await.unwrap()
}

async fn pipeline(runtime: Runtime) -> Pipeline {
    Pipeline::open(runtime, SdxlModel::open(mini().join("sdxl")).unwrap(), Storage::default()).unwrap()
}

fn options(id_scale: Option<f32>, window: StepWindow) -> GenerateOptions {
    let tokens = |seed: usize| HostTensor::from_fn([1, 8, 256], |i| (((i + seed) * 37 % 101) as f32 - 50.0) * 0.02);
    let identity = id_scale.map(|id_scale| IdentityUse {
        tokens: IdentityTokens { id_embedding: tokens(1), uncond_id_embedding: tokens(7) },
        adapter: mini().join("pulid_v1.1.safetensors"),
        settings: IdentitySettings { id_scale, ..IdentitySettings::default() },
        window,
    });
    GenerateOptions {
        prompt: "an oil painting of a person".into(),
        negative_prompt: Some(String::new()),
        long_prompt: LongPrompt::Chunks,
        width: 128,
        height: 128,
        batch: 1,
        batch_index: None,
        guidance: 3.0,
        seed: 4,
        sampler: SamplerOptions { seed: 4, ..SamplerOptions::new(SamplerKind::Euler, 4) },
        identity,
    }
}

async fn image(pipeline: &Pipeline, options: &GenerateOptions) -> RgbImage {
    pipeline.generate(options, &Silent).await.unwrap().images.remove(0)
}

fn memory(pipeline: &Pipeline) -> DeviceMemory {
    pipeline.runtime().device_memory()
}

#[test]
fn the_second_image_loads_and_compiles_nothing() {
    pollster::block_on(async {
        let pipeline = pipeline(runtime().await).await;
        let first = image(&pipeline, &options(Some(0.8), StepWindow::ALL)).await;
        let after = memory(&pipeline);
        assert!(after.uploaded_bytes > 0 && after.compiled_kernels > 0);
        let second = image(&pipeline, &options(Some(0.8), StepWindow::ALL)).await;
        assert!(first == second);
        assert_eq!(memory(&pipeline), after, "nothing is uploaded, compiled or allocated again");

        // Another strength, and another part of the steps, are other values of an input.
        let stronger = image(&pipeline, &options(Some(1.3), StepWindow::ALL)).await;
        assert!(stronger != first);
        let late = image(&pipeline, &options(Some(0.8), StepWindow::new(0.5, 1.0).unwrap())).await;
        assert!(late != first && late != stronger);
        assert_eq!(memory(&pipeline), after);

        // The image without identity takes the graph without it: its weights are there already.
        let without_identity = image(&pipeline, &options(None, StepWindow::ALL)).await;
        assert_eq!(memory(&pipeline).uploaded_bytes, after.uploaded_bytes);
        assert_eq!(memory(&pipeline).weight_bytes, after.weight_bytes);
        // Strength 0, and a part without steps, give it byte for byte, on either graph.
        assert!(image(&pipeline, &options(Some(0.0), StepWindow::ALL)).await == without_identity);
        assert!(image(&pipeline, &options(Some(0.8), StepWindow::new(1.0, 1.0).unwrap())).await == without_identity);
    });
}

#[test]
fn an_identity_for_a_part_of_the_steps_takes_one_copy_of_the_unet() {
    pollster::block_on(async {
        let held = |keep: Keep, options: GenerateOptions| async move {
            let pipeline = pipeline(runtime().await.keeping(keep)).await;
            image(&pipeline, &options).await;
            memory(&pipeline)
        };
        let whole = held(Keep::Fitting, options(Some(0.8), StepWindow::ALL)).await;
        let part = held(Keep::Fitting, options(Some(0.8), StepWindow::new(0.5, 1.0).unwrap())).await;
        assert_eq!(whole, part);
        assert_eq!(held(Keep::Nothing, options(Some(0.8), StepWindow::ALL)).await.held(), 0);
    });
}

#[test]
fn two_sizes_share_the_weights() {
    pollster::block_on(async {
        let pipeline = pipeline(runtime().await).await;
        image(&pipeline, &options(None, StepWindow::ALL)).await;
        let one = memory(&pipeline);
        image(&pipeline, &GenerateOptions { width: 96, ..options(None, StepWindow::ALL) }).await;
        let two = memory(&pipeline);
        assert_eq!((two.weight_bytes, two.uploaded_bytes), (one.weight_bytes, one.uploaded_bytes));
        assert!(two.working_bytes > one.working_bytes);
    });
}

#[test]
fn a_budget_lets_the_least_recently_used_go() {
    pollster::block_on(async {
        let free = pipeline(runtime().await).await;
        let expected = image(&free, &options(None, StepWindow::ALL)).await;
        let needed = memory(&free).held();
        // Room for the UNet, which is the largest, and not for all networks at once.
        let budget = needed * 8 / 10;
        let tight = pipeline(runtime().await.with_memory(Some(budget))).await;
        for _ in 0..2 {
            assert!(image(&tight, &options(None, StepWindow::ALL)).await == expected);
            assert!(memory(&tight).held() <= budget, "{} of {budget}", memory(&tight).held());
        }
        assert!(memory(&tight).held() > 0, "what fits stays");
        assert!(memory(&tight).uploaded_bytes > memory(&free).uploaded_bytes);
    });
}

#[test]
fn a_refused_image_leaves_the_next_one_as_it_is() {
    pollster::block_on(async {
        let pipeline = pipeline(runtime().await).await;
        let expected = image(&pipeline, &options(None, StepWindow::ALL)).await;
        // A binding of this size no device has here.
        let huge = GenerateOptions { width: 4096, height: 4096, batch: 64, ..options(None, StepWindow::ALL) };
        let error = pipeline.generate(&huge, &Silent).await.expect_err("no error");
        assert!(matches!(error, Error::Device(_) | Error::OutOfMemory(_)), "{error}");
        assert!(image(&pipeline, &options(None, StepWindow::ALL)).await == expected);
    });
}

#[test]
fn the_stages_together_are_generate() {
    pollster::block_on(async {
        let pipeline = pipeline(runtime().await).await;
        let options = options(Some(0.8), StepWindow::ALL);
        let expected = pipeline.generate(&options, &Silent).await.unwrap();
        let texts = pipeline.encode(&[&options.prompt, ""], &Silent).await.unwrap();
        assert_eq!(texts.iter().map(|t| t.chunks.len()).collect::<Vec<_>>(), [1, 1]);
        let conditioning = Conditioning {
            text: &texts[0],
            unconditional: Some((&texts[1], options.guidance)),
            identity: options.identity.as_ref(),
        };
        let start = |from: Option<(HostTensor, f64)>| -> Start {
            pipeline.start(StartOptions { from, ..StartOptions::from(&options) }).unwrap()
        };
        let latents = pipeline.denoise(start(None), &conditioning, &Silent).await.unwrap();
        assert_eq!(latents, expected.latents);
        assert!(pipeline.decode(&latents, &Silent).await.unwrap() == expected.images);

        // From an image's own latents: the fewer steps are taken on them, the closer the result stays.
        let distance = |a: &HostTensor| {
            let pairs = a.as_f32().unwrap().iter().zip(latents.as_f32().unwrap());
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let mut distances = Vec::new();
        for strength in [0.25, 0.75] {
            let from = start(Some((latents.clone(), strength)));
            distances.push(distance(&pipeline.denoise(from, &conditioning, &Silent).await.unwrap()));
        }
        assert!(distances[0] < distances[1] && distances[0] > 0.0, "{distances:?}");
        let other = HostTensor::zeros([1, 4, 3, 3]);
        assert!(pipeline.start(StartOptions { from: Some((other, 0.5)), ..StartOptions::from(&options) }).is_err());
    });
}

#[test]
fn both_passes_read_equally_many_chunks() {
    pollster::block_on(async {
        let pipeline = pipeline(runtime().await).await;
        let long = "a person in the garden ".repeat(20);
        let texts = pipeline.encode(&[&long, "sad"], &Silent).await.unwrap();
        assert_eq!(texts.iter().map(|t| t.chunks.len()).collect::<Vec<_>>(), [2, 2]);
        // The shorter one is filled with empty chunks, and its first one, with the pooled embedding, is what it is alone.
        let alone = pipeline.encode(&["sad", ""], &Silent).await.unwrap();
        assert_eq!(texts[1].chunks, [alone[0].chunks[0].clone(), alone[1].chunks[0].clone()]);
        assert_eq!(texts[1].pooled, alone[0].pooled);
        let one = GenerateOptions { prompt: long, ..options(None, StepWindow::ALL) };
        assert!(pipeline.graphs(&one).unwrap().iter().any(|graph| {
            graph.inputs().any(|(name, ty)| name == "encoder_hidden_states" && ty.shape[..2] == [2, 154])
        }));
        let start = pipeline.start(StartOptions::from(&one)).unwrap();
        let conditioning = Conditioning { text: &texts[0], unconditional: Some((&alone[1], 3.0)), identity: None };
        let message = pipeline.denoise(start, &conditioning, &Silent).await.unwrap_err().to_string();
        assert!(message.contains("has 2 chunks, and the negative prompt 1"), "{message}");
    });
}

/// The graph that takes an identity gives, at strength 0, what the graph without one gives.
#[test]
fn strength_zero_is_the_base_model_byte_for_byte() {
    pollster::block_on(async {
        let runtime = runtime().await;
        let unet = SdxlModel::open(mini().join("sdxl")).unwrap().unet(Precision::F32).unwrap();
        let identity = IdentitySettings::default().inputs(8);
        let size = UnetSize { batch: 2, height: 16, width: 16, text_tokens: 77, identity: None };
        let mut results = Vec::new();
        for (identity, strengths) in [(None, &[0.0][..]), (Some(identity), &[0.0, 0.8, 0.0])] {
            let graph = unet.graph(UnetSize { identity, ..size }).unwrap();
            let mut loaded = runtime.load(&graph, &Silent).await.unwrap();
            for (name, ty) in graph.inputs().filter(|(name, _)| *name != "id_scale") {
                let seed: usize = name.bytes().map(usize::from).sum();
                let value = |i: usize| (((i * 13 + seed) % 37) as f32 - 18.0) * 0.05;
                loaded.write(name, &HostTensor::from_fn(ty.shape.clone(), value)).unwrap();
            }
            for &strength in strengths {
                if identity.is_some() {
                    loaded.write("id_scale", &HostTensor::from_fn([2], |_| strength)).unwrap();
                }
                results.push(loaded.run(&Silent).await.unwrap().remove("sample").unwrap());
            }
        }
        let [base, off, on, off_again] = &results[..] else { panic!("four results") };
        assert!(base == off && base == off_again && base != on);
    });
}
