//! Runs on the mini models and the cache of `tests/goldens/training`, on the device under test.

use super::*;
use crate::options::{self, TrainOptions};
use pulid::pipeline::Storage;
use pulid::settings::Settings;
use pulid_engine::{DeviceOptions, Observer};
use pulid_models::pulid::IdentitySettings;
use pulid_tensor::DType;
use std::fs;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

async fn device() -> Runtime {
    let selector = std::env::var("PULID_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    Runtime::open(&selector, DeviceOptions::default()).await.unwrap()
}

fn settings(steps: u64) -> TrainOptions {
    TrainOptions {
        data: repository("tests/goldens/training/cache"),
        model: repository("models/mini/sdxl"),
        from: repository("models/mini/pulid_v1.1.safetensors"),
        faces: repository("models/mini"),
        steps,
        batch: 1,
        accumulate: 2,
        lr: 1e-3,
        warmup: 0,
        tensorboard: false,
        ..options::example()
    }
}

/// Destroys a device after a step.
struct Destroying<'a> {
    after: u64,
    device: Option<&'a Runtime>,
}

impl Observer for Destroying<'_> {}

impl Reporter for Destroying<'_> {}

impl Watcher for Destroying<'_> {
    fn trained(&self, progress: &Progress) {
        if progress.metrics.step == self.after
            && let Some(Runtime::Gpu { device, .. }) = self.device
        {
            device.destroy();
        }
    }
}

/// Trains on devices, of which one is lost after a step.
async fn train(
    folder: &Path,
    options: &TrainOptions,
    [first, second]: [&Runtime; 2],
    lost: Option<(&Runtime, u64)>,
    resumed: Option<Resumed>,
) -> std::result::Result<Finished, Stopped> {
    let storage = Storage { dtype: DType::F32, quantize: None };
    let pipeline = Pipeline::open(first.clone(), SdxlModel::open(&options.model).unwrap(), storage).unwrap();
    let faces = FaceModels::open(&options.faces).unwrap();
    let image = Settings::default().options("");
    let sampling =
        Sampling { options: image, settings: IdentitySettings::default(), prompts: Vec::new(), photos: Vec::new() };
    let others = [second.clone()];
    let run = Run { pipeline: &pipeline, others: &others, faces: &faces, options, folder: folder.to_owned(), sampling };
    if resumed.is_none() {
        RunFolder::create(folder, options).unwrap();
    }
    let watcher = Destroying { after: lost.map_or(0, |lost| lost.1), device: lost.map(|lost| lost.0) };
    run.train(resumed, &watcher).await
}

#[test]
fn a_lost_device_ends_the_run_with_a_checkpoint_and_its_name() {
    pollster::block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (whole, broken, first) = (folder.path().join("w"), folder.path().join("b"), folder.path().join("f"));
        let options = settings(3);
        train(&whole, &options, [&device().await, &device().await], None, None).await.unwrap();

        // A device that only helps takes nothing with it.
        let (own, other) = (device().await, device().await);
        let stopped = train(&broken, &options, [&own, &other], Some((&other, 2)), None).await.unwrap_err();
        let message = stopped.error.to_string();
        assert!(message.contains(&other.name()) && message.contains("lost"), "{message}");
        assert_eq!(stopped.kept, Some(2));
        let resumed = Resumed::newest(&broken).unwrap();
        train(&broken, &options, [&device().await, &device().await], None, resumed).await.unwrap();
        for name in ["adapter-3.safetensors", "state-3/optimizer.safetensors", "state-3/state.json"] {
            let bytes = |run: &Path| fs::read(run.join(name)).unwrap();
            assert!(bytes(&whole) == bytes(&broken), "{name} differs");
        }

        // With the one that holds what is trained, what came after the last checkpoint is lost, and no half of one is written.
        let (own, other) = (device().await, device().await);
        let options = TrainOptions { save_every: 1, ..options };
        let stopped = train(&first, &options, [&own, &other], Some((&own, 2)), None).await.unwrap_err();
        assert!(stopped.error.to_string().contains("lost"), "{}", stopped.error);
        assert_eq!((stopped.kept, crate::run::checkpoints(&first).unwrap()), (Some(1), vec![1]));
    });
}

#[test]
fn each_device_needs_a_micro_batch() {
    let message = crate::check_devices(3, &settings(1)).unwrap_err().to_string();
    assert!(message.starts_with("devices") && message.contains("`accumulate` 3"), "{message}");
    crate::check_devices(2, &settings(1)).unwrap();
}
