use super::identity::{check_no_folder, read_photo};
use super::models::{Models, ModelsArgs};
use super::settings::SettingsArgs;
use super::{DeviceArgs, remember_choices};
use crate::progress::{Terminal, keep_word};
use pulid::identity::{FaceModels, open_recogniser, unread_of_adapter};
use pulid::image::decode_photo;
use pulid::pipeline::{Pipeline, SdxlModel, check_options, examine};
use pulid::preset::Preset;
use pulid::runtime::{Keep, Reporter};
use pulid::settings::{ModelDefaults, Settings};
use pulid_checkpoint::{Checkpoint, FileSet};
use pulid_evaluate::{
    Adapter, ClipJudge, Evaluation, Judges, Report, Scores, Store, default_prompts, measure, page, people, read_prompts,
};
use pulid_models::Precision;
use pulid_models::pulid::IdentityAdapter;
use pulid_tensor::{Error, Result};
use std::path::{Path, PathBuf};

/// Pictures of each person and prompt at most: seeds are counted up from the first.
const MOST_IMAGES: i64 = 1000;

/// Flags of `pulid evaluate`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    pulid evaluate --faces people --output evaluation\n  \
    pulid evaluate --faces people --clip clip-vit-large-patch14 --adapter old=a.safetensors --adapter new=b.safetensors\n\n\
    Each photo of the folder is one person, and so are the photos of each folder in it. Pictures are made of each person by\n\
    each prompt, with each adapter and without identity, from the same seeds. Measured are, as in the PuLID paper: Face Sim,\n\
    the cosine of a recogniser's embeddings of the faces in picture and photo; CLIP-T, 100 times the cosine of CLIP's\n\
    embeddings of picture and prompt; CLIP-I, the cosine of CLIP's embeddings of the pictures with and without identity.\n\
    The folder of --output gets evaluation.json and index.html in the end, and keeps each picture as soon as it is made: the\n\
    same command goes on where it was stopped. docs/evaluate.md says what the numbers mean and what they do not.")]
pub struct Args {
    /// Folder of photos: each one person, or folders with up to 4 photos of one person
    #[arg(long, value_name = "DIR")]
    faces: PathBuf,
    /// A PuLID file, v1 or v1.1, to evaluate; several are compared [default: the models folder's own, v1.1 before v1]
    #[arg(long, value_name = "[NAME=]FILE")]
    adapter: Vec<PathBuf>,
    /// A text file with one prompt a line, if wanted after a category and a tab [default: a list of our own, which begins with
    /// the paper's prompt for Face Sim]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Pictures of each person and prompt; their seeds are --seed and those that follow it
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(i64).range(1..=MOST_IMAGES))]
    images: i64,
    /// A face recogniser (ONNX, one aligned RGB face of 112 pixels) that judges faces, best another one than the adapters read
    /// [default: w600k_r50.onnx of insightface's buffalo_l in the models folder, else the adapters' own]
    #[arg(long, value_name = "ONNX")]
    recogniser: Option<PathBuf>,
    /// A CLIP in transformers' layout, for example of openai/clip-vit-large-patch14; without it CLIP-T and CLIP-I are left out
    #[arg(long, value_name = "DIR")]
    clip: Option<PathBuf>,
    /// A folder in diffusers' SDXL layout, a single file with a whole SDXL, or what `pulid pull` fetched [default: sdxl of the models
    /// folder, or the preset's own base if it was fetched]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another UNet for the model: a file or a folder
    #[arg(long, value_name = "PATH")]
    unet: Option<PathBuf>,
    /// A folder in diffusers' layout whose configurations, scheduler and tokenizers are taken
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsArgs,
    /// The official applications' settings by name, as for `pulid generate`; every flag wins over it
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// The folder of pictures, evaluation.json and index.html: a new one, or that of the same evaluation to go on with
    #[arg(long, value_name = "DIR", default_value = "evaluation")]
    output: PathBuf,
    /// Print the means as JSON instead of progress and a table
    #[arg(long)]
    json: bool,
}

