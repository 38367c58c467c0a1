//! pulid-wgpu for JavaScript: what `web/pulid/worker.js` runs in its worker. `web/pulid/index.d.ts` is the interface for people.
//!
//! Models are files that JavaScript has [`mount`](Engine::mount)ed under paths; nothing here fetches anything.

#![cfg(target_arch = "wasm32")]

mod bench;
mod conformance;
mod error;
mod events;
mod options;
mod storage;

pub use bench::Bench;
pub use conformance::Conformance;
use error::{Outcome, thrown};
use events::Listener;
use options::{Models, Named, Opening, Shown};
use pulid::identity::{ExtractOptions, FaceChoice, FaceModels, Identity, check_adapter, crop, extract};
use pulid::image::{ImageMetadata, encode_png};
use pulid::pipeline::{IdentityTokens, IdentityUse, Pipeline, SdxlModel, examine};
use pulid::runtime::{Reporter, Runtime};
use pulid::settings::{Choices, ModelDefaults, Settings};
use pulid_checkpoint::{MemorySource, files};
use pulid_engine::DeviceOptions;
use pulid_tensor::{Error, Result};
use serde::Serialize;
use sha2::Digest;
use std::cell::Cell;
use std::fmt::Write;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use storage::StoredFile;
use wasm_bindgen::prelude::*;
use web_sys::FileSystemSyncAccessHandle;

/// Where an identity's file is mounted while its tokens are read.
const IDENTITY: &str = "identity.safetensors";

/// Panics are faults of ours; the console should say where.
#[wasm_bindgen(start)]
fn start() {
    console_error_panic_hook::set_once();
}

/// A device and the files it works with.
#[wasm_bindgen]
pub struct Engine {
    runtime: Runtime,
    /// Set by [`Engine::cancel`], cleared when the next call begins.
    cancelled: Rc<Cell<bool>>,
}

#[wasm_bindgen]
impl Engine {
    /// Opens the browser's WebGPU device.
    ///
    /// # Errors
    /// `DeviceError` when there is none.
    pub async fn open(options: JsValue) -> Outcome<Engine> {
        let opening: Opening = options::read(options)?;
        let device = DeviceOptions { shader_f16: opening.shader_f16, ..DeviceOptions::default() };
        let runtime = Runtime::open("auto", device).await.map_err(thrown)?;
        Ok(Engine { runtime, cancelled: Rc::default() })
    }

