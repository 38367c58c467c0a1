//! What the program leaves on the disk: all the files of a command, or none; and what its images and its log say.

mod support;

#[cfg(target_os = "linux")]
use serde_json::Value;
use std::path::Path;
#[cfg(unix)]
use support::program;
use support::{portrait, pulid, refuse, repository, succeed, tree};

const GENERATE: [&str; 9] =
    ["generate", "--prompt", "a person, in a garden", "--steps", "1", "--width", "64", "--height", "64"];

/// [`refuse`] before any work: no stage began.
fn refuse_at_once(folder: &Path, arguments: &[&str]) -> String {
    let message = refuse(folder, arguments);
    assert_eq!(message.lines().count(), 1, "{arguments:?}: something was done before: {message}");
    message
}

#[test]
fn names_that_cannot_be_had_are_known_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    for taken in ["out-1.png", "seen/1_mask.png"] {
        std::fs::create_dir_all(folder.path().join(taken)).unwrap();
    }
    std::fs::write(folder.path().join("file"), "text").unwrap();
    let ada = portrait("ada.jpg");
    let cases: [(&[&str], &str); 9] = [
        (&["--output", "out.png", "--batch", "2"], "out-1.png: cannot be written: it is a folder"),
        (&["--output", "x.png", "--save-latents", "x.png"], "x.png: is named for two outputs"),
        (&["--output", "x.png", "--save-latents", "./seen/../x.png"], "is named for two outputs"),
        (&["--output", "x.png", "--save-latents", "x-0.png", "--batch", "2"], "x-0.png: is named for two outputs"),
        (&["--output", "no/folder/x.png"], "there is no folder no/folder"),
        (&["--output", "x.png", "--save-latents", "file/x"], "there is no folder file"),
        (&["--output", "x.png", "--id", &ada, "--debug-dir", "file"], "file: is a file"),
        (&["--output", "x.png", "--id", &ada, "--debug-dir", "seen"], "1_mask.png: cannot be written: it is a folder"),
        (&["--output", "x.png", "--id", &ada, "--debug-dir", "x.png/deeper"], "as a file and as a folder"),
    ];
    for (flags, part) in cases {
        let message = refuse_at_once(folder.path(), &[&GENERATE[..], flags].concat());
        assert!(message.contains(part), "{part}: {message}");
    }
    let embed = ["embed", &ada, "--output", "seen/1_crop.png", "--debug-dir", "seen"];
    let message = refuse_at_once(folder.path(), &embed);
    // Images of the debug folder cannot meet tensors, which have no image's name.
    assert!(message.contains("1_crop.png: is to hold tensors"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn sockets_and_folders_that_take_no_files_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    // A real device would be lost if this went wrong.
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let refused = "socket: exists and is neither a file, a pipe nor a terminal";
    let latents = ["--output", "x.png", "--save-latents", "socket"];
    let message = refuse_at_once(folder.path(), &[&GENERATE[..], &latents].concat());
    assert!(message.contains(refused), "{message}");
    let message = refuse_at_once(folder.path(), &["embed", &portrait("ada.jpg"), "--output", "socket"]);
    assert!(message.contains(refused), "{message}");
    // A folder in which even root makes no files.
    let message = refuse_at_once(folder.path(), &[&GENERATE[..], &["--output", "/proc/self/x.png"]].concat());
    assert!(message.contains("/proc/self takes no files"), "{message}");

    let case = repository("tests/goldens/unet/even");
    let golden: Value = serde_json::from_slice(&std::fs::read(case.join("golden.json")).unwrap()).unwrap();
    let [weights, inputs] = [golden["weights"].as_str().unwrap(), "inputs.safetensors"].map(|name| case.join(name));
    let (weights, inputs) = (weights.to_string_lossy(), inputs.to_string_lossy());
    let run = ["run", "unet", "--weights", &weights, "--inputs", &inputs, "--dump-plan", "plan.txt", "--outputs"];
    for (outputs, part) in [("socket", refused), ("plan.txt", "plan.txt: is named for two outputs")] {
        let message = refuse_at_once(folder.path(), &[&run[..], &[outputs]].concat());
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused_before_a_photo_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let ada = portrait("ada.jpg");
    // An encoder alone has no part in the UNet.
    let encoder = repository("tests/goldens/id-former/weights/bare/weights.safetensors");
    let encoder = encoder.to_string_lossy();
    let cases: [(&[&str], &str); 9] = [
        (&["--num-zero", "5000"], "--num-zero <NUM_ZERO>': `5000` is not"),
        (&["--id-scale", "nan"], "--id-scale"),
        (&["--ortho", "v3"], "v3"),
        (&["--id-start", "0.9", "--id-end", "0.1"], "id-start"),
        (&["--adapter", "missing.safetensors"], "missing.safetensors"),
        (&["--adapter", &encoder], "no PuLID file"),
        (&["--guidance", "inf"], "--guidance"),
        (&["--batch", "1000000000"], "--batch"),
        (&["--steps", "5000"], "steps"),
    ];
    for (flags, part) in cases {
        let generate = ["generate", "--prompt", "a person", "--id", &ada, "--debug-dir", "seen", "--output", "x.png"];
        let message = refuse(folder.path(), &[&generate[..], flags].concat());
        assert!(message.contains(part), "{part}: {message}");
        assert!(!message.contains(" ...\n"), "{flags:?}: a stage began: {message}");
    }
}

#[cfg(unix)]
#[test]
fn signals_end_the_work_and_leave_no_file() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        ends_by(signal, code);
    }
}

