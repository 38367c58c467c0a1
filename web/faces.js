// The person: photos that are dropped, picked, pasted or taken, samples, and identity files.

const element = (id) => document.getElementById(id);
const SAMPLES = ['ada', 'ben', 'cleo', 'dan', 'eva', 'finn', 'gia', 'hugo', 'jon', 'lars', 'nils', 'omar'];
const MOST = 4;

/**
 * Keeps the list of photos. `crop(file, signal)` gives the part that counts; `changed()` is called when the person is another;
 * `failed(error)` when a photo cannot be used.
 */
export function faces({ crop, changed, failed }) {
  /** `{ file, item, abort, asking }` for each photo. */
  let photos = [];
  let identity = null;
  const list = element('crops');

  function item(name, remove) {
    const li = document.createElement('li');
    li.append(Object.assign(document.createElement('div'), { className: 'waiting' }));
    li.append(Object.assign(document.createElement('span'), { textContent: name }));
    const button = Object.assign(document.createElement('button'), { type: 'button', className: 'remove', textContent: '×' });
    button.setAttribute('aria-label', `Remove ${name}`);
    button.addEventListener('click', remove);
    li.append(button);
    list.append(li);
    return li;
  }

  function drop(photo) {
    if (!photos.includes(photo)) return;
    photo.abort.abort();
    const image = photo.item.querySelector('img');
    if (image) URL.revokeObjectURL(image.src);
    photo.item.remove();
    photos = photos.filter((p) => p !== photo);
    changed();
  }

  function clear() {
    for (const photo of [...photos]) drop(photo);
    identity?.item.remove();
    identity = null;
  }

  async function show(photo) {
    if (photo.asking) return;
    photo.asking = true;
    try {
      const { image, faces: found } = await crop(photo.file, photo.abort.signal);
      if (!photos.includes(photo)) return;
      const img = Object.assign(document.createElement('img'), { src: URL.createObjectURL(image), alt: `Face used of ${photo.file.name}` });
      photo.item.querySelector('.waiting')?.replaceWith(img);
      if (found.length > 1) photo.item.querySelector('span').textContent = `one of ${found.length} faces`;
      changed();
    } catch (error) {
      if (error.name === 'PhotoError') drop(photo);
      // Any other failure is not the photo's: it stays, for when the engine works again.
      if (error.name !== 'AbortError') failed(error);
    } finally {
      photo.asking = false;
    }
  }

  async function add(files) {
    const pictures = [...files].filter((f) => f.type.startsWith('image/') || !f.type);
    if (pictures.length === 0) {
      if (files.length > 0) failed(Object.assign(new Error(`${files[0].name} is not an image. Choose a JPEG, PNG or WebP photo.`), { name: 'PhotoError' }));
      return;
    }
    identity?.item.remove();
    identity = null;
    const room = pictures.slice(0, MOST - photos.length);
    for (const file of room) {
      const photo = { file, abort: new AbortController() };
      photo.item = item(file.name || 'photo', () => drop(photo));
      photos.push(photo);
      changed();
      show(photo);
    }
    if (room.length < pictures.length) {
      failed(Object.assign(new Error(`At most ${MOST} photos of one person are used. Remove one to take another.`), { name: 'PhotoError' }));
    }
  }

  function loadIdentity(file) {
    clear();
    const li = item(file.name, () => {
      li.remove();
      identity = null;
      changed();
    });
    li.classList.add('saved');
    li.querySelector('.waiting').textContent = 'ID';
    identity = { file, item: li };
    changed();
  }

  element('photos').addEventListener('change', async ({ target }) => {
    await add(target.files);
    target.value = ''; // So that the same file can be chosen again.
  });
  element('load-identity').addEventListener('change', ({ target }) => {
    if (target.files[0]) loadIdentity(target.files[0]);
    target.value = '';
  });
  for (const name of SAMPLES) {
    const button = Object.assign(document.createElement('button'), { type: 'button' });
    button.dataset.name = name;
    button.title = name[0].toUpperCase() + name.slice(1);
    button.append(Object.assign(document.createElement('img'), { src: `faces/${name}.jpg`, alt: button.title, loading: 'lazy', width: 64, height: 64 }));
    button.addEventListener('click', async () => {
      try {
        const response = await fetch(`faces/${name}.jpg`);
        if (!response.ok) throw new Error(`the server answered ${response.status}`);
        const blob = await response.blob();
        clear();
        await add([new File([blob], `${name}.jpg`, { type: 'image/jpeg' })]);
      } catch (error) {
        failed(Object.assign(new Error(`The sample could not be fetched: ${error.message}.`), { name: 'OfflineError' }));
      }
    });
    element('samples').append(button);
  }

  const holdsFiles = (event) => event.dataTransfer?.types.includes('Files');
  addEventListener('dragover', (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    element('drop').classList.add('over');
  });
  addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) element('drop').classList.remove('over');
  });
  addEventListener('drop', (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    element('drop').classList.remove('over');
    const [file] = event.dataTransfer.files;
    if (file?.name.endsWith('.safetensors')) loadIdentity(file);
    else add(event.dataTransfer.files);
  });
  addEventListener('paste', (event) => {
    if (event.clipboardData?.files.length) {
      event.preventDefault();
      add(event.clipboardData.files);
    }
  });
  camera(add);

  return {
    photos: () => photos.map((p) => p.file),
    identity: () => identity?.file ?? null,
    loadIdentity,
    /** Asks for the crops that are not there: the engine is another one, or works again. */
    refresh() {
      for (const photo of photos) if (!photo.item.querySelector('img')) show(photo);
    },
  };
}

function camera(add) {
  const dialog = element('camera-dialog');
  const video = element('camera-video');
  let stream = null;
  if (!navigator.mediaDevices?.getUserMedia) {
    element('camera').hidden = true; // Pages that are not secure have no camera; phones still offer theirs in the file picker.
    return;
  }
  element('camera').addEventListener('click', async () => {
    element('camera-problem').textContent = '';
    element('camera-take').disabled = true;
    dialog.showModal();
    try {
      const got = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'user', width: { ideal: 1280 } } });
      if (!dialog.open) return got.getTracks().forEach((track) => track.stop());
      stream = got;
      video.srcObject = got;
      await video.play();
      element('camera-take').disabled = false;
    } catch (error) {
      element('camera-problem').textContent = error.name === 'NotAllowedError'
        ? 'The camera is not allowed for this page. Allow it in the address bar, or choose a photo instead.'
        : `There is no usable camera (${error.message}). Choose a photo instead.`;
    }
  });
  element('camera-take').addEventListener('click', () => {
    const canvas = Object.assign(document.createElement('canvas'), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext('2d').drawImage(video, 0, 0);
    canvas.toBlob((blob) => add([new File([blob], 'camera.jpg', { type: 'image/jpeg' })]), 'image/jpeg', 0.95);
    dialog.close();
  });
  element('camera-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.srcObject = null;
  });
}
