/**
 * pulid-wgpu in the browser: a photo of a face and a prompt in, a picture of that person out, on WebGPU. Photos, prompts and
 * pictures stay on the machine; the network is used for the weights alone, and only until they are kept.
 */

/** A photo: JPEG, PNG or WebP. A `File`'s name appears in messages. */
export type Photo = Blob | Uint8Array | ArrayBuffer;

/** Where models lie that are not the mini models. What is not given is the mini models' own. */
export interface Models {
  /**
   * The address of an SDXL folder in diffusers' layout (with a `manifest.json`, or with the usual names, which are asked for), or
   * of a single file with a whole SDXL.
   */
  sdxl?: string | URL;
  /** The address of a PuLID file, such as `.../pulid_v1.1.safetensors`. */
  adapter?: string | URL;
  /** The address of a folder with the face networks: detector, recogniser, parser and vision tower. */
  faces?: string | URL;
}

/** What every call takes. */
export interface CallOptions {
  /** Ends the call with an `AbortError`; also one that still waits for its turn. */
  signal?: AbortSignal;
  /** Hears what happens, as the instance's own events do. */
  onProgress?: (event: PulidEvent) => void;
}

export interface CreateOptions extends CallOptions {
  models?: Models;
  /** The folder in which `mini/` lies; `models/` beside the page if not given. */
  baseUrl?: string | URL;
  /** The address of `pulid_wasm_bg.wasm`; beside the package's scripts if not given. */
  wasmUrl?: string | URL;
  /** False keeps shaders from using 16-bit floats; the device decides if not given. */
  shaderF16?: boolean;
}

/** The device that the networks run on. */
export interface Device {
  name: string;
  driver: string;
  backend: string;
  kind: string;
  /** Whether shaders use 16-bit floats. */
  shaderF16: boolean;
  /** Bytes that one tensor can have without being cut into parts. */
  maxBindingBytes: number;
}

export type Sampler = 'dpmpp_2m' | 'dpmpp_sde' | 'euler';
export type Spacing = 'karras' | 'trailing';
export type Ortho = 'off' | 'v1' | 'v2';

/** Settings that a model has defaults for. */
export interface ModelSettings {
  /** Pixels, a multiple of 8. */
  width: number;
  /** Pixels, a multiple of 8. */
  height: number;
  /** Denoising steps. */
  steps: number;
  /** Classifier-free guidance; 1 is without. */
  guidance: number;
  /** The solver. */
  sampler: Sampler;
  /** Where on the noise schedule the steps lie. */
  spacing: Spacing;
  /** Strength of the identity; 0 is without. */
  idScale: number;
  /** Zero tokens that draw attention away from the identity: more follow the prompt more. */
  numZero: number;
  /** Projection of the identity features. */
  ortho: Ortho;
  /** What the picture does not show. */
  negativePrompt: string;
}

export interface GenerateOptions extends CallOptions, Partial<ModelSettings> {
  /** What the picture shows. */
  prompt: string;
  /** 1 to 4 photos of one person. Without these and without an identity the picture shows nobody in particular. */
  photos?: Photo | readonly Photo[];
  /** A person as `embed` returned it, or as `pulid embed` writes it. */
  identity?: Photo;
  /** The same seed gives the same picture, here and on the command line. */
  seed?: number;
  /** Pictures at once. */
  batch?: number;
  /** How weights and values are kept on the device. */
  dtype?: 'f32' | 'f16';
  /** Weights of the UNet in 8 or 4 bits: less memory, slightly (q8) or visibly (q4) another picture. */
  quantize?: 'none' | 'q8' | 'q4';
  /** Fraction of the steps at which the identity sets in. */
  idStart?: number;
  /** Fraction of the steps at which the identity ends. */
  idEnd?: number;
}

export interface Generated {
  /** PNG files; the parameters are in each. */
  images: Blob[];
  /** The parameters as text, as the files have them. */
  parameters: string;
  /** Bytes of weights that went to the device for these images: 0 where the networks were still there from the images before. */
  uploadedBytes: number;
  /** Kernels that were compiled for them. */
  compiledKernels: number;
}

export interface Face {
  /** Left, top, right and bottom, in the photo's pixels. */
  bbox: [number, number, number, number];
  /** How sure the detector is, up to 1. */
  score: number;
}

