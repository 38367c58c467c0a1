//! Names for files that are no JPEG, PNG or WebP, and what to do about them.

/// What a file is and how to make a photo of it that can be read, for a message that begins with the file's name.
pub(super) fn other_format(bytes: &[u8]) -> String {
    let (kind, advice) = name(bytes);
    format!("it is {kind}; {}", advice.unwrap_or("save it as JPEG, PNG or WebP"))
}

/// How to convert what iPhones and some Android phones store.
const HEIC: &str = "save it as JPEG: on an iPhone choose Settings > Camera > Formats > Most Compatible or share the photo by mail, on a Mac \
                    `sips -s format jpeg IN --out OUT.jpg`, elsewhere `heif-convert IN OUT.jpg` (libheif) or `magick IN OUT.jpg`";
const AVIF: &str = "save it as JPEG or PNG, for example with `avifdec IN OUT.png` (libavif) or `magick IN OUT.png`";

fn name(bytes: &[u8]) -> (&'static str, Option<&'static str>) {
    if let Some(found) = brands(bytes) {
        return found;
    }
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let text = || {
        std::str::from_utf8(&bytes[..bytes.len().min(512)]).ok().or_else(|| {
            // The last character may be cut.
            std::str::from_utf8(&bytes[..bytes.len().min(509)]).ok()
        })
    };
    if bytes.iter().all(|&byte| byte == 0) {
        return ("nothing but zeros, as a broken copy or download leaves", Some("copy or download it again"));
    }
    let kind = if starts(b"GIF8") {
        "a GIF image"
    } else if starts(b"%PDF") {
        "a PDF document"
    } else if starts(b"II*\0") || starts(b"MM\0*") || starts(b"II+\0") || starts(b"MM\0+") {
        "a TIFF image or a camera's raw file"
    } else if starts(b"FUJIFILMCCD-RAW") || starts(b"IIU\0") || starts(b"IIRO") {
        "a camera's raw file"
    } else if starts(b"BM") {
        "a BMP image"
    } else if starts(b"8BPS") {
        "a Photoshop document"
    } else if starts(&[0xff, 0x0a]) || starts(b"\0\0\0\x0cJXL ") {
        "a JPEG XL image"
    } else if starts(b"\0\0\0\x0cjP  ") || starts(&[0xff, 0x4f, 0xff, 0x51]) {
        "a JPEG 2000 image"
    } else if starts(&[0, 0, 1, 0]) {
        "an icon"
    } else if starts(b"qoif") {
        "a QOI image"
    } else if starts(&[0x1a, 0x45, 0xdf, 0xa3]) {
        "a video"
    } else if starts(b"PK\x03\x04") {
        "a zip archive"
    } else if starts(b"version https://git-lfs") {
        return ("a pointer of Git LFS and not the photo itself", Some("fetch it with `git lfs pull`"));
    } else if let Some(text) = text() {
        let text = text.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        match () {
            () if text.starts_with("<!doctype html") || text.starts_with("<html") => {
                return ("a web page and no photo", Some("download the photo itself and save it as JPEG, PNG or WebP"));
            }
            () if text.starts_with("<svg") || text.starts_with("<?xml") => "a drawing (SVG or XML)",
            () => "text and no image",
        }
    } else {
        "no image that can be read"
    };
    (kind, None)
}

/// The kinds of ISO's media files, by the brands that one is compatible with.
fn brands(bytes: &[u8]) -> Option<(&'static str, Option<&'static str>)> {
    let (&size, rest) = bytes.split_first_chunk::<4>()?;
    let rest = rest.strip_prefix(b"ftyp")?;
    let size = (u32::from_be_bytes(size) as usize).saturating_sub(8).clamp(4, 256);
    let all = &rest[..rest.len().min(size)];
    let has = |names: &[&[u8; 4]]| all.as_chunks::<4>().0.iter().any(|brand| names.contains(&brand));
    Some(if has(&[b"avif", b"avis"]) {
        ("an AVIF image", Some(AVIF))
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif"])
    {
        ("a HEIC image", Some(HEIC))
    } else if has(&[b"crx "]) {
        ("a camera's raw file", None)
    } else {
        ("a video", Some("take a still of it and save that as JPEG, PNG or WebP"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phones_and_strangers_files_are_named() {
        let heic = b"\0\0\0\x24ftypmif1\0\0\0\0mif1heicmiaf";
        for (bytes, words) in [
            (&heic[..], &["HEIC", "Most Compatible", "heif-convert"][..]),
            (b"\0\0\0\x18ftypheic\0\0\0\0heic", &["HEIC"]),
            (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", &["AVIF", "avifdec"]),
            (b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2", &["video", "still"]),
            (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", &["raw file"]),
            (b"\0\0\0\x08ftyp", &["video"]),
            (b"GIF89a", &["GIF"]),
            (&[0; 40], &["zeros", "again"]),
            (b"BM\x36\0\0\0", &["BMP"]),
            (b"\xff\x0a\xfa\x7f", &["JPEG XL"]),
            (b"II*\0\x08\0\0\0", &["TIFF", "raw"]),
            (b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]),
            (b"\n<!DOCTYPE html><title>403</title>", &["web page"]),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", &["SVG"]),
            ("Fotos: Ada und Größe".as_bytes(), &["text", "save it as JPEG"]),
            (b"\x01\x02\xff\xfe\x03", &["no image that can be read"]),
        ] {
            let message = other_format(bytes);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
