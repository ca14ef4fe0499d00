//! What goes wrong with TCP connections: segments that are sent again, connections that are cut.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::resources::{Event, EventKey};

use super::{event_rows::add, target::id_of_cgroup};
use crate::{
    kernel_calls::{kernel_word, read_kernel},
    maps::resource_offset,
};

/// `tcp_retransmit_skb(sock, skb, …)`
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn tcp_retransmit(ctx: RawTracePointContext) -> i32 {
    add(of_socket(ctx.arg::<u64>(0), Event::TcpRetransmit), 0);
    0
}

/// `tcp_retransmit_synack(sock, request)`
#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn tcp_retransmit_synack(ctx: RawTracePointContext) -> i32 {
    add(of_socket(ctx.arg::<u64>(0), Event::TcpSynackRetransmit), 0);
    0
}

/// `tcp_send_reset(sock, skb, …)`; there may be no socket.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: RawTracePointContext) -> i32 {
    add(of_socket(ctx.arg::<u64>(0), Event::TcpResetSent), 0);
    0
}

/// `tcp_receive_reset(sock)`
#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: RawTracePointContext) -> i32 {
    add(of_socket(ctx.arg::<u64>(0), Event::TcpResetReceived), 0);
    0
}

/// An event of the cgroup that made a socket.
#[inline(always)]
fn of_socket(socket: u64, event: Event) -> EventKey {
    /// `TCP_TIME_WAIT`: what is left of a connection is shorter, and knows no cgroup.
    const TIME_WAIT: u8 = 6;
    /// `TCP_NEW_SYN_RECV`: the same of one that begins.
    const NEW_SYN_RECV: u8 = 12;
    let state = read_kernel::<u8>(socket + resource_offset!(sock_state)).unwrap_or(TIME_WAIT);
    let is_whole = state != TIME_WAIT && state != NEW_SYN_RECV;
    let group = if socket != 0 && is_whole {
        kernel_word(socket + resource_offset!(sock_cgroup))
    } else {
        0
    };
    // Before Linux 5.15, the lowest bit says that it is no cgroup.
    let cgroup = if group & 1 == 0 {
        id_of_cgroup(group)
    } else {
        0
    };
    EventKey {
        cgroup,
        disk: 0,
        event: event as u32,
    }
}
