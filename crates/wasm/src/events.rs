//! Progress as JavaScript hears of it.

use pulid::image::RgbImage;
use pulid::runtime::Reporter;
use pulid_engine::Observer;
use serde::Serialize;
use std::cell::Cell;
use std::rc::Rc;
use wasm_bindgen::JsValue;

/// What a listener is called with.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Event<'a> {
    Stage { stage: &'a str },
    Progress { done: f64, total: f64 },
    Note { text: &'a str },
    Step { step: usize, steps: usize },
    Preview { width: u32, height: u32, rgba: serde_bytes::ByteBuf },
}

/// Tells a JavaScript function, and hears of cancellation.
pub struct Listener {
    on: Option<js_sys::Function>,
    cancelled: Rc<Cell<bool>>,
}

impl Listener {
    /// Calls `on` with each event.
    pub fn new(on: js_sys::Function, cancelled: Rc<Cell<bool>>) -> Listener {
        Listener { on: Some(on), cancelled }
    }

    /// Calls nobody.
    pub fn silent(cancelled: Rc<Cell<bool>>) -> Listener {
        Listener { on: None, cancelled }
    }

    fn tell(&self, event: &Event<'_>) {
        if let (Some(on), Ok(event)) = (&self.on, crate::options::write(event)) {
            // What a listener throws is its own affair; the work goes on.
            let _ = on.call1(&JsValue::NULL, &event);
        }
    }
}

impl Observer for Listener {
    fn cancelled(&self) -> bool {
        self.cancelled.get()
    }

    fn progress(&self, done: u64, total: u64) {
        self.tell(&Event::Progress { done: done as f64, total: total as f64 });
    }
}

impl Reporter for Listener {
    fn stage(&self, name: &str) {
        self.tell(&Event::Stage { stage: name });
    }

    fn note(&self, text: &str) {
        self.tell(&Event::Note { text });
    }

    fn step(&self, step: usize, steps: usize) {
        self.tell(&Event::Step { step, steps });
    }

    fn wants_preview(&self) -> bool {
        self.on.is_some()
    }

    fn preview(&self, image: &RgbImage) {
        let rgba: Vec<u8> = image.pixels().flat_map(|p| [p[0], p[1], p[2], 255]).collect();
        self.tell(&Event::Preview { width: image.width(), height: image.height(), rgba: rgba.into() });
    }
}
