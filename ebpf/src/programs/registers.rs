//! User registers of the running task: the one place that knows the processor.

use aya_ebpf::{bindings::pt_regs, programs::PerfEventContext};
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
    };
    #[cfg(bpf_target_arch = "aarch64")]
    let registers = Registers {
        ip: read!(pc),
        sp: read!(sp),
        fp: read!(regs[29]),
        link: read!(regs[30]),
        aligned: read!(regs[19]),
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
    let Some(address) = saved_address() else {
        return false;
    };
    #[cfg(bpf_target_arch = "x86_64")]
    let syscall = read_kernel::<u64>(address + core::mem::offset_of!(pt_regs, orig_rax) as u64);
    // `struct pt_regs` goes on behind what user space knows of it: `orig_x0`, then `syscallno`.
    #[cfg(bpf_target_arch = "aarch64")]
    let syscall = read_kernel::<i32>(address + size_of::<pt_regs>() as u64 + 8).map(|n| n as u64);
    syscall == Some(EXECVE[0]) || syscall == Some(EXECVE[1])
}

/// The user registers that the kernel saved when the task entered it.
#[inline(always)]
pub fn saved() -> Option<Registers> {
    let regs = read_kernel::<pt_regs>(saved_address()?)?;
    #[cfg(bpf_target_arch = "x86_64")]
    let registers = Registers {
        ip: regs.rip,
        sp: regs.rsp,
        fp: regs.rbp,
        link: regs.rdi,
        aligned: regs.rbx,
    };
    #[cfg(bpf_target_arch = "aarch64")]
    let registers = Registers {
        ip: regs.pc,
        sp: regs.sp,
        fp: regs.regs[29],
        link: regs.regs[30],
        aligned: regs.regs[19],
    };
    Some(registers)
}