/// Makes and measures pictures.
pub fn run(args: &Args) -> Result<()> {
    keep_word("finished pictures are kept, and the same command goes on from there".into());
    let people = people(&args.faces)?;
    let prompts = args.prompts.as_deref().map_or_else(|| Ok(default_prompts()), read_prompts)?;
    let clip = args.clip.as_deref().map(ClipJudge::open).transpose()?;
    let models = args.models.open(args.model.as_deref(), args.preset)?;
    let model = models.open_model(args.model.as_deref(), args.config.as_deref(), args.unet.as_deref())?;
    let faces = models.face_models()?;
    faces.require_all()?;
    let defaults = ModelDefaults::of(&model)?;
    let settings = Settings::merge(args.settings.0.clone(), args.preset, defaults.all())?;
    let mut notes = examine(&model)?;
    notes.extend(defaults.notes(&args.settings.0, args.preset));
    for person in people.iter().filter(|person| person.further > 0) {
        let (name, read, further) = (&person.name, person.photos.len(), person.further);
        notes.push(format!("{name}: the first {read} photos are read, {further} more are not"));
    }
    let adapters = open_adapters(args, &models, &model, &mut notes)?;
    let judges = open_judges(args, &faces, clip)?;
    let images = usize::try_from(args.images).unwrap_or(1);
    let evaluation = Evaluation { people, prompts, adapters, images, settings, read_photo };
    evaluation.check()?;
    check_options(&model, &evaluation.options(&evaluation.prompts[0], evaluation.settings.seed))?;

    let (report_file, page_file) = (args.output.join("evaluation.json"), args.output.join("index.html"));
    let mut files = FileSet::new();
    files.reads(&args.faces)?;
    let named = args.prompts.iter().chain(&args.clip).chain(&args.unet).chain(&args.config).chain([&judges.recogniser]);
    named.chain(evaluation.adapters.iter().map(|a| &a.file)).try_for_each(|path| files.reads(path))?;
    models.inputs(&model, None).iter().try_for_each(|path| files.reads(path))?;
    files.claim_folder(&args.output)?;
    files.claim(&report_file)?;
    files.claim(&page_file)?;
    let mut store = Store::open(&args.output)?;

    let terminal = Terminal::new(args.json);
    notes.iter().chain(&judges.notes).for_each(|note| terminal.note(note));
    let (pipeline, report) = pollster::block_on(async {
        // Every picture takes the same networks.
        let runtime = args.device.open().await?.keeping(Keep::Fitting);
        let pipeline = Pipeline::open(runtime, model, evaluation.settings.storage())?;
        for prompt in &evaluation.prompts {
            pipeline.check(&evaluation.options(prompt, evaluation.settings.seed))?;
        }
        let made = evaluation.make(&pipeline, &faces, &mut store, &terminal).await?;
        // The judges need the room.
        pipeline.runtime().clear();
        let report = measure(&evaluation, &made, &store, &pipeline, &faces, judges, &terminal).await?;
        Ok::<_, Error>((pipeline, report))
    })?;
    terminal.finish();
    let json = serde_json::to_vec_pretty(&report).map_err(|e| Error::invalid("evaluation.json", e.to_string()))?;
    files.write_bytes(&report_file, &json)?;
    files.write_bytes(&page_file, write_page(&store, &evaluation, &report)?.as_bytes())?;
    files.commit()?;
    remember_choices(pipeline.runtime());
    if args.json {
        let row = |name: &str, mean: &Scores| serde_json::json!({ "name": name, "mean": mean });
        say!(
            "{}",
            serde_json::json!({
                "device": report.device,
                "report": report_file,
                "page": page_file,
                "without_identity": report.without_identity.mean,
                "adapters": report.adapters.iter().map(|a| row(&a.name, &a.mean)).collect::<Vec<_>>(),
                "notes": terminal.notes(),
            })
        );
    } else {
        print(&report);
        say!("{}", page_file.display());
    }
    Ok(())
}