#[cfg(unix)]
fn ends_by(signal: &str, code: i32) {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let ada = portrait("ada.jpg");
    let long = ["generate", "--prompt", "a photo of a person", "--steps", "1000", "--output", "long.png", "--id", &ada];
    let mut child = program(folder.path(), &long)
        .args(["--save-latents", "long.safetensors", "--debug-dir", "seen", "--autotune", "off"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The photo is read by then, and 1000 steps take long.
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let (mut log, mut line) = (String::new(), String::new());
    while line != "denoising ...\n" {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended before: {log}");
        log += &line;
    }
    assert!(log.contains("recognising the face ...\n"), "{log}");
    assert!(child.try_wait().unwrap().is_none(), "{log}");
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let asked = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(asked.elapsed() < Duration::from_secs(60), "it goes on after {signal}");
        std::thread::sleep(Duration::from_millis(50));
    };
    stderr.read_to_string(&mut log).unwrap();
    assert_eq!(status.code(), Some(code), "{signal}: {log}");
    assert!(log.ends_with("cancelled; nothing was written\n"), "{log}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// `nohup` has the program go on when its terminal is closed.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let long = ["generate", "--prompt", "a person", "--steps", "1000", "--autotune", "off", "--output", "a.png"];
    let inner = program(folder.path(), &long);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(inner.get_program());
    shell.args(inner.get_args()).current_dir(folder.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut child = shell.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "denoising ..."));
    let signal =
        |name: &str| assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    signal("-HUP");
    std::thread::sleep(std::time::Duration::from_millis(500));
    signal("-TERM");
    assert!(lines.any(|line| line == "cancelled; nothing was written"));
    assert_eq!(child.wait().unwrap().code(), Some(143), "the second signal ended it, not the first");
}

/// The chunks of a PNG file: kind and contents.
fn chunks(png: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n").expect("a PNG file");
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        found.push((String::from_utf8(rest[4..8].to_vec()).unwrap(), rest[8..8 + length].to_vec()));
        rest = &rest[12 + length..];
    }
    found
}

