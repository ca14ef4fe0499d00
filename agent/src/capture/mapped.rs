//! Memory of maps that the agent shares with the programs.
#![allow(unsafe_code)] // It is mapped into our memory.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
};

use anyhow::{Context, Result};
use aya::{Ebpf, maps::Map};

use super::take_map;

/// The values of an array, one behind the other.
pub struct MappedArray {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory like any other.
unsafe impl Send for MappedArray {}

impl MappedArray {
    /// Maps that many bytes of an array that the kernel lets be mapped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(array: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                array.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Takes an array of a loaded object, which has so many entries. Also returns how long each is.
    pub fn take(programs: &mut Ebpf, name: &str, entries: u32) -> Result<(Self, usize)> {
        let Map::Array(array) = take_map(programs, name)? else {
            anyhow::bail!("the map {name} is no array");
        };
        let value_bytes = array.info()?.value_size() as usize;
        let memory = Self::new(array.fd().as_fd(), value_bytes * entries as usize);
        let memory = memory.with_context(|| format!("cannot map {name} into memory"))?;
        Ok((memory, value_bytes))
    }

    /// A value at an offset in bytes, which must be aligned as the type says.
    pub fn at<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        (end <= self.len && offset.is_multiple_of(align_of::<T>()))
            // SAFETY: it lies inside of the mapping.
            .then(|| unsafe { self.start.add(offset).cast() })
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
