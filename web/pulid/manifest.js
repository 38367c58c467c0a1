// Which files a model has: what its `manifest.json` says, or, without one, which of the usual names its server has.

import { fail, networkError } from './errors.js';

/** Names of a diffusers SDXL folder besides the weights. `?` marks what a model works without. */
const SDXL = [
  'model_index.json', 'scheduler/scheduler_config.json',
  ...['tokenizer', 'tokenizer_2'].flatMap((t) => [
    `${t}/vocab.json`, `${t}/merges.txt`, `${t}/special_tokens_map.json?`, `${t}/tokenizer_config.json?`]),
  'text_encoder/config.json', 'text_encoder_2/config.json', 'unet/config.json', 'vae/config.json',
  'generation_defaults.json?',
];
/** Its weights. */
const WEIGHTS = ['text_encoder/model', 'text_encoder_2/model', 'unet/diffusion_pytorch_model', 'vae/diffusion_pytorch_model'];
/** The face networks; of each line the first that is there is taken. */
const FACES = [
  ['antelopev2/scrfd_10g_bnkps.onnx', 'scrfd_10g_bnkps.onnx'],
  ['antelopev2/glintr100.onnx', 'glintr100.onnx'],
  ['parsing_bisenet.safetensors', 'parsing_bisenet.pth'],
  ['eva_clip.safetensors', 'EVA02_CLIP_L_336_psz14_s6B.safetensors', 'EVA02_CLIP_L_336_psz14_s6B.pt'],
  ['eva_clip.json', '?'],
  ['detection_Resnet50_Final.safetensors', 'detection_Resnet50_Final.pth', '?'],
];

/**
 * The model's files, `[{ path, url, bytes, sha256 }]`; `bytes` and `sha256` are null where nobody says. `kept` is the record of an
 * earlier visit: it stands in where the server cannot be reached, and spares asking where there is no manifest.
 */
export async function plan(model, kept, signal) {
  const earlier = kept?.url === model.url ? kept.manifest : null;
  if (model.kind === 'file') {
    const path = fileName(model.url);
    return earlier ?? [await asked(model, path, signal) ?? missing(model, path)];
  }
  let response;
  try {
    response = await fetch(new URL('manifest.json', model.url), { signal, cache: 'no-cache' });
  } catch (error) {
    signal.throwIfAborted();
    if (earlier) return earlier;
    throw networkError(model.url, error);
  }
  if (response.ok && !isPage(response)) return read(model, await response.text());
  if (earlier) return earlier;
  if (response.status >= 500) {
    throw fail('OfflineError', `${new URL(model.url).host} answered ${response.status}. It may be overloaded; try again later.`);
  }
  if (model.kind === 'faces') return faces(model, signal);
  if (model.kind === 'sdxl') return sdxl(model, signal);
  throw fail('ModelError', `There is no manifest.json at ${model.url} (the server answered ${response.status}).`);
}

/** The last name of a URL's path. */
export function fileName(url) {
  return decodeURIComponent(new URL(url).pathname.split('/').pop());
}

function read(model, text) {
  const wrong = (what) => fail('ModelError', `${model.url}manifest.json is not a manifest: ${what}.`);
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw wrong(error.message);
  }
  if (!Array.isArray(manifest?.files) || manifest.files.length === 0) throw wrong('it lists no files');
  return manifest.files.map(({ path, bytes, sha256 }) => {
    const fine = typeof path === 'string' && path.split('/').every((n) => n && n !== '.' && n !== '..' && !n.includes('\\'));
    if (!fine) throw wrong(`${JSON.stringify(path)} is not a path`);
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw wrong(`${path} has no length`);
    if (!/^[0-9a-f]{64}$/i.test(sha256 ?? '')) throw wrong(`${path} has no SHA-256`);
    return { path, url: address(model, path), bytes, sha256: sha256.toLowerCase() };
  });
}

function address(model, path) {
  return model.kind === 'file' ? model.url : new URL(path.split('/').map(encodeURIComponent).join('/'), model.url).href;
}

/** Servers of single-page applications answer with their page instead of "not found". */
function isPage(response) {
  return (response.headers.get('content-type') ?? '').startsWith('text/html');
}

/** The file if the server has it, else null. */
async function asked(model, path, signal) {
  const url = address(model, path);
  let response;
  try {
    response = await fetch(url, { method: 'HEAD', signal, cache: 'no-cache' });
  } catch (error) {
    signal.throwIfAborted();
    throw networkError(url, error);
  }
  if (!response.ok || isPage(response)) return null;
  // The length of texts may be that of their compressed form; they are short and taken as they come.
  const length = /\.(json|txt)$/.test(path) ? NaN : Number(response.headers.get('content-length') || NaN);
  return { path, url, bytes: Number.isSafeInteger(length) ? length : null, sha256: null };
}

function missing(model, path) {
  const folder = model.kind === 'faces' ? 'a folder of face networks' : 'a diffusers SDXL folder';
  throw fail('ModelError', model.kind === 'file'
    ? `There is no file at ${model.url}.`
    : `${model.url} has no ${path}, so it is not ${folder}. Give the address of the folder itself, as a web server shows it.`);
}

/** The first of these names that the server has; '?' at the end says that none may be there. */
async function first(model, names, signal) {
  for (const name of names) {
    if (name === '?') return null;
    const file = await asked(model, name, signal);
    if (file) return file;
  }
  return missing(model, names[0]);
}

async function faces(model, signal) {
  const files = await Promise.all(FACES.map((names) => first(model, names, signal)));
  return files.filter(Boolean);
}

async function sdxl(model, signal) {
  const configs = SDXL.map((name) => first(model, name.endsWith('?') ? [name.slice(0, -1), '?'] : [name], signal));
  const weights = WEIGHTS.map((stem) => shards(model, stem, signal));
  return (await Promise.all([...configs, ...weights])).flat().filter(Boolean);
}

/** A network's weights: in half precision if there are both (half the bytes), in one file or in several with an index. */
async function shards(model, stem, signal) {
  const one = await first(model, [`${stem}.fp16.safetensors`, `${stem}.safetensors`, '?'], signal);
  if (one) return [one];
  const path = `${stem}.safetensors.index.json`;
  const index = await first(model, [path, '?'], signal) ?? missing(model, `${stem}.safetensors`);
  const response = await fetch(index.url, { signal });
  const { weight_map: map } = await response.json().catch(() => ({}));
  if (!map) throw fail('ModelError', `${index.url} is not an index of weights.`);
  const folder = stem.slice(0, stem.lastIndexOf('/') + 1);
  const names = [...new Set(Object.values(map))];
  if (!names.every((n) => /^[\w.-]+$/.test(n))) throw fail('ModelError', `${index.url} names files outside of its folder.`);
  return [index, ...await Promise.all(names.map((n) => first(model, [folder + n], signal)))];
}
