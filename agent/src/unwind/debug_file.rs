//! The file that holds what was stripped off a binary.
//!
//! Source: GDB manual, "Debugging Information in Separate Files".

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use flate2::Crc;
use object::{ReadCache, ReadRef};

use super::{evidence::Observed, image::Image};
use crate::process::{LastLink, TargetRoot};

/// Where distributions put such files.
const DEBUG_FOLDER: &str = "usr/lib/debug";
/// A file whose checksum would have to be computed over more bytes is not the one: this takes a
/// tenth of a second. Binaries with a build id, all but old ones, need no checksum.
const MAX_CHECKSUM_BYTES: u64 = 256 << 20;
/// How much of it is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Finds the debug file of a binary that lies at `path` below `root`, and where it is. It must be
/// root's or the binary's owner's: in folders that are anybody's, others can put files too.
#[must_use]
pub fn find(binary: &Arc<File>, path: &Path, root: &TargetRoot) -> Option<(PathBuf, File)> {
    let owner = binary.metadata().ok()?.uid();
    let cache = ReadCache::new(Observed::new(binary.clone()));
    let image = Image::parse(&cache).ok()?;
    candidates(&image, path)
        .into_iter()
        .filter_map(|place| {
            let file = root.open_file(&place, &[owner], LastLink::Follow).ok()?;
            Some((place, file))
        })
        .find(|(_, file)| belongs(file, &image))
}

/// Where the debug file of a binary may be, from the root directory on, best first: by build id,
/// then by the name it tells, beside the binary and below the folder for debug files.
fn candidates<'a, R: ReadRef<'a>>(image: &Image<'a, R>, path: &Path) -> Vec<PathBuf> {
    let folder = Path::new(DEBUG_FOLDER);
    let mut paths = Vec::new();
    if let [first, rest @ ..] = image.build_id()
        && !rest.is_empty()
    {
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        paths.push(folder.join(format!(".build-id/{first:02x}/{rest}.debug")));
    }
    let link = image.debug_link();
    let name = link.and_then(|link| str::from_utf8(link.name).ok());
    // Only a plain name may follow a folder, or the file could name any in the root.
    let name = name.filter(|name| {
        let mut components = Path::new(name).components();
        matches!(components.next(), Some(Component::Normal(first)) if first == *name)
    });
    let parent = path.parent().and_then(|path| path.strip_prefix("/").ok());
    if let (Some(name), Some(parent)) = (name, parent) {
        paths.push(parent.join(name));
        paths.push(parent.join(".debug").join(name));
        paths.push(folder.join(parent).join(name));
    }
    paths
}

/// Whether a debug file belongs to a binary: it has the same build id or, where the binary has
/// none, the checksum that the binary tells.
fn belongs<'a, R: ReadRef<'a>>(debug_file: &File, image: &Image<'a, R>) -> bool {
    let id = match (image.build_id(), image.debug_link()) {
        ([], Some(link)) => return checksum(debug_file) == Some(link.crc),
        ([], None) => return false,
        (id, _) => id,
    };
    let Ok(debug_file) = debug_file.try_clone() else {
        return false;
    };
    let cache = ReadCache::new(Observed::new(debug_file.into()));
    Image::parse(&cache).is_ok_and(|debug_image| debug_image.build_id() == id)
}

fn checksum(file: &File) -> Option<u32> {
    let len = file.metadata().ok()?.len();
    if len > MAX_CHECKSUM_BYTES {
        return None;
    }
    let mut crc = Crc::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let bytes = (len - at).min(CHUNK_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..bytes], at).ok()?;
        crc.update(&buffer[..bytes]);
        at += bytes as u64;
    }
    Some(crc.sum())
}

#[cfg(test)]
mod tests;
