//! `event_channel.h`: the operations on event channels, the 2-level ABI's limit, and the FIFO ABI.

/// Binds a port to an unbound port of another domain.
pub const EVTCHNOP_BIND_INTERDOMAIN: u32 = 0;
/// Binds a port to a virtual interrupt.
pub const EVTCHNOP_BIND_VIRQ: u32 = 1;
/// Closes a port.
pub const EVTCHNOP_CLOSE: u32 = 3;
/// Sends an event.
pub const EVTCHNOP_SEND: u32 = 4;
/// Allocates a port for another domain to bind to.
pub const EVTCHNOP_ALLOC_UNBOUND: u32 = 6;
/// Unmasks a port, and announces its event if one is pending.
pub const EVTCHNOP_UNMASK: u32 = 9;
/// Gives Xen a virtual CPU's control block, and with the first one switches to the FIFO ABI.
pub const EVTCHNOP_INIT_CONTROL: u32 = 11;
/// Gives Xen the event array's next page.
pub const EVTCHNOP_EXPAND_ARRAY: u32 = 12;
/// Chooses the queue of a port's events.
pub const EVTCHNOP_SET_PRIORITY: u32 = 13;

/// The number of ports of a 64-bit domain in the 2-level ABI.
pub const EVTCHN_2L_NR_CHANNELS: u32 = 4096;

/// The FIFO ABI's highest priority.
pub const EVTCHN_FIFO_PRIORITY_MAX: u32 = 0;
/// The initial priority of a port.
pub const EVTCHN_FIFO_PRIORITY_DEFAULT: u32 = 7;
/// The lowest priority.
pub const EVTCHN_FIFO_PRIORITY_MIN: u32 = 15;
/// The FIFO ABI's queues, one for each priority.
pub const EVTCHN_FIFO_MAX_QUEUES: usize = 16;
/// The bit of an event word for a pending event.
pub const EVTCHN_FIFO_PENDING: u32 = 31;
/// The bit that masks a port.
pub const EVTCHN_FIFO_MASKED: u32 = 30;
/// The bit for a port in a queue, which Xen sets.
pub const EVTCHN_FIFO_LINKED: u32 = 29;
/// The bit that Xen sets to keep the guest from unmasking the port.
pub const EVTCHN_FIFO_BUSY: u32 = 28;
/// The number of low bits, which are the next port of the queue.
pub const EVTCHN_FIFO_LINK_BITS: u32 = 17;
/// The mask of these bits.
pub const EVTCHN_FIFO_LINK_MASK: u32 = (1 << EVTCHN_FIFO_LINK_BITS) - 1;
/// The number of ports in the FIFO ABI.
pub const EVTCHN_FIFO_NR_CHANNELS: u32 = 1 << EVTCHN_FIFO_LINK_BITS;

structures! {
    /// Argument of [`EVTCHNOP_ALLOC_UNBOUND`] (`struct evtchn_alloc_unbound`).
    EvtchnAllocUnbound: 8 {
        /// The domain that gets the port.
        dom: u16 = 0,
        /// The domain that may bind to it.
        remote_dom: u16 = 2,
        /// Out: the port.
        port: u32 = 4,
    }

    /// Argument of [`EVTCHNOP_BIND_INTERDOMAIN`] (`struct evtchn_bind_interdomain`).
    EvtchnBindInterdomain: 12 {
        /// The domain that left its port unbound.
        remote_dom: u16 = 0,
        /// That port.
        remote_port: u32 = 4,
        /// Out: the caller's port.
        local_port: u32 = 8,
    }

    /// Argument of [`EVTCHNOP_BIND_VIRQ`] (`struct evtchn_bind_virq`).
    EvtchnBindVirq: 12 {
        /// The virtual interrupt (`VIRQ_*`).
        virq: u32 = 0,
        /// The virtual CPU to interrupt.
        vcpu: u32 = 4,
        /// Out: the port.
        port: u32 = 8,
    }

    /// Argument of [`EVTCHNOP_CLOSE`] (`struct evtchn_close`).
    EvtchnClose: 4 {
        /// The port.
        port: u32 = 0,
    }

    /// Argument of [`EVTCHNOP_SEND`] (`struct evtchn_send`).
    EvtchnSend: 4 {
        /// The caller's port.
        port: u32 = 0,
    }

    /// Argument of [`EVTCHNOP_UNMASK`] (`struct evtchn_unmask`).
    EvtchnUnmask: 4 {
        /// The port.
        port: u32 = 0,
    }

    /// Argument of [`EVTCHNOP_INIT_CONTROL`] (`struct evtchn_init_control`).
    EvtchnInitControl: 24 {
        /// The guest frame of the control block.
        control_gfn: u64 = 0,
        /// The offset of the block in the frame, in bytes: a multiple of 8.
        offset: u32 = 8,
        /// The virtual CPU.
        vcpu: u32 = 12,
        /// Out: the bits of a link, [`EVTCHN_FIFO_LINK_BITS`].
        link_bits: u8 = 16,
        /// Unused.
        pad: [u8; 7] = 17,
    }

    /// Argument of [`EVTCHNOP_EXPAND_ARRAY`] (`struct evtchn_expand_array`).
    EvtchnExpandArray: 8 {
        /// The guest frame of the page.
        array_gfn: u64 = 0,
    }

    /// Argument of [`EVTCHNOP_SET_PRIORITY`] (`struct evtchn_set_priority`).
    EvtchnSetPriority: 8 {
        /// The port.
        port: u32 = 0,
        /// The queue for its next events.
        priority: u32 = 4,
    }

    /// A virtual CPU's queues (`struct evtchn_fifo_control_block`).
    EvtchnFifoControlBlock: 72 {
        /// A bit per queue, set when an empty queue gets a port.
        ready: u32 = 0,
        /// Unused.
        rsvd: u32 = 4,
        /// The first port of each queue, written when an empty queue gets a port.
        head: [u32; EVTCHN_FIFO_MAX_QUEUES] = 8,
    }
}

const _: () = assert!(EVTCHN_FIFO_MAX_QUEUES as u32 == EVTCHN_FIFO_PRIORITY_MIN + 1);
