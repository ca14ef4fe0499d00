//! User registers of the running task: the one place that knows the processor.

use aya_ebpf::{bindings::pt_regs, programs::PerfEventContext};
use hotspan_abi::syscalls::COMPAT;
use hotspan_ebpf::unwind::Registers;

use crate::{
    kernel_calls::{current_task, current_task_pt_regs, read_kernel},
    maps::{HAS_TASK_PT_REGS, offset_of},
};

/// Kernel addresses have the top bit set, on x86-64 and on arm64.
#[inline(always)]
pub fn is_kernel(ip: u64) -> bool {
    ip >> 63 == 1
}

/// The registers at the moment of the interrupt.
#[inline(always)]
pub fn interrupted(ctx: &PerfEventContext) -> Registers {
    // Whole words by volatile reads: the kernel refuses narrower loads from this context.
    macro_rules! read {
        ($($member:tt)+) => {
            // SAFETY: the context lives as long as the program runs.
            unsafe { core::ptr::read_volatile(&raw const (*ctx.ctx).regs.$($member)+) }
        };
    }
    #[cfg(bpf_target_arch = "x86_64")]
    let registers = Registers {
        ip: read!(rip),
        sp: read!(rsp),
        fp: read!(rbp),
        link: read!(rdi),
        aligned: read!(rbx),
        result: read!(rax),
        scratch: [read!(r10), read!(r11)],
    };
    #[cfg(bpf_target_arch = "aarch64")]
    let registers = Registers {
        ip: read!(pc),
        sp: read!(sp),
        fp: read!(regs[29]),
        link: read!(regs[30]),
        aligned: read!(regs[19]),
        result: read!(regs[0]),
        scratch: [read!(regs[9]), read!(regs[12])],
    };
    registers
}

/// Where the kernel saved the user registers when the task entered it.
#[inline(always)]
fn saved_address() -> Option<u64> {
    if HAS_TASK_PT_REGS.load() != 0 {
        return Some(current_task_pt_regs());
    }
    let stack = read_kernel::<u64>(current_task() + offset_of!(task_stack))?;
    Some(stack + offset_of!(stack_to_pt_regs))
}

/// Numbers of `execve` and `execveat`.
#[cfg(bpf_target_arch = "x86_64")]
pub const EXECVE: [u64; 2] = [59, 322];
/// Numbers of `execve` and `execveat`.
#[cfg(bpf_target_arch = "aarch64")]
pub const EXECVE: [u64; 2] = [221, 281];

/// Whether the task is replacing its program (`execve`, `execveat`). Its registers are still those of the
/// old one.
#[inline(always)]
pub fn is_in_exec() -> bool {
    let syscall = syscall_of_current().map(u64::from);
    syscall == Some(EXECVE[0]) || syscall == Some(EXECVE[1])
}

/// The number of the system call that the running thread is in, with [`COMPAT`] for one of a 32-bit program;
/// `None` outside of one, as in a page fault.
#[inline(always)]
pub fn syscall_of_current() -> Option<u32> {
    let address = saved_address()?;
    #[cfg(bpf_target_arch = "x86_64")]
    let (number, is_compat) = {
        // `orig_rax`, `rip` and `cs` lie side by side.
        let start = address + core::mem::offset_of!(pt_regs, orig_rax) as u64;
        let [number, _, segment] = read_kernel::<[u64; 3]>(start)?;
        (number as i32, segment == USER32_CS)
    };
    // `struct pt_regs` goes on behind what user space knows of it: `orig_x0`, then `syscallno`.
    #[cfg(bpf_target_arch = "aarch64")]
    let (number, is_compat) = {
        let number = read_kernel::<i32>(address + size_of::<pt_regs>() as u64 + 8)?;
        (number, is_compat(address))
    };
    let number = u32::try_from(number).ok()?;
    Some(if is_compat { number | COMPAT } else { number })
}

/// `__USER32_CS`; 64-bit programs can use it too, for calls by the table of 32-bit programs.
#[cfg(bpf_target_arch = "x86_64")]
const USER32_CS: u64 = 0x23;

/// Whether a call went through the table of 32-bit programs, by the registers at its entry.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn is_compat(regs: u64) -> bool {
    let segment = read_kernel::<u64>(regs + core::mem::offset_of!(pt_regs, cs) as u64);
    segment == Some(USER32_CS)
}

/// Whether a call went through the table of 32-bit programs, by the registers at its entry.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn is_compat(regs: u64) -> bool {
    /// `PSR_MODE32_BIT`.
    const MODE32: u64 = 0x10;
    let state = read_kernel::<u64>(regs + core::mem::offset_of!(pt_regs, pstate) as u64);
    state.is_some_and(|state| state & MODE32 != 0)
}

/// The user registers that the kernel saved when the task entered it.
#[inline(always)]
pub fn saved() -> Option<Registers> {
    let address = saved_address()?;
    #[cfg(bpf_target_arch = "x86_64")]
    let registers = {
        let regs = read_kernel::<pt_regs>(address)?;
        Registers {
            ip: regs.rip,
            sp: regs.rsp,
            fp: regs.rbp,
            link: regs.rdi,
            aligned: regs.rbx,
            result: regs.rax,
            scratch: [regs.r10, regs.r11],
        }
    };
    // Not all of them, which would take half of the program's stack: x0, x9 to x12, and from x19 on.
    #[cfg(bpf_target_arch = "aarch64")]
    let registers = {
        let result = read_kernel::<u64>(address)?;
        let [first, .., second] = read_kernel::<[u64; 4]>(address + 9 * 8)?;
        let [aligned, .., fp, link, sp, ip] = read_kernel::<[u64; 14]>(address + 19 * 8)?;
        Registers {
            ip,
            sp,
            fp,
            link,
            aligned,
            result,
            scratch: [first, second],
        }
    };
    Some(registers)
}
