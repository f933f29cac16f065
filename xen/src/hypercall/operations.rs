//! The hypercalls that a guest needs, with plain arguments and results.

use super::Hypervisor;
use crate::abi::{
    event_channel::*, grant_table::*, hvm_op::*, hvm_params::*, memory::*, sched::*, vcpu::*,
    version::*, xen::*,
};
use crate::{DomId, Errno, Gfn, Port};

/// Why a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It is done.
    Poweroff,
    /// It wants to be started again.
    Reboot,
    /// It found itself broken.
    Crash,
}

/// The hypervisor's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Before the dot.
    pub major: u16,
    /// After it.
    pub minor: u16,
}

/// The operations of every [`Hypervisor`]. They fail with the error that the hypervisor answers;
/// see Xen's headers for those.
pub trait Operations: Hypervisor {
    /// Allocates a port that `remote` may bind to.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno> {
        let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote.0, port: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, &mut op) }?;
        Ok(Port(op.port))
    }

    /// Binds a new port to one that `remote` allocated for this domain.
    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, Errno> {
        let mut op =
            EvtchnBindInterdomain { remote_dom: remote.0, remote_port: port.0, local_port: 0 };
        // SAFETY: the structure is this operation's.
        unsafe {
            operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN, &mut op)
        }?;
        Ok(Port(op.local_port))
    }

    /// Binds a new port to a virtual interrupt (`VIRQ_*`) of a virtual CPU.
    fn bind_virq(&self, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        let mut op = EvtchnBindVirq { virq, vcpu, port: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ, &mut op) }?;
        Ok(Port(op.port))
    }

    /// Closes a port.
    fn close_port(&self, port: Port) -> Result<(), Errno> {
        // SAFETY: the structure is this operation's.
        unsafe {
            operate(
                self,
                __HYPERVISOR_EVENT_CHANNEL_OP,
                EVTCHNOP_CLOSE,
                &mut EvtchnClose { port: port.0 },
            )
        }
    }

    /// Sends an event over a port.
    #[inline]
    fn send(&self, port: Port) -> Result<(), Errno> {
        // SAFETY: the structure is this operation's.
        unsafe {
            operate(
                self,
                __HYPERVISOR_EVENT_CHANNEL_OP,
                EVTCHNOP_SEND,
                &mut EvtchnSend { port: port.0 },
            )
        }
    }

    /// Unmasks a port, and announces its event if there is one.
    fn unmask_port(&self, port: Port) -> Result<(), Errno> {
        let mut op = EvtchnUnmask { port: port.0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_UNMASK, &mut op) }
    }

    /// Switches to the FIFO ABI of event channels, with virtual CPU 0's control block at the start of a
    /// guest frame.
    ///
    /// # Safety
    /// The frame is a page of the domain's own memory. Xen reads and writes it from now on, so nothing
    /// else may be in it, and it is reached through [`Shared`](crate::Shared) alone.
    unsafe fn init_event_control(&self, control: Gfn) -> Result<(), Errno> {
        let mut op = EvtchnInitControl {
            control_gfn: control.0,
            offset: 0,
            vcpu: 0,
            link_bits: 0,
            pad: [0; 7],
        };
        // SAFETY: the structure is this operation's; the caller gave the frame up.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_INIT_CONTROL, &mut op) }
    }

    /// Gives the FIFO ABI's event array its next page.
    ///
    /// # Safety
    /// As for [`init_event_control`](Operations::init_event_control).
    unsafe fn expand_event_array(&self, page: Gfn) -> Result<(), Errno> {
        let mut op = EvtchnExpandArray { array_gfn: page.0 };
        // SAFETY: the structure is this operation's; the caller gave the frame up.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY, &mut op) }
    }

    /// Chooses the queue for a port's next events, in the FIFO ABI: 0 is the first, 15 the last.
    fn set_port_priority(&self, port: Port, priority: u32) -> Result<(), Errno> {
        let mut op = EvtchnSetPriority { port: port.0, priority };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SET_PRIORITY, &mut op) }
    }

    /// The grant table's frames, now and at most.
    fn grant_table_size(&self) -> Result<(u32, u32), Errno> {
        let mut op = GnttabQuerySize { dom: DOMID_SELF, nr_frames: 0, max_nr_frames: 0, status: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_QUERY_SIZE, &mut op) }?;
        if op.status == GNTST_OKAY {
            Ok((op.nr_frames, op.max_nr_frames))
        } else {
            log::error!("Xen does not tell the grant table's size (status {})", op.status);
            Err(Errno::EIO)
        }
    }

    /// Makes the grant table one of version 1. [`Errno::EBUSY`] while it is another's and in use.
    fn set_grant_table_version_1(&self) -> Result<(), Errno> {
        let mut op = GnttabSetVersion { version: 1 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SET_VERSION, &mut op) }
    }

    /// Has the shared info page appear at a guest frame.
    ///
    /// # Safety
    /// The frame is a page of memory that nothing uses: its content is lost, and Xen writes to it
    /// from now on. It is reached through [`Shared`](crate::Shared) alone.
    unsafe fn map_shared_info(&self, at: Gfn) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { add_to_physmap(self, XENMAPSPACE_SHARED_INFO, 0, at) }
    }

    /// Has frame `index` of the grant table appear at a guest frame; the table grows to have it.
    ///
    /// # Safety
    /// As for [`map_shared_info`](Operations::map_shared_info).
    unsafe fn map_grant_frame(&self, index: u32, at: Gfn) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { add_to_physmap(self, XENMAPSPACE_GRANT_TABLE, index.into(), at) }
    }

    /// How many pages the domain has, those included that Xen keeps for what is populated on demand, and
    /// its special pages.
    fn current_reservation(&self) -> Result<u64, Errno> {
        let mut op = MemoryDomain { domid: DOMID_SELF };
        let pointer = (&raw mut op).expose_provenance() as u64;
        // SAFETY: the structure is this operation's, and lives during the call.
        Errno::check(unsafe {
            self.call(__HYPERVISOR_MEMORY_OP, [XENMEM_CURRENT_RESERVATION.into(), pointer, 0, 0])
        })
    }

    /// The memory map that the toolstack has set: fills places from the first on, and says how many.
    fn memory_map(&self, places: &mut [E820Entry]) -> Result<usize, Errno> {
        let room = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let buffer = places.as_mut_ptr().expose_provenance() as u64;
        let mut op = MemoryMap { nr_entries: room, buffer };
        // SAFETY: the structure is this operation's, and names places that live and are borrowed here.
        unsafe { operate(self, __HYPERVISOR_MEMORY_OP, XENMEM_MEMORY_MAP, &mut op) }?;
        Ok((op.nr_entries as usize).min(places.len()))
    }

    /// Gives memory back to Xen: extents of 2^`order` pages from these frames on. Says how many extents
    /// are gone, from the first; Xen did not take the others.
    ///
    /// # Safety
    /// The frames are the domain's memory and nobody uses them: what was there is lost, and until they
    /// are [populated](Operations::populate_physmap) nothing is there.
    unsafe fn decrease_reservation(&self, frames: &[Gfn], order: u32) -> Result<usize, Errno> {
        // SAFETY: passed on to the caller.
        unsafe { change_reservation(self, XENMEM_DECREASE_RESERVATION, frames, order) }
    }

    /// Takes memory from Xen, for extents of 2^`order` pages from these frames on. Says how many have
    /// some, from the first: the domain may have no more, or Xen has none.
    ///
    /// # Safety
    /// There is nothing at these frames now.
    unsafe fn populate_physmap(&self, frames: &[Gfn], order: u32) -> Result<usize, Errno> {
        // SAFETY: passed on to the caller. Xen writes to the list only for domains that know machine
        // frames, and this one does not.
        unsafe { change_reservation(self, XENMEM_POPULATE_PHYSMAP, frames, order) }
    }

    /// Reads a parameter (`HVM_PARAM_*`) of this domain.
    fn hvm_param(&self, index: u32) -> Result<u64, Errno> {
        let mut op = HvmParam { domid: DOMID_SELF, pad: 0, index, value: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_HVM_OP, HVMOP_GET_PARAM, &mut op) }?;
        Ok(op.value)
    }

    /// Has events delivered as an interrupt vector, past the local APIC. Its handler clears
    /// `evtchn_upcall_pending` and needs no end of interrupt.
    fn set_callback_vector(&self, vector: u8) -> Result<(), Errno> {
        let via = HVM_PARAM_CALLBACK_TYPE_VECTOR << HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT;
        let value = via | u64::from(vector);
        let mut op = HvmParam { domid: DOMID_SELF, pad: 0, index: HVM_PARAM_CALLBACK_IRQ, value };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_HVM_OP, HVMOP_SET_PARAM, &mut op) }
    }

    /// Suspends the domain, for the toolstack to save it, and returns once it goes on: whether it is still
    /// the same domain, which was not destroyed after it was saved, or was not saved at all.
    fn suspend(&self) -> Result<bool, Errno> {
        let pointer = &mut SchedShutdown { reason: SHUTDOWN_SUSPEND };
        let pointer = (&raw mut *pointer).expose_provenance() as u64;
        // SAFETY: the structure is this operation's, and lives during the call.
        let result =
            unsafe { self.call(__HYPERVISOR_SCHED_OP, [SCHEDOP_SHUTDOWN.into(), pointer, 0, 0]) };
        Errno::check(result).map(|result| result != 0)
    }

    /// Ends the domain: returns only if Xen refuses.
    fn shutdown(&self, reason: ShutdownReason) -> Result<(), Errno> {
        let reason = match reason {
            ShutdownReason::Poweroff => SHUTDOWN_POWEROFF,
            ShutdownReason::Reboot => SHUTDOWN_REBOOT,
            ShutdownReason::Crash => SHUTDOWN_CRASH,
        };
        let mut op = SchedShutdown { reason };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN, &mut op) }
    }

    /// Sleeps until a new event comes, whether or not interrupts are on, and at most until a system time in
    /// nanoseconds. Returns at once for a time that is past.
    fn poll_until(&self, system_time: u64) -> Result<(), Errno> {
        // Zero would mean for ever.
        let mut op = SchedPoll { ports: 0, nr_ports: 0, timeout: system_time.max(1) };
        // SAFETY: the structure is this operation's, and names no ports.
        unsafe { operate(self, __HYPERVISOR_SCHED_OP, SCHEDOP_POLL, &mut op) }
    }

    /// Sets the virtual CPU's timer to fire once, at a system time in nanoseconds; at once for a
    /// time that is past.
    fn set_singleshot_timer(&self, vcpu: u32, system_time: u64) -> Result<(), Errno> {
        let mut op = SetSingleshotTimer { timeout_abs_ns: system_time, flags: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { vcpu_op(self, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, Some(&mut op)) }
    }

    /// Stops that timer.
    fn stop_singleshot_timer(&self, vcpu: u32) -> Result<(), Errno> {
        // SAFETY: the operation has no argument.
        unsafe { vcpu_op(self, VCPUOP_STOP_SINGLESHOT_TIMER, vcpu, None) }
    }

    /// Stops the virtual CPU's own ticking.
    fn stop_periodic_timer(&self, vcpu: u32) -> Result<(), Errno> {
        // SAFETY: the operation has no argument.
        unsafe { vcpu_op(self, VCPUOP_STOP_PERIODIC_TIMER, vcpu, None) }
    }

    /// The hypervisor's version.
    fn version(&self) -> Result<Version, Errno> {
        // SAFETY: the operation has no argument.
        let result =
            unsafe { self.call(__HYPERVISOR_XEN_VERSION, [XENVER_VERSION.into(), 0, 0, 0]) };
        let version = Errno::check(result)?;
        Ok(Version { major: (version >> 16) as u16, minor: version as u16 })
    }
}

