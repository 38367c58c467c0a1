//! What a run of the suite found.

use crate::{Comparison, Expectations};
use pulid_engine::AdapterSummary;
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The program that makes reports and exports, and its version.
pub(crate) const PROGRAM: &str = concat!("pulid-wgpu ", env!("CARGO_PKG_VERSION"));

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Right.
    Pass,
    /// Wrong, or right where a failure is expected.
    Fail,
    /// The device cannot run it.
    Skip,
    /// Wrong, as is known.
    ExpectedFail,
}

/// One check's result.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The check.
    pub id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Largest error in units of the tolerance; none where nothing could be compared or a value was not finite.
    pub worst: Option<f64>,
    /// Wall time of kernel, reference and comparison.
    pub milliseconds: Option<f64>,
    /// What was found, or why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Entry {
    /// A check that was not run.
    pub fn skipped(id: &str, reason: &str) -> Entry {
        let detail = Some(reason.to_owned());
        Entry { id: id.to_owned(), outcome: Outcome::Skip, worst: None, milliseconds: None, detail }
    }

    /// Judges what a check found by what is expected of the adapter.
    pub fn judged(
        id: &str,
        found: Result<Comparison>,
        seconds: f64,
        adapter: &AdapterSummary,
        expected: &Expectations,
    ) -> Entry {
        let (passed, worst, detail) = match found {
            Ok(c) => (c.passed(), Some(c.worst).filter(|w| w.is_finite()), (!c.passed()).then(|| c.to_string())),
            Err(error) => (false, None, Some(error.to_string())),
        };
        let (outcome, detail) = match (passed, expected.reason(adapter, id)) {
            (true, None) => (Outcome::Pass, detail),
            (false, None) => (Outcome::Fail, detail),
            (false, Some(reason)) => (Outcome::ExpectedFail, Some(format!("{reason}: {}", detail.unwrap_or_default()))),
            (true, Some(reason)) => (Outcome::Fail, Some(format!("passes, though it is listed as failing: {reason}"))),
        };
        Entry { id: id.to_owned(), outcome, worst, milliseconds: Some(seconds * 1e3), detail }
    }
}

/// How many checks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Right.
    pub pass: usize,
    /// Wrong.
    pub fail: usize,
    /// Not run.
    pub skip: usize,
    /// Wrong, as is known.
    pub expected_fail: usize,
}

impl Summary {
    /// Counts one more.
    pub fn add(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Pass => &mut self.pass,
            Outcome::Fail => &mut self.fail,
            Outcome::Skip => &mut self.skip,
            Outcome::ExpectedFail => &mut self.expected_fail,
        } += 1;
    }

    /// Both together.
    pub fn and(self, other: Summary) -> Summary {
        Summary {
            pass: self.pass + other.pass,
            fail: self.fail + other.fail,
            skip: self.skip + other.skip,
            expected_fail: self.expected_fail + other.expected_fail,
        }
    }
}

/// A run on one device.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Program and version.
    pub program: &'static str,
    /// Day of the run in UTC, `2026-01-31`; in a browser whoever makes the report sets it.
    pub date: String,
    /// The device.
    pub device: AdapterSummary,
    /// How many checks ended how.
    pub summary: Summary,
    /// Every check, in the order of the registry.
    pub checks: Vec<Entry>,
}

impl Report {
    /// An empty one.
    pub fn new(device: AdapterSummary) -> Report {
        Report { program: PROGRAM, date: today(), device, summary: Summary::default(), checks: Vec::new() }
    }

    /// Adds a result.
    pub fn push(&mut self, entry: Entry) {
        self.summary.add(entry.outcome);
        self.checks.push(entry);
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// Never, but for a fault of ours.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::invalid("report", e.to_string()))
    }

    /// Checks that [`Report::text_for`] knows the form that the file's name asks for.
    ///
    /// # Errors
    /// When it does not.
    pub fn accept(path: &Path) -> Result<()> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("json" | "html") => Ok(()),
            _ => Err(Error::invalid("--report", format!("`{}` ends neither in .json nor in .html", path.display()))),
        }
    }

    /// The report in the form that the file's name asks for: `.json` or `.html`.
    ///
    /// # Errors
    /// For another name.
    pub fn text_for(&self, path: &Path) -> Result<String> {
        Self::accept(path)?;
        if path.extension().is_some_and(|e| e == "json") { self.json() } else { Ok(self.html()) }
    }
}

