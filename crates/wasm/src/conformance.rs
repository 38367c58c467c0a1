//! The kernels' suite for `web/conformance.html`: the checks of `pulid conformance` by the same ids.

use crate::error::{Outcome, thrown};
use crate::options;
use pulid_conformance::{Check, Expectations, Outcome as CheckOutcome, Pattern, Report, checks};
use pulid_engine::{AdapterSummary, Device, DeviceOptions};
use pulid_tensor::Error;
use wasm_bindgen::prelude::*;

/// A run of the suite on the browser's device.
#[wasm_bindgen]
pub struct Conformance {
    device: Device,
    adapter: AdapterSummary,
    checks: Vec<Check>,
    expected: Expectations,
    report: Report,
}

#[wasm_bindgen]
impl Conformance {
    /// Opens the device and lists what can be asked of it: the ids that hold `filter`, which may have `*` and `?`. `name` is what the
    /// browser calls its device, if it tells more than wgpu hears.
    ///
    /// # Errors
    /// `DeviceError` when there is no device, `SettingsError` when no id fits.
    pub async fn open(filter: String, name: String) -> Outcome<Conformance> {
        let device = Device::open("auto", DeviceOptions::default()).await.map_err(thrown)?;
        let pattern = Pattern::new(filter);
        let mut checks = checks(device.capabilities()).map_err(thrown)?;
        checks.retain(|check| pattern.matches(&check.id));
        if checks.is_empty() {
            return Err(thrown(Error::invalid("filter", "no check has such an id")));
        }
        let expected = Expectations::shipped().map_err(thrown)?;
        let mut adapter = device.summary().clone();
        if !name.is_empty() {
            adapter.name = name;
        }
        let mut report = Report::new(adapter.clone());
        report.date = String::from(js_sys::Date::new_0().to_iso_string()).chars().take(10).collect();
        Ok(Conformance { device, adapter, checks, expected, report })
    }

    /// Ids of the checks, in order.
    pub fn ids(&self) -> Vec<String> {
        self.checks.iter().map(|check| check.id.clone()).collect()
    }

    /// Runs the check at a place of the list; gives its entry in the report.
    ///
    /// # Errors
    /// `SettingsError` for a place beyond the list; `DeviceError` when a lost device cannot be opened again.
    pub async fn run(&mut self, index: usize) -> Outcome<JsValue> {
        let Some(check) = self.checks.get(index) else {
            return Err(thrown(Error::invalid("check", format!("there is none at {index}"))));
        };
        let entry = check.entry(&self.device, &self.adapter, &self.expected).await;
        if entry.worst.is_none() && entry.outcome != CheckOutcome::Skip {
            // A kernel may take the device with it; the others deserve a fresh one.
            self.device = Device::open("auto", DeviceOptions::default()).await.map_err(thrown)?;
        }
        let shown = options::write(&entry);
        self.report.push(entry);
        shown
    }

    /// The report so far, as `pulid conformance --report FILE.json` writes it.
    ///
    /// # Errors
    /// Never, but for a broken build.
    pub fn json(&self) -> Outcome<String> {
        self.report.json().map_err(thrown)
    }

    /// The report so far as a page.
    pub fn html(&self) -> String {
        self.report.html()
    }
}