/// Adapters by their names: given before `=`, else the file's without its ending.
fn open_adapters(args: &Args, models: &Models, model: &SdxlModel, notes: &mut Vec<String>) -> Result<Vec<Adapter>> {
    let named: Vec<_> = args.adapter.iter().map(|given| split_name(given)).collect();
    let named = if named.is_empty() { vec![(None, None)] } else { named };
    let layers = model.unet(Precision::F32)?.identity_layers()?;
    let mut adapters = Vec::with_capacity(named.len());
    for (name, file) in named {
        let file = models.adapter(file.as_deref())?;
        IdentityAdapter::new(&Checkpoint::open(&file)?, Precision::F32)?;
        notes.extend(unread_of_adapter(&file, Some(&layers))?.map(|unread| unread.to_string()));
        let stem = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        adapters.push(Adapter::open(name.unwrap_or_else(stem), file.clone())?);
    }
    Ok(adapters)
}

/// Name and file of `NAME=FILE`; a file whose own name has a `=` is a file.
fn split_name(given: &Path) -> (Option<String>, Option<PathBuf>) {
    let parts = given.to_str().filter(|_| !given.exists()).and_then(|text| text.split_once('='));
    match parts {
        Some((name, file)) if !name.trim().is_empty() => (Some(name.trim().to_owned()), Some(file.into())),
        _ => (None, Some(given.to_owned())),
    }
}

fn open_judges(args: &Args, faces: &FaceModels, clip: Option<ClipJudge>) -> Result<Judges> {
    let own = faces.recogniser()?;
    let recogniser = args.recogniser.clone().or_else(|| faces.other_recogniser()).unwrap_or_else(|| own.clone());
    check_no_folder(&recogniser).map_err(|_| Error::file(&recogniser, "is a folder; a recogniser is an ONNX file"))?;
    open_recogniser(&recogniser)?;
    let same = || Ok::<_, Error>(pulid_checkpoint::sha256_file(&own)? == pulid_checkpoint::sha256_file(&recogniser)?);
    let recogniser_is_the_adapters = recogniser == own || same()?;
    let mut notes = Vec::new();
    if recogniser_is_the_adapters {
        notes.push(
            "Face Sim is measured by the recogniser that the adapter itself reads, which flatters it: --recogniser names another one".into(),
        );
    }
    if clip.is_none() {
        notes.push(
            "CLIP-T and CLIP-I are left out: --clip names a CLIP in transformers' layout, for example openai/clip-vit-large-patch14".into(),
        );
    }
    Ok(Judges { recogniser, recogniser_is_the_adapters, clip, notes })
}

fn write_page(store: &Store, evaluation: &Evaluation, report: &Report) -> Result<String> {
    let mut photo = |person: usize| {
        let (name, bytes) = read_photo(&evaluation.people[person].photos[0])?;
        decode_photo(&name, &bytes)
    };
    page(report, &mut photo, &mut |name| store.read_named(name))
}

/// The table of means.
fn print(report: &Report) {
    let rows: Vec<_> = std::iter::once(&report.without_identity).chain(&report.adapters).collect();
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    say!("{:width$}  Face Sim  CLIP-T  CLIP-I  without a face", "");
    for (i, row) in rows.iter().enumerate() {
        let shown = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let Scores { pictures, faces, face_sim, clip_t, clip_i, .. } = row.mean;
        // A picture without identity stands in the report once for each person.
        let times = if i == 0 { report.people.len().max(1) } else { 1 };
        let (none, all) = ((pictures - faces) / times, pictures / times);
        let (face_sim, clip_t, clip_i) = (shown(face_sim, 3), shown(clip_t, 2), shown(clip_i, 3));
        say!("{:width$}  {face_sim:>8}  {clip_t:>6}  {clip_i:>6}  {none} of {all}", row.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_names_where_these_are_given() {
        let name = |text: &str| split_name(Path::new(text)).0;
        assert_eq!(name("old=a.safetensors").as_deref(), Some("old"));
        assert_eq!((name("a.safetensors"), name("=a.safetensors")), (None, None));
        assert_eq!(split_name(Path::new("new=b=c.bin")).1.unwrap(), Path::new("b=c.bin"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x=y.bin");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(split_name(&file), (None, Some(file)));
    }
}
