// What went wrong, in words, with what to try and a button that does it.

const element = (id) => document.getElementById(id);

/**
 * What to say of an error and which ways on there are. `ways` are the page's functions: again, anew, photo, smaller, ownSize, f32, settings,
 * kept, mini.
 */
function advice(error, ways) {
  const { name, message } = error;
  const again = ['Try again', ways.again];
  const anew = ['Start anew', ways.anew];
  switch (name) {
    case 'DeviceError':
      if (/out of memory|memory (did|does) not|too large/i.test(message)) {
        return {
          tips: ['Use a smaller width and height under Advanced, or keep weights in 8 bits.', 'Close other tabs and programs that use the graphics device.'],
          actions: [['Use 8 bits and start anew', ways.smaller], anew],
        };
      }
      if (/\blost\b/i.test(message)) {
        return { tips: ['Drivers reset the device when it is busy for too long, or after sleep. Your photo and settings are still here.'], actions: [anew] };
      }
      return {
        tips: [
          'A page called chrome://gpu (or about:support in Firefox) says whether WebGPU works.',
          'On a machine without a usable device the command line program works on the processor alone.',
        ],
        actions: [again],
      };
    case 'OfflineError':
      return { tips: [], actions: [again, ...(ways.mini ? [['Back to the mini models', ways.mini]] : [])] };
    case 'PhotoError':
      return { tips: ['A photo works best with one large face, seen from the front and not covered.'], actions: [['Choose another photo', ways.photo]] };
    case 'SettingsError':
      return /width|height|multiple|size/i.test(message)
        ? { tips: ["Models of SDXL's kind make images whose sides are multiples of 8, and good ones near the size they were made for."], actions: [["Use the model's own size", ways.ownSize], ['Show the settings', ways.settings]] }
        : { tips: [], actions: [['Show the settings', ways.settings], ["Back to the model's own settings", ways.defaults]] };
    case 'NotFiniteError':
      return { tips: ['Half precision has too small a range for some models.'], actions: [['Use f32', ways.f32], again] };
    case 'ModelError':
      return {
        tips: [],
        actions: [again, ['Look at the kept weights', ways.kept], ...(ways.mini ? [['Back to the mini models', ways.mini]] : [])],
      };
    case 'StorageError':
      return { tips: [], actions: [again, ['Look at the kept weights', ways.kept]] };
    case 'EngineError':
      return { tips: ['Your photo and settings are still here.'], actions: [anew] };
    default:
      return { tips: [], actions: [again, anew] };
  }
}

/** Shows the error. */
export function show(error, ways) {
  const box = element('error');
  const { tips, actions } = advice(error, ways);
  box.dataset.name = error.name;
  element('error-text').textContent = error.message;
  element('error-tips').replaceChildren(...tips.map((t) => Object.assign(document.createElement('li'), { textContent: t })));
  element('error-actions').replaceChildren(...actions.map(([label, action]) => {
    const button = Object.assign(document.createElement('button'), { type: 'button', className: 'quiet', textContent: label });
    button.addEventListener('click', () => {
      hide();
      action();
    });
    return button;
  }));
  box.hidden = false;
  box.scrollIntoView({ block: 'nearest' });
}

/** Hides it. */
export function hide() {
  const box = element('error');
  box.hidden = true;
  delete box.dataset.name;
  element('error-text').textContent = '';
}
