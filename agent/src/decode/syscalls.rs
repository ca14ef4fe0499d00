//! Names of system calls and of errors, by their numbers.

use std::borrow::Cow;

use hotspan_abi::syscalls::COMPAT;
use syscall_numbers::Errno;

#[cfg(target_arch = "aarch64")]
use syscall_numbers::{aarch64::Sysno as Native, arm::Sysno as Compat};
#[cfg(target_arch = "x86_64")]
use syscall_numbers::{x86::Sysno as Compat, x86_64::Sysno as Native};

/// Set by programs of the x32 ABI: 64-bit calls with 32-bit pointers.
const X32: u32 = 1 << 30;

/// The name of a system call by its number, see [`hotspan_abi::syscalls::RowKey::number`]. One without a
/// name, which programs can make too, is named after its number.
#[must_use]
pub fn syscall_name(number: u32) -> Cow<'static, str> {
    let plain = number & !COMPAT;
    let name = if number & COMPAT != 0 {
        Compat::new(plain as usize).map(|known| known.name())
    } else {
        Native::new((plain & !X32) as usize).map(|known| known.name())
    };
    name.map_or_else(|| format!("syscall_{plain:#x}").into(), Cow::from)
}

/// The name of an error by its number.
#[must_use]
pub fn errno_name(errno: u32) -> Cow<'static, str> {
    let name = i32::try_from(errno)
        .ok()
        .and_then(|errno| Errno::new(errno).name());
    name.map_or_else(|| format!("E{errno}").into(), Cow::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_have_names() {
        assert_eq!(syscall_name(libc::SYS_openat as u32), "openat");
        assert_eq!(syscall_name(libc::SYS_exit_group as u32), "exit_group");
        assert_eq!(syscall_name(COMPAT | 3), "read");
        assert_eq!(syscall_name(5000), "syscall_0x1388");
        assert_eq!(syscall_name(u32::MAX), "syscall_0x7fffffff");
        for (errno, name) in [
            (2, "ENOENT"),
            (11, "EAGAIN"),
            (512, "ERESTARTSYS"),
            (4000, "E4000"),
        ] {
            assert_eq!(errno_name(errno), name);
        }
    }

    /// The C library's headers are another source.
    #[test]
    fn names_are_those_of_the_kernels_headers() {
        let headers = [
            "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
            "/usr/include/asm-generic/unistd.h",
        ];
        let header = headers[usize::from(cfg!(target_arch = "aarch64"))];
        let Ok(text) = std::fs::read_to_string(header) else {
            panic!("{header} is missing: install the package linux-libc-dev");
        };
        let mut known = 0;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("#define"), Some(name), Some(number)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if let (Some(name), Ok(number)) = (name.strip_prefix("__NR_"), number.parse()) {
                assert_eq!(syscall_name(number), name);
                known += 1;
            }
        }
        assert!(known > 250, "{known}");
    }
}