impl<H: Hypervisor + ?Sized> Operations for H {}

/// Makes a hypercall of the usual form: a command and a pointer to its structure. The third
/// argument is the number of structures, which only the grant table's operations look at.
///
/// # Safety
/// The structure is the command's, and what it asks for is allowed (see [`Hypervisor::call`]).
#[inline]
unsafe fn operate<H: Hypervisor + ?Sized, T>(
    hypervisor: &H,
    number: u32,
    command: u32,
    op: &mut T,
) -> Result<(), Errno> {
    let pointer = (&raw mut *op).expose_provenance() as u64;
    // SAFETY: the pointer is to a live structure, borrowed for the call; the rest is the caller's.
    Errno::check(unsafe { hypervisor.call(number, [command.into(), pointer, 1, 0]) }).map(drop)
}

/// # Safety
/// The structure is the command's, or the command has none.
unsafe fn vcpu_op<H: Hypervisor + ?Sized>(
    hypervisor: &H,
    command: u32,
    vcpu: u32,
    op: Option<&mut SetSingleshotTimer>,
) -> Result<(), Errno> {
    let pointer = op.map_or(0, |op| (&raw mut *op).expose_provenance() as u64);
    let arguments = [command.into(), vcpu.into(), pointer, 0];
    // SAFETY: the pointer is to a live structure, borrowed for the call; the rest is the caller's.
    Errno::check(unsafe { hypervisor.call(__HYPERVISOR_VCPU_OP, arguments) }).map(drop)
}

