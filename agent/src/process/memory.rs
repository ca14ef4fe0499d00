//! Memory of other processes.
#![allow(unsafe_code)] // process_vm_readv(2).

/// Somebody's memory.
pub trait ReadBytes {
    /// Fills the start of `bytes` with what lies from an address on, and returns how much that was:
    /// less than wanted where memory ends or nobody may read it.
    fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> usize;

    /// Exactly so many bytes.
    fn read_array<const LEN: usize>(&self, addr: u64) -> Option<[u8; LEN]> {
        let mut bytes = [0; LEN];
        (self.read_bytes(addr, &mut bytes) == LEN).then_some(bytes)
    }

    /// A word of eight bytes.
    fn read_word(&self, addr: u64) -> Option<u64> {
        self.read_array(addr).map(u64::from_le_bytes)
    }
}

/// The memory of a process as it is now.
pub struct ProcessMemory(pub u32);

impl ReadBytes for ProcessMemory {
    fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> usize {
        let (Ok(pid), Ok(addr)) = (libc::pid_t::try_from(self.0), usize::try_from(addr)) else {
            return 0;
        };
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: addr as *mut _,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel writes the bytes that the local vector describes, and those are ours; it
        // checks the other's itself.
        let read =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        usize::try_from(read).unwrap_or(0)
    }
}
