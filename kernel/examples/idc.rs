//! One end of the exam of IDC, or of its benchmark, in a guest. The other end is another guest, or
//! `linux/examples/idc.rs`.
//!
//! The command line has the words of `idc::exam::run`. With `listen=IP:PORT`, the ends meet over
//! TCP, through dom0's sockets, and the other end can reach this one at this address. Otherwise,
//! `order=` is the order of the links.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "asks Xen for the processor's time")]

extern crate alloc;

use alloc::string::{String, ToString};
use core::fmt::Display;
use core::net::SocketAddr;
use core::pin::pin;
use core::time::Duration;
use embassy_time::Timer;
use futures_util::future::{Either, select};
use idc::Node;
use idc::exam::bench::Used;
use idc::exam::{run, word};
use idc::tcp::Tcp;
use idc::xen::DEFAULT_ORDER;
use kernel::System;
use kernel::machine::guest;
use xen::abi::xen::__HYPERVISOR_VCPU_OP;
use xen::hypercall::Hypervisor;

kernel::entry!(main);

async fn main(system: System) -> Result<(), String> {
    let words = core::str::from_utf8(system.command_line()).map_err(text)?;
    let random = system.random().await.map_err(text)?;
    system.spawn(show_usage(system.clone()));
    let Some(listen) = word::<SocketAddr>(words, "listen")? else {
        let order = word(words, "order")?.unwrap_or(DEFAULT_ORDER);
        let transport = system.idc(order).await.map_err(text)?;
        return run(&Node::new(transport, random), words, || used(&system)).await;
    };
    let sockets = system.sockets(Default::default()).await.map_err(text)?;
    let acceptor = sockets.bind(listen).await.map_err(text)?;
    let transport = Tcp::new(&sockets, Some(listen));
    let (door, node) = (transport.clone(), Node::new(transport, random));
    let run = run(&node, words, || used(&system));
    match select(pin!(door.serve(&acceptor)), pin!(run)).await {
        Either::Left((error, _)) => Err(text(error)),
        Either::Right((result, _)) => result,
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// `struct vcpu_runstate_info` of `vcpu.h`.
#[derive(Default)]
#[repr(C)]
struct RunState {
    state: i32,
    since: u64,
    /// The nanoseconds in each state, of which the first one is to run.
    times: [u64; 4],
}

/// `VCPUOP_get_runstate_info`.
const GET_RUN_STATE: u64 = 4;

/// What this guest has used up.
fn used(system: &System) -> Used {
    let now = system.snapshot();
    let mut state = RunState::default();
    let to = (&raw mut state).expose_provenance() as u64;
    if let Some(guest) = guest() {
        // SAFETY: the hypervisor writes `state`, which has this operation's layout, and nothing
        // else, before it returns.
        unsafe { guest.xen.call(__HYPERVISOR_VCPU_OP, [GET_RUN_STATE, 0, to, 0]) };
    }
    Used {
        cpu: Duration::from_nanos(state.times[0]),
        hypercalls: now.hypercalls_total,
        notifications: now.notifications_total,
    }
}

/// Logs what is in use, whenever it has changed.
async fn show_usage(system: System) {
    let mut last = [0; 4];
    loop {
        let now = system.snapshot();
        let usage = [now.grants_in_use, now.foreign_pages, now.ports_open, now.quarantined_pages];
        if core::mem::replace(&mut last, usage) != usage {
            let [grants, foreign, ports, quarantined] = usage;
            log::info!(
                "in use: {grants} grants, {foreign} foreign pages, {ports} ports, {quarantined} \
                 quarantined; {} pages are free",
                now.free_pages
            );
        }
        Timer::after_millis(100).await;
    }
}