    /// What the device is and can do.
    pub fn device(&self) -> Outcome<JsValue> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Described<'a> {
            name: &'a str,
            driver: &'a str,
            backend: &'a str,
            kind: pulid_engine::DeviceKind,
            shader_f16: bool,
            max_binding_bytes: f64,
        }
        let Runtime::Gpu { device, .. } = &self.runtime else {
            return Err(thrown(Error::Device("this build has none".into())));
        };
        let (summary, can) = (device.summary(), device.capabilities());
        options::write(&Described {
            name: &summary.name,
            driver: &summary.driver,
            backend: &summary.backend,
            kind: summary.kind,
            shader_f16: can.shader_f16,
            max_binding_bytes: can.max_binding_bytes as f64,
        })
    }

    /// Makes bytes, or a file of the origin's private file system or what reads like one, the model file at `path`.
    ///
    /// # Errors
    /// `ModelError` when `file` is neither.
    pub fn mount(&self, path: &str, file: JsValue) -> Outcome<()> {
        let source: Arc<dyn pulid_checkpoint::Source> = match file.dyn_into::<js_sys::Uint8Array>() {
            Ok(bytes) => Arc::new(MemorySource::new(path, bytes.to_vec())),
            Err(file) => match as_handle(file) {
                Some(handle) => Arc::new(StoredFile::new(path, handle).map_err(thrown)?),
                None => return Err(thrown(Error::file(path, "is mounted with neither bytes nor a file's handle"))),
            },
        };
        files::mount(path, source);
        Ok(())
    }

    /// Forgets the files at and below a path, and the networks that were made of files.
    pub fn unmount(&self, prefix: &str) {
        files::unmount(prefix);
        self.runtime.clear();
    }

    /// The settings that a model's images have where nobody says otherwise.
    ///
    /// # Errors
    /// `ModelError` for malformed defaults.
    pub fn defaults(&self, model: &str) -> Outcome<JsValue> {
        // Its networks may not be there yet.
        let defaults = match SdxlModel::open(model) {
            Ok(model) => ModelDefaults::of(&model),
            Err(_) => ModelDefaults::read(Path::new(model)),
        };
        let settings = defaults.and_then(|d| Settings::merge(Choices::default(), None, d.all()));
        options::described(&settings.map_err(thrown)?)
    }

    /// The part of a photo that the networks will look at, and every face in it.
    ///
    /// # Errors
    /// `PhotoError` for a photo that is broken or shows no usable face.
    pub async fn crop(&self, faces: String, photo: JsValue) -> Outcome<JsValue> {
        #[derive(Serialize)]
        struct Found {
            bbox: [f32; 4],
            score: f32,
        }
        #[derive(Serialize)]
        struct Cropped {
            png: serde_bytes::ByteBuf,
            faces: Vec<Found>,
        }
        let photo: Named = options::read(photo)?;
        self.cancelled.set(false);
        let listener = Listener::silent(self.cancelled.clone());
        let work = async {
            let models = FaceModels::open(faces)?;
            let (found, image) = crop(&self.runtime, &models, &photo.name, &photo.bytes, &listener).await?;
            let png = encode_png(&image, &ImageMetadata::default())?;
            let faces = found.iter().map(|f| Found { bbox: f.bbox, score: f.score }).collect();
            Ok(Cropped { png: png.into(), faces })
        };
        options::write(&work.await.map_err(thrown)?)
    }

    /// A person from 1 to 4 photos, as the bytes of the file that `pulid embed` writes.
    ///
    /// # Errors
    /// `PhotoError`, `ModelError`, `DeviceError` or `AbortError`.
    pub async fn embed(
        &self,
        models: JsValue,
        photos: JsValue,
        face: Option<String>,
        on: js_sys::Function,
    ) -> Outcome<js_sys::Uint8Array> {
        let models: Models = options::read(models)?;
        let photos: Vec<Named> = options::read(photos)?;
        let listener = self.listener(on);
        let identity = self.read_person(&models, photos, face, &listener).await.map_err(thrown)?;
        let bytes = identity.to_bytes().map_err(thrown)?;
        Ok(js_sys::Uint8Array::from(bytes.as_slice()))
    }

    /// Makes images; gives PNG files with their parameters.
    ///
    /// # Errors
    /// `SettingsError`, `PhotoError`, `ModelError`, `DeviceError`, `NotFiniteError` or `AbortError`.
    pub async fn generate(&self, models: JsValue, options: JsValue, on: js_sys::Function) -> Outcome<JsValue> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Made {
            images: Vec<serde_bytes::ByteBuf>,
            parameters: String,
            uploaded_bytes: f64,
            compiled_kernels: f64,
        }
        let models: Models = options::read(models)?;
        let (shown, own) = options::read_picture(options)?;
        let listener = self.listener(on);
        let before = self.runtime.device_memory();
        let work = async {
            let model = SdxlModel::open(&models.sdxl)?;
            examine(&model)?.iter().for_each(|note| listener.note(note));
            let defaults = ModelDefaults::of(&model)?;
            defaults.notes(&own, None).iter().for_each(|note| listener.note(note));
            let settings = Settings::merge(own, None, defaults.all())?;
            let window = settings.window()?;
            let mut options = settings.options(&shown.prompt);
            let pipeline = Pipeline::open(self.runtime.clone(), model, settings.storage())?;
            pipeline.check_memory(&options, &listener).await?;
            if let Some(tokens) = self.tokens(&models, shown, &listener).await? {
                let adapter = models.adapter.as_str().into();
                options.identity = Some(IdentityUse { tokens, adapter, settings: settings.identity(), window });
            }
            let made = pipeline.generate(&options, &listener).await?;
            let parameters = |index| options.parameters(pipeline.model().path(), index);
            let png = |(index, image)| {
                let metadata = ImageMetadata { parameters: Some(parameters(index)), generated: true };
                encode_png(image, &metadata).map(Into::into)
            };
            let images = made.images.iter().enumerate().map(png).collect::<Result<_>>()?;
            let parameters = parameters(0);
            let after = self.runtime.device_memory();
            let uploaded_bytes = (after.uploaded_bytes - before.uploaded_bytes) as f64;
            let compiled_kernels = (after.compiled_kernels - before.compiled_kernels) as f64;
            Ok(Made { images, parameters, uploaded_bytes, compiled_kernels })
        };
        options::write(&work.await.map_err(thrown)?)
    }

    /// Ends what runs as soon as it can, with an `AbortError`.
    pub fn cancel(&self) {
        self.cancelled.set(true);
    }
}