export interface Cropped {
  /** The part of the photo that counts, as PNG. */
  image: Blob;
  /** All faces of the photo; the largest counts. */
  faces: Face[];
}

/** What is being done now. */
export interface StageEvent { type: 'stage'; stage: string }
/** How far the stage is, in bytes or portions; `stage` is 'fetching weights' where it is the network. */
export interface AmountEvent { type: 'progress'; done: number; total: number; stage?: string }
/** Something worth knowing that is no error. */
export interface NoteEvent { type: 'note'; text: string }
/** A denoising step is done; they count from 1. */
export interface StepEvent { type: 'step'; step: number; steps: number }
/** The picture so far at the latents' resolution, an eighth of the picture's: show it scaled up. */
export interface PreviewEvent { type: 'preview'; width: number; height: number; rgba: Uint8Array }
export type PulidEvent = StageEvent | AmountEvent | NoteEvent | StepEvent | PreviewEvent;

/** The names of the errors that calls reject with; `message` is in plain English and says what to do. */
export type PulidErrorName =
  /** Cancelled. */
  | 'AbortError'
  /** A photo that cannot be read, or without a usable face. */
  | 'PhotoError'
  /** No WebGPU, a lost device, or not enough memory. */
  | 'DeviceError'
  /** A file of a model is missing, malformed, does not fit its hash, or is too large for the device. */
  | 'ModelError'
  /** A setting outside of its range. */
  | 'SettingsError'
  /** The networks' values ran out of their number format. */
  | 'NotFiniteError'
  /** Weights are missing and their server cannot be reached. */
  | 'OfflineError'
  /** Weights cannot be kept: no room, no permission, or another tab has them. */
  | 'StorageError'
  /** The engine could not be loaded, or stopped. */
  | 'EngineError';

/** The events of a `Pulid`, each a `CustomEvent`. */
export interface PulidEventMap {
  stage: CustomEvent<StageEvent>;
  progress: CustomEvent<AmountEvent>;
  note: CustomEvent<NoteEvent>;
  step: CustomEvent<StepEvent>;
  preview: CustomEvent<PreviewEvent>;
  /** The device or the engine is gone; every further call fails with this error. Create another instance. */
  lost: CustomEvent<Error>;
}

/**
 * An engine in a worker of its own: the calling thread is never kept busy. Calls made while one runs wait for their turn, in order.
 */
export class Pulid extends EventTarget {
  private constructor();

  /** Starts a worker, opens the device, and fetches the weights that are not kept yet. */
  static create(options?: CreateOptions): Promise<Pulid>;

  /** The device. */
  readonly device: Device;
  /** What the model takes for settings that are not given. */
  readonly defaults: Partial<ModelSettings>;

  /** Makes pictures. */
  generate(options: GenerateOptions): Promise<Generated>;
  /** Reads a person from 1 to 4 photos, to be kept or given to `generate`: a safetensors file, as `pulid embed` writes it. */
  embed(photos: Photo | readonly Photo[], options?: CallOptions): Promise<Blob>;
  /** The faces of a photo, and the part of it that counts. */
  crop(photo: Photo, options?: CallOptions): Promise<Cropped>;
  /** Closes the files of a kept model; the next call that needs them opens or fetches them again. */
  release(name: string): Promise<void>;
  /** Ends what runs (with an `AbortError`), the worker and the device. */
  close(): Promise<void>;

  addEventListener<K extends keyof PulidEventMap>(
    type: K, listener: (event: PulidEventMap[K]) => void, options?: boolean | AddEventListenerOptions): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof PulidEventMap>(
    type: K, listener: (event: PulidEventMap[K]) => void, options?: boolean | EventListenerOptions): void;
  removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
}

/** A model that is kept in this browser. */
export interface KeptModel {
  name: string;
  /** Where it came from. */
  url: string;
  /** On the disk, parts included. */
  bytes: number;
  /** False where a part is still missing; the next `create` goes on with it. */
  complete: boolean;
}

/** What is kept in this browser for this site. */
export const PulidStore: {
  list(): Promise<KeptModel[]>;
  /** Deletes a model; instances of this page close its files first and fetch it again when they need it. */
  delete(name: string): Promise<void>;
  /** Bytes that this site keeps in all, and how many the browser allows. */
  usage(): Promise<{ usage: number; quota: number }>;
};
