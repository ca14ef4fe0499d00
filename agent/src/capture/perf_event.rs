//! Kernel perf events: the clock that drives the sampler, and the side band that tells of mappings,
//! names and forks.
#![allow(unsafe_code)] // perf_event_open, its ring and its ioctls have no safe wrapper here.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya_obj::generated::{
    perf_event_mmap_page,
    perf_event_sample_format::{PERF_SAMPLE_TID, PERF_SAMPLE_TIME},
    perf_sw_ids::{PERF_COUNT_SW_CPU_CLOCK, PERF_COUNT_SW_DUMMY},
    perf_type_id::PERF_TYPE_SOFTWARE,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::bpf_syscall::{Scope, attach_to_event, open_event_with, plain_event};

const IOC_ENABLE: libc::Ioctl = 0x2400;
const IOC_DISABLE: libc::Ioctl = 0x2401;

fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests take a number.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The clock of one CPU: runs the sampling program `rate_hz` times a second unless the CPU idles.
pub struct Sampler(OwnedFd);

impl Sampler {
    /// Opens the clock, stopped.
    ///
    /// # Errors
    /// The kernel's: `EACCES` without the right, `EINVAL` above its highest rate.
    pub fn open(cpu: u32, rate_hz: u32, program: BorrowedFd<'_>) -> io::Result<Self> {
        let mut attr = plain_event(PERF_TYPE_SOFTWARE as u32, PERF_COUNT_SW_CPU_CLOCK as u64);
        attr.__bindgen_anon_1.sample_freq = u64::from(rate_hz);
        attr.set_freq(1);
        attr.set_exclude_idle(1);
        let fd = open_event_with(&attr, Scope::Cpu(cpu))?;
        attach_to_event(fd.as_fd(), program)?;
        Ok(Self(fd))
    }

    /// Starts the clock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&self) -> io::Result<()> {
        ioctl(&self.0, IOC_ENABLE, 0)
    }

    /// Stops the clock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&self) -> io::Result<()> {
        ioctl(&self.0, IOC_DISABLE, 0)
    }
}

/// Data pages of one CPU's side band: room for about a thousand mappings between two reads.
const SIDE_BAND_BYTES: usize = 128 << 10;
const _: () = assert!(SIDE_BAND_BYTES.is_power_of_two());

/// The side band of one CPU: records of executable mappings, names, forks and exits.
pub struct SideBand {
    fd: OwnedFd,
    ring: Ring,
    record: Vec<u8>,
}

impl SideBand {
    /// Opens and starts the side band.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(cpu: u32) -> io::Result<Self> {
        let mut attr = plain_event(PERF_TYPE_SOFTWARE as u32, PERF_COUNT_SW_DUMMY as u64);
        attr.sample_type = PERF_SAMPLE_TID as u64 | PERF_SAMPLE_TIME as u64;
        attr.set_sample_id_all(1);
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.set_task(1);
        attr.set_use_clockid(1);
        attr.clockid = libc::CLOCK_MONOTONIC;
        // Whoever waits is woken by every record: a process may end a moment after it started.
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = 1;
        // Build ids are not asked for: kernels up to 6.18 then mark the records of other readers, too, as
        // having one, and perf 6.1 dies of that.
        let fd = open_event_with(&attr, Scope::Cpu(cpu))?;
        let ring = Ring::map(&fd)?;
        ioctl(&fd, IOC_ENABLE, 0)?;
        Ok(Self {
            fd,
            ring,
            record: Vec::new(),
        })
    }

    /// Hands every record that has arrived to `take`, oldest first.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let head = self.ring.head();
        let mut tail = self.ring.tail;
        // A record is a header of 8 bytes (type, misc, size) and its body.
        while head.wrapping_sub(tail) >= 8 {
            let mut header = [0; 8];
            self.ring.copy(tail, &mut header);
            let size = u64::from(u16::from_ne_bytes([header[6], header[7]]));
            if size < 8 || size > head.wrapping_sub(tail) {
                tail = head; // Not a record: the kernel never writes one, so give this batch up.
                break;
            }
            self.record.resize(size as usize, 0);
            self.ring.copy(tail, &mut self.record);
            take(&self.record);
            tail = tail.wrapping_add(size);
        }
        self.ring.release(tail);
    }
}

impl AsFd for SideBand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Something to wait on, readable whenever one of these has news.
///
/// # Errors
/// The kernel's.
pub fn readiness<'a>(
    sources: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: takes a flag.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    for source in sources {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        let member = source.as_raw_fd();
        // SAFETY: both descriptors are open, and the event lives as long as the call.
        let result = unsafe {
            libc::epoll_ctl(
                epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                member,
                &raw mut event,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the descriptor is owned by what it is registered under, and stays the same.
    unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }.map_err(io::Error::from)
}

/// A perf ring: a page of positions, then the data.
struct Ring {
    base: NonNull<u8>,
    bytes: usize,
    page_bytes: usize,
    tail: u64,
}

impl Ring {
    fn map(fd: &OwnedFd) -> io::Result<Self> {
        // SAFETY: asks for a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = page_bytes + SIDE_BAND_BYTES;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            base,
            bytes,
            page_bytes,
            tail: 0,
        })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both positions lie in the first page of the mapping, which is `self`'s.
        let at = unsafe { self.base.add(offset) };
        // SAFETY: they are aligned 8-byte words that the kernel and we access as atomics.
        unsafe { at.cast::<AtomicU64>().as_ref() }
    }

    fn head(&self) -> u64 {
        self.position(std::mem::offset_of!(perf_event_mmap_page, data_head))
            .load(Ordering::Acquire)
    }

    fn release(&mut self, tail: u64) {
        self.tail = tail;
        self.position(std::mem::offset_of!(perf_event_mmap_page, data_tail))
            .store(tail, Ordering::Release);
    }

    /// Copies what lies from position `from` on, around the end of the ring when need be.
    fn copy(&self, from: u64, out: &mut [u8]) {
        let start = from as usize & (SIDE_BAND_BYTES - 1);
        let first = out.len().min(SIDE_BAND_BYTES - start);
        // SAFETY: the data begins one page into the mapping.
        let data = unsafe { self.base.add(self.page_bytes) };
        // SAFETY: `start` is inside the data.
        let at = unsafe { data.add(start) };
        // SAFETY: `first` ends with the data at most, and the kernel writes only behind the head.
        unsafe { ptr::copy_nonoverlapping(at.as_ptr(), out.as_mut_ptr(), first) };
        let rest = &mut out[first..];
        // SAFETY: a record is at most 64 KiB, less than the data, so the rest lies at its start.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), rest.as_mut_ptr(), rest.len()) };
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
