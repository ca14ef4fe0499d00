use std::io::Write;

use super::*;

/// A program header's fields: type, offset, size.
type Segment = (u32, u64, u64);

/// An ELF file with a build id note and, in a section, a link to a debug file.
fn elf(build_id: &[u8], link: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, build_id.len() as u32, 3] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"GNU\0");
    note.extend(build_id);
    let names = b"\0.gnu_debuglink\0.shstrtab\0";
    let (note_at, link_at) = (0x100, 0x200);
    let (names_at, headers_at) = (0x300, 0x380);
    let mut file = vec![0; headers_at + 3 * 64];
    file[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x20, &64_u64.to_le_bytes());
    put(0x28, &(headers_at as u64).to_le_bytes());
    let halves = [64_u16, 56, 1, 64, 3, 2].map(u16::to_le_bytes);
    put(0x34, halves.as_flattened());
    let (kind, offset, size): Segment = (
        4,
        note_at,
        if build_id.is_empty() {
            0
        } else {
            note.len() as u64
        },
    );
    put(64, &kind.to_le_bytes());
    put(64 + 8, &offset.to_le_bytes());
    put(64 + 32, &size.to_le_bytes());
    put(64 + 48, &4_u64.to_le_bytes());
    put(note_at as usize, &note);
    put(link_at, link);
    put(names_at, names);
    for (index, name, at, len) in [(1, 1, link_at, link.len()), (2, 16, names_at, names.len())] {
        let header = headers_at + 64 * index;
        put(header, &(name as u32).to_le_bytes());
        put(header + 4, &1_u32.to_le_bytes());
        put(header + 24, &(at as u64).to_le_bytes());
        put(header + 32, &(len as u64).to_le_bytes());
    }
    file
}

fn paths(file: &[u8]) -> Vec<String> {
    let paths = candidates(&Image::parse(file).unwrap(), "/opt/app/bin".as_ref());
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn build_id_comes_before_the_link() {
    assert_eq!(
        paths(&elf(
            &[0xab, 0x01, 0x02],
            b"bin.debug\0\0\0\x01\x02\x03\x04"
        )),
        [
            "usr/lib/debug/.build-id/ab/0102.debug",
            "opt/app/bin.debug",
            "opt/app/.debug/bin.debug",
            "usr/lib/debug/opt/app/bin.debug",
        ]
    );
    assert!(paths(&elf(&[], b"")).is_empty());
}

#[test]
fn links_name_nothing_but_a_file() {
    for name in ["..", ".", "/etc/shadow", "../x", "a/b", ""] {
        let mut link = name.as_bytes().to_vec();
        link.resize((name.len() + 4) & !3, 0);
        link.extend([0; 4]);
        assert!(paths(&elf(&[], &link)).is_empty(), "{name}");
    }
    // Cut off before the checksum.
    assert!(paths(&elf(&[], b"bin\0")).is_empty());
}

#[test]
fn debug_file_has_the_same_build_id_or_the_checksum() {
    let bytes = elf(&[1, 2, 3], b"");
    let debug_file = file(&bytes);
    let belongs = |binary: &[u8]| belongs(&debug_file, &Image::parse(binary).unwrap());
    assert!(belongs(&elf(&[1, 2, 3], b"")));
    assert!(!belongs(&elf(&[1, 2, 4], b"")));
    assert!(!belongs(&elf(&[], b"")));
    let mut crc = Crc::new();
    crc.update(&bytes);
    let link = |crc: u32| [b"x\0\0\0".as_slice(), &crc.to_le_bytes()].concat();
    assert!(belongs(&elf(&[], &link(crc.sum()))));
    assert!(!belongs(&elf(&[], &link(crc.sum() ^ 1))));
}

#[test]
fn debug_file_is_found_below_the_root_and_nowhere_else() {
    let link = |crc: u32| [b"x\0\0\0".as_slice(), &crc.to_le_bytes()].concat();
    let binary = Arc::new(file(&elf(&[0xab, 1], &link(0))));
    let folder = tempfile::tempdir().unwrap();
    let root = TargetRoot::open(folder.path()).unwrap();
    let find = || find(&binary, "/opt/bin".as_ref(), &root).map(|(path, _)| path);
    let write = |path: &str, build_id: &[u8]| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, elf(build_id, b"")).unwrap();
    };
    assert_eq!(find(), None);
    // Another build's.
    write("opt/x", &[0xab, 2]);
    assert_eq!(find(), None);
    write("opt/.debug/x", &[0xab, 1]);
    assert_eq!(find(), Some("opt/.debug/x".into()));
    // Some distributions have the file elsewhere and a link to it, by build id.
    let by_build_id = folder.path().join("usr/lib/debug/.build-id/ab/01.debug");
    std::fs::create_dir_all(by_build_id.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/usr/lib/debug/opt/bin", &by_build_id).unwrap();
    assert_eq!(find(), Some("opt/.debug/x".into()));
    write("usr/lib/debug/opt/bin", &[0xab, 1]);
    assert_eq!(find(), Some("usr/lib/debug/.build-id/ab/01.debug".into()));
}