#[test]
fn pictures_say_what_made_them_and_logs_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let make = |flags: &[&str]| {
        let output = pulid(folder.path(), &[&GENERATE[..], &["--output", "a.png"], flags].concat());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{flags:?}: {log}");
        (chunks(&std::fs::read(folder.path().join("a.png")).unwrap()), log)
    };
    let text = |chunks: &[(String, Vec<u8>)], keyword: &str| {
        let found = chunks.iter().find_map(|(kind, bytes)| {
            let rest = bytes.strip_prefix(keyword.as_bytes())?.strip_prefix(b"\0")?;
            matches!(kind.as_str(), "tEXt" | "iTXt").then(|| String::from_utf8_lossy(rest).into_owned())
        });
        found.unwrap_or_default()
    };
    let pixels = |chunks: Vec<(String, Vec<u8>)>| -> Vec<u8> {
        chunks.into_iter().filter(|(kind, _)| kind == "IDAT").flat_map(|(_, bytes)| bytes).collect()
    };
    let source =
        ">http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>";

    let (with, log) = make(&["--seed", "-1", "--negative-prompt", "a hat", "--guidance", "2.5"]);
    let parameters = text(&with, "parameters");
    assert!(parameters.starts_with("a person, in a garden\nNegative prompt: a hat\nSteps: 1, "), "{parameters}");
    for part in ["CFG scale: 2.5", "Seed: 18446744073709551615", "Size: 64x64", "Model: sdxl", "Version: pulid-wgpu "] {
        assert!(parameters.contains(part), "{part}: {parameters}");
    }
    assert!(text(&with, "XML:com.adobe.xmp").contains(source), "{with:?}");
    // Plain lines where there is no terminal, two for a stage, none for a step.
    for stage in ["reading the prompt", "loading the UNet", "denoising", "decoding"] {
        let about = log.lines().filter(|line| line.starts_with(stage)).collect::<Vec<_>>();
        assert_eq!(about.len(), 2, "{stage}: {log}");
        assert_eq!(about[0], format!("{stage} ..."));
        assert!(about[1].starts_with(&format!("{stage}: ")) && about[1].ends_with(" s"), "{log}");
    }

    // -1 is 2^64 - 1, as torch.manual_seed has it.
    let same = ["--seed", "18446744073709551615", "--negative-prompt", "a hat", "--guidance", "2.5", "--no-metadata"];
    let (without, log) = make(&[&same[..], &["--json"]].concat());
    assert!(!log.contains("denoising"), "a report takes the place of the log: {log}");
    assert_eq!(text(&without, "parameters"), "");
    assert!(text(&without, "XML:com.adobe.xmp").contains(source), "{without:?}");
    let image_data = pixels(without);
    assert!(!image_data.is_empty() && image_data == pixels(with));
    let (other, _) = make(&["--seed", "1", "--negative-prompt", "a hat", "--guidance", "2.5"]);
    assert!(pixels(other) != image_data, "the seed counts");

    for seed in ["18446744073709551616", "-9223372036854775809", "1.5"] {
        let message = refuse(folder.path(), &[&GENERATE[..], &["--output", "b.png", "--seed", seed]].concat());
        assert!(message.contains("from -2^63 to 2^64-1"), "{message}");
    }
}

#[test]
fn all_files_of_a_command_are_there_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let names = || {
        let all = tree(folder.path()).into_iter().map(|path| path.strip_prefix(folder.path()).unwrap().to_owned());
        all.map(|path| path.to_string_lossy().replace('\\', "/")).collect::<Vec<_>>()
    };
    std::fs::write(folder.path().join("a-0.png"), "older").unwrap();
    let ada = portrait("ada.jpg");
    let flags = ["--output", "a.png", "--batch", "2", "--save-latents", "a.safetensors", "--id", &ada];
    let printed = succeed(folder.path(), &[&GENERATE[..], &flags, &["--debug-dir", "seen/today"]].concat());
    assert_eq!(printed, "a-0.png\na-1.png\n");
    let images =
        ["crop", "faces", "features_1", "features_2", "features_3", "features_4", "features_5", "gray", "mask"];
    let mut expected = ["a-0.png", "a-1.png", "a.safetensors", "seen", "seen/today"].map(str::to_owned).to_vec();
    expected.extend(images.map(|name| format!("seen/today/1_{name}.png")));
    assert_eq!(names(), expected);
    assert!(image::open(folder.path().join("a-0.png")).is_ok(), "the older file was replaced");
}
