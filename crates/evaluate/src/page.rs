//! The report as one page of HTML that needs nothing else: tables, bars and a contact sheet.

use crate::{AdapterReport, Report, Scores};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use pulid::image::{ImageFormat, ImageMetadata, RgbImage, encode_image, resize_pillow_bicubic};
use pulid_tensor::Result;

/// Longer side of a thumbnail, in pixels.
const THUMBNAIL: u32 = 144;

/// Thumbnails of the contact sheet at most; some kilobytes each are in the page.
const MOST_THUMBNAILS: usize = 600;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5b6570; --line: #d8dde3; --paper: #ffffff; --band: #f4f6f8;
  --c0: #8a94a0; --c1: #2563c9; --c2: #c2571a; --c3: #1f8a5b; --c4: #8b46b8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --dim: #9aa4af; --line: #333a42; --paper: #15181c; --band: #1e2329;
  --c0: #76808b; --c1: #6ea3f5; --c2: #ee9254; --c3: #56c596; --c4: #c48aec } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 78rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem } p { margin: .4rem 0; max-width: 62rem }
.dim, caption { color: var(--dim) } .notes { border-left: 3px solid var(--c2); padding: .2rem .8rem; background: var(--band) }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .4rem 0 } caption { text-align: left; padding: .2rem 0 }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top } thead th { background: var(--band) }
tbody td:first-child { min-width: 12rem }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } td.best { font-weight: 650 }
svg { display: block; max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .d { fill: var(--dim) }
.key { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .35rem }
.sheet td, .sheet th { border: 0; padding: .15rem; font-size: 12px; max-width: 150px } .sheet img { display: block; border-radius: 4px }
.sheet th { font-weight: 500; color: var(--dim) } figure { margin: 0 } figcaption { font-variant-numeric: tabular-nums; color: var(--dim) }
details > summary { cursor: pointer }
";

/// A measure of the tables.
struct Measure {
    name: &'static str,
    of: fn(&Scores) -> Option<f64>,
    digits: usize,
}

const MEASURES: [Measure; 3] = [
    Measure { name: "Face Sim", of: |s| s.face_sim, digits: 3 },
    Measure { name: "CLIP-T", of: |s| s.clip_t, digits: 2 },
    Measure { name: "CLIP-I", of: |s| s.clip_i, digits: 3 },
];

impl Measure {
    fn text(&self, scores: &Scores) -> String {
        (self.of)(scores).map_or("–".into(), |value| format!("{value:.*}", self.digits))
    }
}

/// The page. `photo` gives the pixels of a person's first photo and `picture` those of a picture by its name in the report.
///
/// # Errors
/// What `photo` and `picture` return.
pub fn page(
    report: &Report,
    photo: &mut dyn FnMut(usize) -> Result<RgbImage>,
    picture: &mut dyn FnMut(&str) -> Result<RgbImage>,
) -> Result<String> {
    let sheet = contact_sheet(report, photo, picture)?;
    let rows: Vec<&AdapterReport> = std::iter::once(&report.without_identity).chain(&report.adapters).collect();
    let measures: Vec<&Measure> = MEASURES.iter().filter(|m| rows.iter().any(|r| (m.of)(&r.mean).is_some())).collect();
    let prompts: Vec<String> = report.prompts.iter().map(|p| p.text.clone()).collect();
    let people: Vec<String> = report.people.iter().map(|p| p.name.clone()).collect();
    let categories: Vec<String> = report.without_identity.per_category.iter().map(|(name, _)| name.clone()).collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "PuLID evaluation" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "PuLID evaluation" }
                p.dim {
                    (counted(report.people.len(), "person", "people")) ", " (counted(report.prompts.len(), "prompt", "prompts")) ", "
                    (counted(report.seeds.len(), "picture", "pictures")) " each; " (report.device) "; pulid-wgpu " (report.version)
                }
                @if !report.notes.is_empty() {
                    div.notes { @for note in &report.notes { p { (note) } } }
                }
                h2 { "Means" }
                (means(report, &rows))
                p.dim {
                    "Face Sim: cosine of a recogniser's embeddings of the face in the picture and in the photo, over the pictures in which a face was \
                     found. CLIP-T: 100 times the cosine of CLIP's embeddings of picture and prompt. CLIP-I: cosine of CLIP's embeddings of the \
                     pictures with and without identity, from the same seed. Higher is better in each."
                }
                p.dim { "The Face Sim of the pictures without identity is that of somebody else: what is gained begins there." }
                (bars("By adapter", &[("all", rows.iter().map(|r| &r.mean).collect())], &rows, &measures))
                @if !categories.is_empty() {
                    h2 { "By category" }
                    (table("Category", &categories, &rows, &measures, |r, i| &r.per_category[i].1))
                    (bars("By category", &grouped(&categories, &rows, |r, i| &r.per_category[i].1), &rows, &measures))
                }
                h2 { "By prompt" }
                (table("Prompt", &prompts, &rows, &measures, |r, i| &r.per_prompt[i]))
                (bars("By prompt", &grouped(&prompts, &rows, |r, i| &r.per_prompt[i]), &rows, &measures))
                h2 { "By person" }
                (table("Person", &people, &rows, &measures, |r, i| &r.per_person[i]))
                (bars("By person", &grouped(&people, &rows, |r, i| &r.per_person[i]), &rows, &measures))
                h2 { "Pictures" }
                (sheet)
                h2 { "How it was made" }
                p { "Model " code { (report.model.display()) } "; recogniser " code { (report.recogniser.display()) }
                    "; " @match &report.clip { Some(clip) => { "CLIP " code { (clip.display()) } }, None => "no CLIP" } }
                @for adapter in &report.adapters {
                    p { (adapter.name) ": " @if let Some(file) = &adapter.file { code { (file.display()) } }
                        @if let Some(hash) = &adapter.sha256 { span.dim { ", SHA-256 " (hash) } } }
                }
                p { code style="white-space: pre-wrap" { (report.parameters) } }
            }
        }
    };
    Ok(page.into_string())
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn means(report: &Report, rows: &[&AdapterReport]) -> Markup {
    let best = |m: &Measure| report.adapters.iter().filter_map(|a| (m.of)(&a.mean)).fold(f64::NEG_INFINITY, f64::max);
    html! {
        div.scroll { table {
            thead { tr { th { "" } @for m in &MEASURES { th.n { (m.name) } } th.n { "pictures" } th.n { "without a face" } } }
            tbody { @for (i, row) in rows.iter().enumerate() {
                // A picture without identity stands in the report once for each person.
                @let times = if i == 0 { report.people.len().max(1) } else { 1 };
                tr {
                    td { (key(i)) (row.name) }
                    @for m in &MEASURES {
                        @let first = i > 0 && report.adapters.len() > 1 && (m.of)(&row.mean).is_some_and(|v| v >= best(m));
                        td.n.best[first] { (m.text(&row.mean)) }
                    }
                    td.n { (row.mean.pictures / times) }
                    td.n { ((row.mean.pictures - row.mean.faces) / times) }
                }
            } }
        } }
    }
}