#[cfg(target_arch = "wasm32")]
fn today() -> String {
    // The standard library has no clock there.
    String::new()
}

#[cfg(not(target_arch = "wasm32"))]
fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    date(since.map_or(0, |t| t.as_secs() / 86_400))
}

/// The date so many days after the beginning of 1970.
#[cfg(not(target_arch = "wasm32"))]
fn date(mut days: u64) -> String {
    let leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulid_ops::DeviceKind;

    fn adapter() -> AdapterSummary {
        AdapterSummary {
            name: "Some <GPU>".into(),
            driver: "mesa 25".into(),
            backend: "vulkan".into(),
            kind: DeviceKind::Discrete,
        }
    }

    fn comparison(worst: f64) -> Result<Comparison> {
        Ok(Comparison { worst, index: 3, got: 1.0, want: 2.0, stray_bytes: 0 })
    }

    fn expectations(text: &str) -> Expectations {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("e.json"), text).unwrap();
        Expectations::open(folder.path().join("e.json")).unwrap()
    }

    #[test]
    fn known_failures_count_as_such_and_their_passing_fails() {
        let known = r#"[{"adapter": "other gpu", "backend": "", "id": "x", "reason": "r"},
            {"adapter": "SOME*mesa 25", "backend": "vulkan", "id": "norm/*f16*", "reason": "driver issue 7"}]"#;
        let expected = expectations(known);
        let outcome = |id: &str, found| Entry::judged(id, found, 0.5, &adapter(), &expected).outcome;
        let f16 = "norm/group_norm:dtype=f16;x";
        assert_eq!(outcome(f16, comparison(9.0)), Outcome::ExpectedFail);
        assert_eq!(outcome(f16, comparison(0.5)), Outcome::Fail);
        assert_eq!(outcome("norm/group_norm:dtype=f32;x", comparison(0.5)), Outcome::Pass);
        assert_eq!(outcome("conv/x", comparison(1.5)), Outcome::Fail);
        assert_eq!(outcome("conv/x", Err(Error::Device("lost".into()))), Outcome::Fail);
        let entry = Entry::judged(f16, comparison(0.5), 0.5, &adapter(), &expected);
        assert!(entry.detail.unwrap().contains("driver issue 7"));
        assert!(Expectations::shipped().unwrap().reason(&adapter(), f16).is_none());
    }

    #[test]
    fn days_have_dates() {
        // From `date --date @SECONDS`.
        let known = [
            (0, "1970-01-01"),
            (11_015, "2000-02-28"),
            (11_016, "2000-02-29"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ];
        for (days, text) in known {
            assert_eq!(date(days), text);
        }
    }

    #[test]
    fn reports_count_and_escape() {
        let mut report = Report::new(adapter());
        let none = Expectations::default();
        report.push(Entry::judged("a/b:dtype=f32;x", comparison(0.25), 0.001, &adapter(), &none));
        report.push(Entry::judged("a/b:dtype=f32;y", comparison(f64::INFINITY), 0.001, &adapter(), &none));
        report.push(Entry::skipped("a/b:dtype=f16;x", "no <f16>"));
        assert_eq!(report.summary, Summary { pass: 1, fail: 1, skip: 1, expected_fail: 0 });
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["summary"]["skip"], 1);
        assert_eq!(json["checks"][0]["worst"], 0.25);
        assert!(json["checks"][1]["worst"].is_null(), "infinity is no number of JSON's");
        let html = report.text_for(Path::new("x.html")).unwrap();
        assert!(html.contains("Some &lt;GPU&gt;") && html.contains("no &lt;f16&gt;") && !html.contains("<f16>"));
        assert!(report.text_for(Path::new("x.txt")).unwrap_err().to_string().contains(".html"));
    }
}
