//! Sections of ELF files that are packed (`SHF_COMPRESSED`; System V ABI, chapter 4, `Elf64_Chdr`).

use std::io::Read;

use flate2::bufread::ZlibDecoder;
use object::elf::{ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD};

/// A packed section that asks for more memory than this to be unpacked is refused.
const MAX_WINDOW_BYTES: u32 = 8 << 20;

/// Unpacks the content of a section, which is packed in this way; `None` for an unknown one. It may be
/// much more than the section claims: read no more than that.
#[must_use]
pub fn unpacker(ch_type: u32, packed: &[u8]) -> Option<Box<dyn Read + '_>> {
    match ch_type {
        ELFCOMPRESS_ZLIB => Some(Box::new(ZlibDecoder::new(packed))),
        ELFCOMPRESS_ZSTD => {
            let mut unpacker = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
            unpacker.window_log_max(MAX_WINDOW_BYTES.ilog2()).ok()?;
            Some(Box::new(unpacker))
        }
        _ => None,
    }
}