/// # Safety
/// As for [`Operations::map_shared_info`].
unsafe fn add_to_physmap<H: Hypervisor + ?Sized>(
    hypervisor: &H,
    space: u32,
    idx: u64,
    at: Gfn,
) -> Result<(), Errno> {
    let mut op = AddToPhysmap { domid: DOMID_SELF, size: 0, space, idx, gpfn: at.0 };
    // SAFETY: the structure is this operation's; the caller gave the frame up.
    unsafe { operate(hypervisor, __HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut op) }
}

/// # Safety
/// As for [`Operations::decrease_reservation`] or [`Operations::populate_physmap`].
unsafe fn change_reservation<H: Hypervisor + ?Sized>(
    hypervisor: &H,
    command: u32,
    frames: &[Gfn],
    order: u32,
) -> Result<usize, Errno> {
    let mut op = MemoryReservation {
        extent_start: frames.as_ptr().expose_provenance() as u64,
        nr_extents: frames.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DOMID_SELF,
    };
    let pointer = (&raw mut op).expose_provenance() as u64;
    // SAFETY: the structure is this operation's, and names a list that lives and is borrowed here; what
    // becomes of the memory, the caller allows.
    let done = unsafe { hypervisor.call(__HYPERVISOR_MEMORY_OP, [command.into(), pointer, 0, 0]) };
    Ok((Errno::check(done)? as usize).min(frames.len()))
}
