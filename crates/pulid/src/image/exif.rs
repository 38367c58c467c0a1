//! The one EXIF entry that images of a model have: how they were made, as a comment.

/// Before a comment in UTF-16.
const UNICODE: &[u8] = b"UNICODE\0";

/// An EXIF block, from its TIFF header on, whose `UserComment` holds `text` in UTF-16BE, as AUTOMATIC1111's web UI writes it into JPEG
/// and WebP files, and as programs that show such parameters look for it.
///
/// A TIFF of two directories with an entry each: 44 bytes before the comment (EXIF 2.32, 4.6).
pub(super) fn user_comment(text: &str) -> Vec<u8> {
    const EXIF_DIRECTORY: u32 = 0x8769;
    const USER_COMMENT: u32 = 0x9286;
    const LONG: u32 = 4;
    const UNDEFINED: u32 = 7;
    let comment: Vec<u8> = UNICODE.iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let mut block = Vec::with_capacity(44 + comment.len());
    // Big-endian, the first directory after this header of 8 bytes.
    block.extend(b"MM\0\x2a\0\0\0\x08");
    let mut directory = |entry: u32, kind: u32, count: u32, value: u32| {
        block.extend(1_u16.to_be_bytes());
        block.extend((entry << 16 | kind).to_be_bytes());
        // No directory follows.
        [count, value, 0].iter().for_each(|word| block.extend(word.to_be_bytes()));
    };
    directory(EXIF_DIRECTORY, LONG, 1, 26);
    directory(USER_COMMENT, UNDEFINED, comment.len().try_into().unwrap_or(u32::MAX), 44);
    block.extend(comment);
    block
}
