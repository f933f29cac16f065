//! `event_channel.h`: the operations on event channels, and the 2-level ABI's limit.

/// Binds a port to a port that another domain left unbound.
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// Binds a port to a virtual interrupt.
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// Closes a port.
pub const EVTCHNOP_CLOSE: u32 = 3;
/// Sends an event.
pub const EVTCHNOP_SEND: u32 = 4;
/// Allocates a port for another domain to bind to.
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;

/// Ports of a 64-bit domain under the 2-level ABI.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

/// Argument of [`EVTCHNOP_ALLOC_UNBOUND`] (`struct evtchn_alloc_unbound`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnAllocUnbound {
    /// Whose port it is to be.
    pub dom: u16,
    /// Who may bind to it.
    pub remote_dom: u16,
    /// Out: the port.
    pub port: u32,
}

/// Argument of [`EVTCHNOP_BIND_INTERDOMAIN`] (`struct evtchn_bind_interdomain`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnBindInterdomain {
    /// Whose unbound port.
    pub remote_dom: u16,
    /// That port.
    pub remote_port: u32,
    /// Out: the caller's port.
    pub local_port: u32,
}

/// Argument of [`EVTCHNOP_BIND_VIRQ`] (`struct evtchn_bind_virq`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnBindVirq {
    /// Which virtual interrupt.
    pub virq: u32,
    /// Which virtual CPU it shall interrupt.
    pub vcpu: u32,
    /// Out: the port.
    pub port: u32,
}

/// Argument of [`EVTCHNOP_CLOSE`] (`struct evtchn_close`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnClose {
    /// The port.
    pub port: u32,
}

/// Argument of [`EVTCHNOP_SEND`] (`struct evtchn_send`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnSend {
    /// The caller's port.
    pub port: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<EvtchnAllocUnbound>() == 8);
    assert!(offset_of!(EvtchnAllocUnbound, port) == 4);
    assert!(size_of::<EvtchnBindInterdomain>() == 12);
    assert!(offset_of!(EvtchnBindInterdomain, local_port) == 8);
    assert!(size_of::<EvtchnBindVirq>() == 12);
    assert!(size_of::<EvtchnClose>() == 4);
    assert!(size_of::<EvtchnSend>() == 4);
};
