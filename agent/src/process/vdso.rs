//! The vDSO: code that the kernel maps into every process from no file.
#![allow(unsafe_code)] // It exists only in memory, at an address the kernel tells.

use std::{
    ffi::CString,
    fs::File,
    io::Write,
    os::fd::{FromRawFd, OwnedFd},
};

/// The vDSO as a file. All 64-bit processes have the same, so our own serves for each.
pub fn image() -> Option<File> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, rest) = line.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(rest.split(' ').next()?, 16).ok()?;
    // SAFETY: the kernel keeps these pages mapped and readable as long as the process lives.
    let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, end.checked_sub(start)?) };
    let name = CString::new("vdso").ok()?;
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_vdso_is_an_elf_file() {
        let file = super::image().unwrap();
        assert!(
            !super::super::ElfFacts::read(&file)
                .unwrap()
                .segments
                .is_empty()
        );
    }
}
