//! The report as one file for people.

use crate::{Entry, Outcome, Report, place};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeMap;

const STYLE: &str = "
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr { border-bottom: 1px solid color-mix(in srgb, currentColor 15%, transparent); }
code { font-size: 0.85rem; overflow-wrap: anywhere; }
.fail { color: light-dark(#b00020, #ff8a80); font-weight: 600; }
.expected_fail { color: light-dark(#8a5a00, #ffcf66); }
.skip { opacity: 0.7; }
";

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Skip => "skip",
        Outcome::ExpectedFail => "expected_fail",
    }
}

impl Report {
    /// The report as a page without scripts or other files: counts by operator and storage, then every check that did not
    /// pass, then all.
    pub fn html(&self) -> String {
        let (s, d) = (&self.summary, &self.device);
        let mut storages: Vec<&str> = Vec::new();
        let mut cells: BTreeMap<(&str, &str), [usize; 4]> = BTreeMap::new();
        let mut operators: Vec<&str> = Vec::new();
        for entry in &self.checks {
            let (operator, storage) = place(&entry.id);
            cells.entry((operator, storage)).or_default()[entry.outcome as usize] += 1;
            if !operators.contains(&operator) {
                operators.push(operator);
            }
            if !storages.contains(&storage) {
                storages.push(storage);
            }
        }
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { "Conformance of " (d.name) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (d.name) }
                    p { (self.program) " on " (d.backend) ", " (d.driver) ", " (self.date) }
                    p {
                        (s.pass) " pass, " span.fail[s.fail > 0] { (s.fail) " fail" } ", " (s.skip) " skipped, "
                        (s.expected_fail) " fail as expected"
                    }
                    table {
                        thead { tr { th scope="col" { "operator" } @for storage in &storages { th scope="col" { (storage) } } } }
                        tbody {
                            @for operator in &operators {
                                tr {
                                    th scope="row" { code { (operator) } }
                                    @for storage in &storages { (cell(cells.get(&(*operator, *storage)))) }
                                }
                            }
                        }
                    }
                    @let odd: Vec<&Entry> = self.checks.iter().filter(|e| !matches!(e.outcome, Outcome::Pass | Outcome::Skip)).collect();
                    @if !odd.is_empty() {
                        h2 { "Did not pass" }
                        (table(&odd))
                    }
                    details {
                        summary { "All " (self.checks.len()) " checks; an error of 1 is the tolerance" }
                        (table(&self.checks.iter().collect::<Vec<_>>()))
                    }
                }
            }
        };
        page.into_string()
    }
}

/// `12`, `11 + 1 fail`, `skip`.
fn cell(counts: Option<&[usize; 4]>) -> Markup {
    let Some([pass, fail, skip, expected]) = counts else { return html! { td {} } };
    html! {
        td.fail[*fail > 0].skip[*skip > 0 && *pass == 0] {
            @if *pass > 0 { (pass) }
            @if *fail > 0 { " " (fail) " fail" }
            @if *expected > 0 { " " (expected) " expected" }
            @if *skip > 0 { " " (skip) " skipped" }
        }
    }
}

fn table(entries: &[&Entry]) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { "check" } th scope="col" { "outcome" } th scope="col" { "error" } th scope="col" { "ms" } th scope="col" { "" } } }
            tbody {
                @for e in entries {
                    tr {
                        td { code { (e.id) } }
                        td class=(word(e.outcome)) { (word(e.outcome)) }
                        td.number { @if let Some(worst) = e.worst { (format!("{worst:.3}")) } }
                        td.number { @if let Some(ms) = e.milliseconds { (format!("{ms:.1}")) } }
                        td { @if let Some(detail) = &e.detail { (detail) } }
                    }
                }
            }
        }
    }
}
