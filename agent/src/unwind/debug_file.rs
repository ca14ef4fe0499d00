//! Where the file is that holds what was stripped off a binary.
//!
//! Source: GDB manual, "Debugging Information in Separate Files".

use std::path::{Component, Path, PathBuf};

use flate2::Crc;
use object::ReadRef;

use super::image::Image;

/// Where distributions put such files.
const DEBUG_FOLDER: &str = "usr/lib/debug";
/// A file whose checksum would have to be computed over more bytes is not the one.
const MAX_CHECKSUM_BYTES: u64 = 4 << 30;
/// How much of it is read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Where the debug file of a binary may be, best first: by build id, then by the name it tells,
/// beside the binary at `path` and below the folder for debug files. `path` is as the process sees
/// it, and `root` is where its root directory is.
#[must_use]
pub fn candidates<'a, R: ReadRef<'a>>(file: R, path: &Path, root: &Path) -> Vec<PathBuf> {
    let Ok(image) = Image::parse(file) else {
        return Vec::new();
    };
    let folder = root.join(DEBUG_FOLDER);
    let mut paths = Vec::new();
    if let [first, rest @ ..] = image.build_id()
        && !rest.is_empty()
    {
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        paths.push(folder.join(format!(".build-id/{first:02x}/{rest}.debug")));
    }
    let link = image.debug_link();
    let name = link.and_then(|link| str::from_utf8(link.name).ok());
    // Only a plain name may follow a folder, or the file could name any on the host.
    let name = name.filter(|name| {
        let mut components = Path::new(name).components();
        matches!(components.next(), Some(Component::Normal(first)) if first == *name)
    });
    let parent = path.parent().and_then(|path| path.strip_prefix("/").ok());
    if let (Some(name), Some(parent)) = (name, parent) {
        let beside = root.join(parent);
        paths.push(beside.join(name));
        paths.push(beside.join(".debug").join(name));
        paths.push(folder.join(parent).join(name));
    }
    paths
}

/// Whether a debug file belongs to a binary: it has the same build id or, where the binary has
/// none, the checksum that the binary tells.
#[must_use]
pub fn belongs<'a, R: ReadRef<'a>>(debug_file: R, file: R) -> bool {
    let (Ok(image), Ok(debug_image)) = (Image::parse(file), Image::parse(debug_file)) else {
        return false;
    };
    match (image.build_id(), image.debug_link()) {
        ([], Some(link)) => checksum(debug_file) == Some(link.crc),
        ([], None) => false,
        (id, _) => id == debug_image.build_id(),
    }
}

fn checksum<'a, R: ReadRef<'a>>(file: R) -> Option<u32> {
    let len = file.len().ok().filter(|&len| len <= MAX_CHECKSUM_BYTES)?;
    let mut crc = Crc::new();
    let mut offset = 0;
    while offset < len {
        let chunk = CHUNK_BYTES.min(len - offset);
        crc.update(file.read_bytes_at(offset, chunk).ok()?);
        offset += chunk;
    }
    Some(crc.sum())
}

#[cfg(test)]
mod tests;
