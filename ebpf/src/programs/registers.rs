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

/// The user registers that the kernel saved when the task entered it.
#[inline(always)]
pub fn saved() -> Option<Registers> {
    let address = if HAS_TASK_PT_REGS.load() != 0 {
        current_task_pt_regs()
    } else {
        read_kernel::<u64>(current_task() + offset_of!(task_stack))? + offset_of!(stack_to_pt_regs)
    };
    let regs = read_kernel::<pt_regs>(address)?;
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