impl Engine {
    /// A listener for a call that begins now.
    fn listener(&self, on: js_sys::Function) -> Listener {
        self.cancelled.set(false);
        Listener::new(on, self.cancelled.clone())
    }

    async fn read_person(
        &self,
        models: &Models,
        photos: Vec<Named>,
        face: Option<String>,
        listener: &Listener,
    ) -> Result<Identity> {
        let photos: Vec<_> = photos.into_iter().map(|p| (p.name, p.bytes.into_vec())).collect();
        let faces = FaceModels::open(&models.faces)?;
        let adapter = Path::new(&models.adapter);
        let face = face.map_or(Ok(FaceChoice::Official), |face| face.parse())?;
        extract(&self.runtime, &faces, adapter, &photos, &ExtractOptions { face, ..Default::default() }, listener).await
    }

    /// The person's tokens, if the options name one.
    async fn tokens(&self, models: &Models, shown: Shown, listener: &Listener) -> Result<Option<IdentityTokens>> {
        match (shown.identity, shown.photos.is_empty()) {
            (Some(_), false) => {
                Err(Error::invalid("identity", "photos and a saved identity are both given; give one of them"))
            }
            (Some(bytes), true) => {
                files::mount(IDENTITY, Arc::new(MemorySource::new(IDENTITY, bytes.into_vec())));
                let tokens = Identity::load_tokens(IDENTITY).and_then(|tokens| {
                    let note = check_adapter(Path::new(IDENTITY), &tokens, Path::new(&models.adapter))?;
                    note.iter().for_each(|note| listener.note(note));
                    Ok(tokens)
                });
                files::unmount(IDENTITY);
                tokens.map(Some)
            }
            (None, false) => Ok(Some(self.read_person(models, shown.photos, shown.face, listener).await?.tokens)),
            (None, true) => Ok(None),
        }
    }
}

/// SHA-256 of bytes that come in portions, which the browser's own digest cannot do.
#[wasm_bindgen]
#[derive(Default)]
pub struct Sha256(sha2::Sha256);

#[wasm_bindgen]
impl Sha256 {
    /// Of nothing yet.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Sha256 {
        Sha256::default()
    }

    /// Takes the next portion.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest as 64 lower-case hexadecimal digits; begins anew.
    pub fn finish(&mut self) -> String {
        self.0.finalize_reset().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A handle of the origin's private file system, or an object that reads, tells its size and closes as one: files in JavaScript's
/// memory, which has more room than the wasm's.
fn as_handle(file: JsValue) -> Option<FileSystemSyncAccessHandle> {
    let has = |name: &str| js_sys::Reflect::get(&file, &name.into()).is_ok_and(|found| found.is_function());
    (file.is_object() && ["read", "getSize", "close"].iter().all(|name| has(name))).then(|| file.unchecked_into())
}