fn key(row: usize) -> Markup {
    html! { span.key style=(format!("background: {}", color(row))) {} }
}

/// Colours repeat after five rows, of which the first is grey: the one without identity.
fn color(row: usize) -> String {
    format!("var(--c{})", if row == 0 { 0 } else { (row - 1) % 4 + 1 })
}

fn table<'r>(
    what: &str,
    names: &[String],
    rows: &[&'r AdapterReport],
    measures: &[&Measure],
    of: impl Fn(&'r AdapterReport, usize) -> &'r Scores,
) -> Markup {
    html! {
        div.scroll { table {
            thead {
                tr { th rowspan="2" { (what) } @for (i, row) in rows.iter().enumerate() { th colspan=(measures.len() + 1) { (key(i)) (row.name) } } }
                tr { @for _ in rows { @for m in measures { th.n { (m.name) } } th.n { "no face" } } }
            }
            tbody { @for (i, name) in names.iter().enumerate() { tr {
                td { (name) }
                @for row in rows {
                    @let scores = of(row, i);
                    @for m in measures { td.n { (m.text(scores)) } }
                    td.n { @if scores.faces < scores.pictures { (scores.pictures - scores.faces) " of " (scores.pictures) } @else { "–" } }
                }
            } } }
        } }
    }
}

/// A name and the scores of each row there.
type Group<'a> = (&'a str, Vec<&'a Scores>);

fn grouped<'r>(
    names: &'r [String],
    rows: &[&'r AdapterReport],
    of: impl Fn(&'r AdapterReport, usize) -> &'r Scores,
) -> Vec<Group<'r>> {
    names.iter().enumerate().map(|(i, name)| (name.as_str(), rows.iter().map(|row| of(row, i)).collect())).collect()
}

/// A bar chart of each measure, side by side, from zero.
fn bars(title: &str, groups: &[Group<'_>], rows: &[&AdapterReport], measures: &[&Measure]) -> Markup {
    const LABEL: f64 = 190.0;
    const WIDTH: f64 = 300.0;
    const BAR: f64 = 12.0;
    const GAP: f64 = 12.0;
    const TOP: f64 = 24.0;
    let all =
        |m: &Measure| groups.iter().flat_map(|(_, scores)| scores.iter().filter_map(|s| (m.of)(s))).collect::<Vec<_>>();
    let group_height = rows.len() as f64 * BAR + GAP;
    let height = TOP + groups.len() as f64 * group_height;
    let total = LABEL + measures.len() as f64 * WIDTH;
    let chart = html! {
        svg viewBox=(format!("0 0 {total} {height}")) width=(total) height=(height) role="img" aria-label=(format!("{title}: bars of the table's numbers")) {
            @for (m, measure) in measures.iter().enumerate() {
                @let values = all(measure);
                @let most = values.iter().copied().fold(1e-9, f64::max);
                @let x = LABEL + m as f64 * WIDTH;
                text x=(x) y="14" { (measure.name) }
                @for (g, (_, scores)) in groups.iter().enumerate() {
                    @for (r, scores) in scores.iter().enumerate() {
                        @let y = TOP + g as f64 * group_height + r as f64 * BAR;
                        @if let Some(value) = (measure.of)(scores) {
                            // Cosines below zero are as good as none.
                            @let length = (value.max(0.0) / most * (WIDTH - 70.0)).max(1.0);
                            rect x=(x) y=(y) width=(format!("{length:.1}")) height=(BAR - 2.0) rx="2" style=(format!("fill: {}", color(r))) {
                                title { (rows[r].name) ": " (measure.text(scores)) }
                            }
                            text.d x=(format!("{:.1}", x + length + 5.0)) y=(y + BAR - 3.0) { (measure.text(scores)) }
                        }
                    }
                }
            }
            @for (g, (name, _)) in groups.iter().enumerate() {
                text x="0" y=(TOP + g as f64 * group_height + group_height / 2.0) { (shortened(name, 30)) title { (name) } }
            }
        }
    };
    html! {
        @if groups.len() > 12 { details { summary { "Bars" } (chart) } } @else { div.scroll { (chart) } }
    }
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// The pictures of the first seed: a row for each adapter and person, a column for each prompt.
fn contact_sheet(
    report: &Report,
    photo: &mut dyn FnMut(usize) -> Result<RgbImage>,
    picture: &mut dyn FnMut(&str) -> Result<RgbImage>,
) -> Result<Markup> {
    let columns = report.prompts.len().min(MOST_THUMBNAILS / 4);
    let rows = MOST_THUMBNAILS / (columns + 1);
    let people = report.people.len().min((rows.saturating_sub(1) / report.adapters.len().max(1)).max(1));
    let seed = report.seeds.first().copied().unwrap_or(0);
    let cell =
        |adapter: &AdapterReport, person: usize, prompt: usize, picture: &mut dyn FnMut(&str) -> Result<RgbImage>| {
            let found = adapter.pictures.iter().find(|p| (p.person, p.prompt, p.seed) == (person, prompt, seed));
            let Some(found) = found else { return Ok(html! {}) };
            let numbers = [
                found.face_sim.map(|v| format!("{v:.2}")),
                found.clip_t.map(|v| format!("{v:.1}")),
                found.clip_i.map(|v| format!("{v:.2}")),
            ];
            let numbers: Vec<_> = numbers.into_iter().flatten().collect();
            let alt = format!("{}, {}, {}", adapter.name, report.people[person].name, report.prompts[prompt].text);
            let plain = adapter.file.is_none();
            let image = thumbnail(&picture(&found.picture)?, &alt)?;
            Ok::<_, pulid_tensor::Error>(html! {
                figure { a href=(found.picture) { (image) }
                    figcaption { @if !found.face_found { "no face " } @if !plain { (numbers.join(" · ")) } } }
            })
        };
    let mut body = Vec::new();
    let mut first = Vec::new();
    for prompt in 0..columns {
        first.push(cell(&report.without_identity, 0, prompt, picture)?);
    }
    body.push(html! { tr { th { "without identity" } td {} @for cell in first { td { (cell) } } } });
    for adapter in &report.adapters {
        for person in 0..people {
            let name = &report.people[person].name;
            let own = thumbnail(&photo(person)?, &format!("photo of {name}"))?;
            let mut cells = Vec::new();
            for prompt in 0..columns {
                cells.push(cell(adapter, person, prompt, picture)?);
            }
            body.push(
                html! { tr { th { (adapter.name) br; (name) } td { (own) } @for cell in cells { td { (cell) } } } },
            );
        }
    }
    let left_out = people < report.people.len() || columns < report.prompts.len();
    Ok(html! {
        p.dim {
            "Of the seed " (seed) "; below each picture Face Sim" @if report.clip.is_some() { " · CLIP-T · CLIP-I" } "."
            @if left_out {
                " Shown are " (people) " of " (counted(report.people.len(), "person", "people")) " and " (columns) " of "
                (counted(report.prompts.len(), "prompt", "prompts")) "; all pictures lie beside this page."
            }
        }
        div.scroll { table.sheet {
            thead { tr { th {} th { "photo" } @for prompt in &report.prompts[..columns] { th { (prompt.text) } } } }
            tbody { @for row in body { (row) } }
        } }
    })
}

fn thumbnail(image: &RgbImage, alt: &str) -> Result<Markup> {
    let (width, height) = image.dimensions();
    let scale = f64::from(THUMBNAIL) / f64::from(width.max(height).max(1));
    let side = |s: u32| ((f64::from(s) * scale.min(1.0)).round() as u32).max(1);
    let small = resize_pillow_bicubic(image, side(width), side(height))?;
    let jpeg = encode_image(ImageFormat::Jpeg, &small, &ImageMetadata::default())?;
    let data = format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg));
    Ok(html! { img src=(data) alt=(alt) width=(small.width()) height=(small.height()); })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PersonReport, PictureReport, Prompt};

    fn report() -> Report {
        let prompts: Vec<_> =
            ["a <b> & \"c\"", "x"].map(|t| Prompt { text: t.into(), category: Some("style".into()) }).into();
        let picture = |person, prompt, face_sim: Option<f64>| PictureReport {
            picture: format!("pictures/{person}-{prompt}.png"),
            person,
            prompt,
            seed: 5,
            face_found: face_sim.is_some(),
            face_sim,
            clip_t: None,
            clip_i: None,
        };
        let made = |sim| {
            vec![picture(0, 0, sim), picture(0, 1, Some(0.25)), picture(1, 0, Some(0.5)), picture(1, 1, Some(-0.1))]
        };
        let one = |name: &str, sim| {
            AdapterReport::new(name.into(), Some(("a.bin".into(), "ff".into())), made(sim), &prompts, 2)
        };
        let mut plain = one("without identity", Some(0.0));
        plain.file = None;
        Report {
            version: "1".into(),
            device: "none".into(),
            model: "m".into(),
            parameters: "Steps: 1".into(),
            recogniser: "r.onnx".into(),
            recogniser_is_the_adapters: true,
            clip: None,
            notes: vec!["say <this>".into()],
            seeds: vec![5],
            prompts: prompts.clone(),
            people: ["Ada", "<script>"].map(|n| PersonReport { name: n.into(), photos: Vec::new() }).into(),
            without_identity: plain,
            adapters: vec![one("one", None), one("two", Some(0.75))],
        }
    }

    #[test]
    fn the_page_stands_alone_and_shows_what_was_measured() {
        let image = RgbImage::from_pixel(300, 200, image::Rgb([9, 90, 200]));
        let mut asked = 0;
        let text = page(&report(), &mut |_| Ok(image.clone()), &mut |_| {
            asked += 1;
            Ok(image.clone())
        });
        let text = text.unwrap();
        // Two without identity, and of two adapters two people's two prompts.
        assert_eq!(asked, 10);
        assert!(
            !text.contains("<script>") && !text.contains("<b>") && text.contains("a &lt;b&gt; &amp; &quot;c&quot;")
        );
        assert!(text.contains("say &lt;this&gt;") && text.contains("0.350") && text.contains("no face"));
        assert!(
            !text.contains("src=\"http") && !text.contains("<link") && text.contains("width=\"144\" height=\"96\"")
        );
        assert!(text.contains("prefers-color-scheme: dark") && text.contains("<svg"));
    }

    #[test]
    fn a_huge_evaluation_shows_a_part_and_says_so() {
        let mut large = report();
        let names = (0..900).map(|i| PersonReport { name: i.to_string(), photos: Vec::new() });
        large.people = names.collect();
        let per_person = |r: &mut AdapterReport| r.per_person = vec![Scores::default(); 900];
        per_person(&mut large.without_identity);
        large.adapters.iter_mut().for_each(per_person);
        let image = RgbImage::new(2, 2);
        let text = page(&large, &mut |_| Ok(image.clone()), &mut |_| Ok(image.clone())).unwrap();
        assert!(text.contains("of 900 people"), "{}", text.len());
        assert!(text.matches("<img").count() <= MOST_THUMBNAILS);
    }
}
