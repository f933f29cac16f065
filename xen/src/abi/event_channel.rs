//! `event_channel.h`: the operations on event channels, the 2-level ABI's limit, and the FIFO ABI.

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
/// Unmasks a port, and announces its event if there is one.
pub const EVTCHNOP_UNMASK: u32 = 9;
/// Gives Xen a virtual CPU's control block, and with the first one switches to the FIFO ABI.
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
/// Gives Xen the event array's next page.
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
/// Chooses the queue of a port's events.
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

/// Ports of a 64-bit domain under the 2-level ABI.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

/// The FIFO ABI's highest priority.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// The priority that a port has unless told otherwise.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// The lowest priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// The FIFO ABI's queues, one for each priority.
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;
/// The bit of an event word that says: there is an event.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// The bit that holds a port's events back.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// The bit that Xen sets as it puts the port into a queue.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// The bit that Xen sets while nobody may unmask the port.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// The bits from 0 on that have the number of the queue's next port.
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// Those bits.
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// Ports under the FIFO ABI.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;

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

/// Argument of [`EVTCHNOP_UNMASK`] (`struct evtchn_unmask`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnUnmask {
    /// The port.
    pub port: u32,
}

/// Argument of [`EVTCHNOP_INIT_CONTROL`] (`struct evtchn_init_control`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnInitControl {
    /// The guest frame that has the control block.
    pub control_gfn: u64,
    /// Where in it the block lies, in bytes: a multiple of 8.
    pub offset: u32,
    /// Whose block it is.
    pub vcpu: u32,
    /// Out: the bits of a link, [`EVTCHN_FIFO_LINK_BITS`].
    pub link_bits: u8,
    /// Unused.
    pub pad: [u8; 7],
}

/// Argument of [`EVTCHNOP_EXPAND_ARRAY`] (`struct evtchn_expand_array`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnExpandArray {
    /// The guest frame of the page.
    pub array_gfn: u64,
}

/// Argument of [`EVTCHNOP_SET_PRIORITY`] (`struct evtchn_set_priority`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnSetPriority {
    /// The port.
    pub port: u32,
    /// Its events' queue from now on.
    pub priority: u32,
}

/// A virtual CPU's queues (`struct evtchn_fifo_control_block`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnFifoControlBlock {
    /// A bit for each queue that was empty and is not any more.
    pub ready: u32,
    /// Unused.
    pub rsvd: u32,
    /// The first port of each queue, written as ports come to an empty one.
    pub head: [u32; EVTCHN_FIFO_MAX_QUEUES],
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
    assert!(size_of::<EvtchnUnmask>() == 4);
    assert!(size_of::<EvtchnInitControl>() == 24);
    assert!(offset_of!(EvtchnInitControl, link_bits) == 16);
    assert!(size_of::<EvtchnExpandArray>() == 8);
    assert!(size_of::<EvtchnSetPriority>() == 8);
    assert!(size_of::<EvtchnFifoControlBlock>() == 72);
    assert!(offset_of!(EvtchnFifoControlBlock, head) == 8);
    assert!(EVTCHN_FIFO_MAX_QUEUES as u32 == EVTCHN_FIFO_PRIORITY_MIN + 1);
};
