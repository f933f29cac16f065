//! The hypercalls that a guest needs, with plain arguments and results.

use super::Hypervisor;
use crate::abi::{
    event_channel::*, grant_table::*, hvm_op::*, hvm_params::*, memory::*, sched::*, vcpu::*,
    version::*, xen::*,
};
use crate::{DomId, Errno, Gfn, Port};

/// Why a domain shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It has finished.
    Poweroff,
    /// It asks to be started again.
    Reboot,
    /// It has crashed.
    Crash,
}

/// The hypervisor's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The number before the dot.
    pub major: u16,
    /// The number after the dot.
    pub minor: u16,
}

/// The operations of every [`Hypervisor`]. They fail with the error that Xen returns; Xen's headers
/// list those.
pub trait Operations: Hypervisor {
    /// Allocates a port that `remote` may bind to.
    fn alloc_unbound(&self, remote: DomId) -> Result<Port, Errno> {
        let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote.0, port: 0 };
        make(self, &mut op)?;
        Ok(Port(op.port))
    }

    /// Binds a new port to one that `remote` allocated for this domain.
    fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port, Errno> {
        let mut op =
            EvtchnBindInterdomain { remote_dom: remote.0, remote_port: port.0, local_port: 0 };
        make(self, &mut op)?;
        Ok(Port(op.local_port))
    }

    /// Binds a new port to a virtual interrupt (`VIRQ_*`) of a virtual CPU.
    fn bind_virq(&self, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        let mut op = EvtchnBindVirq { virq, vcpu, port: 0 };
        make(self, &mut op)?;
        Ok(Port(op.port))
    }

    /// Closes a port.
    fn close_port(&self, port: Port) -> Result<(), Errno> {
        make(self, &mut EvtchnClose { port: port.0 }).map(drop)
    }

    /// Sends an event over a port.
    #[inline]
    fn send(&self, port: Port) -> Result<(), Errno> {
        make(self, &mut EvtchnSend { port: port.0 }).map(drop)
    }

    /// Unmasks a port, and announces its event if one is pending.
    fn unmask_port(&self, port: Port) -> Result<(), Errno> {
        make(self, &mut EvtchnUnmask { port: port.0 }).map(drop)
    }

    /// Switches to the FIFO ABI of event channels, with virtual CPU 0's control block at the start
    /// of a guest frame.
    ///
    /// # Safety
    /// The frame is a page of the domain's own memory. Xen reads and writes it from now on, so
    /// nothing else may be in it, and it is accessed through [`Shared`](crate::Shared) alone.
    unsafe fn init_event_control(&self, control: Gfn) -> Result<(), Errno> {
        let (offset, vcpu, link_bits) = (0, 0, 0);
        let mut op =
            EvtchnInitControl { control_gfn: control.0, offset, vcpu, link_bits, pad: [0; 7] };
        // SAFETY: the structure is this operation's; the caller gave the frame up.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_INIT_CONTROL, &mut op) }
            .map(drop)
    }

    /// Gives Xen the next page of the FIFO ABI's event array.
    ///
    /// # Safety
    /// As for [`init_event_control`](Operations::init_event_control).
    unsafe fn expand_event_array(&self, page: Gfn) -> Result<(), Errno> {
        let mut op = EvtchnExpandArray { array_gfn: page.0 };
        // SAFETY: the structure is this operation's; the caller gave the frame up.
        unsafe { operate(self, __HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY, &mut op) }
            .map(drop)
    }

    /// Chooses the queue for a port's next events, in the FIFO ABI: 0 is the first, 15 the last.
    fn set_port_priority(&self, port: Port, priority: u32) -> Result<(), Errno> {
        make(self, &mut EvtchnSetPriority { port: port.0, priority }).map(drop)
    }

    /// The number of frames of the grant table: its present size, and the limit.
    fn grant_table_size(&self) -> Result<(u32, u32), Errno> {
        let mut op = GnttabQuerySize { dom: DOMID_SELF, nr_frames: 0, max_nr_frames: 0, status: 0 };
        make(self, &mut op)?;
        if op.status == GNTST_OKAY {
            Ok((op.nr_frames, op.max_nr_frames))
        } else {
            log::error!("cannot query the grant table's size (status {})", op.status);
            Err(Errno::EIO)
        }
    }

    /// Sets the grant table's version to 1. [`Errno::EBUSY`] while it has another and is in use.
    fn set_grant_table_version_1(&self) -> Result<(), Errno> {
        make(self, &mut GnttabSetVersion { version: 1 }).map(drop)
    }

    /// Maps granted frames, each at its address. Xen sets each one's status, handle and bus
    /// address; after an error, only those of the first ones.
    ///
    /// # Safety
    /// There is no memory at the addresses, which are accessed through [`Shared`](crate::Shared)
    /// alone.
    unsafe fn map_grant_refs(&self, list: &mut [GnttabMapGrantRef]) -> Result<(), Errno> {
        // SAFETY: the structures are this operation's; the caller allows what it does.
        unsafe { operate_on_each(self, __HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF, list) }
            .map(drop)
    }

    /// Unmaps granted frames, after which there is no memory at their addresses. Xen sets each
    /// one's status; after an error, only those of the first ones.
    ///
    /// # Safety
    /// Nothing accesses the addresses any more.
    unsafe fn unmap_grant_refs(&self, list: &mut [GnttabUnmapGrantRef]) -> Result<(), Errno> {
        let (number, command) = (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF);
        // SAFETY: the structures are this operation's; the caller allows what it does.
        unsafe { operate_on_each(self, number, command, list) }.map(drop)
    }

    /// Puts the shared info page at a guest frame.
    ///
    /// # Safety
    /// The frame is a page that nothing uses: its content is lost, and Xen writes to it from now
    /// on. It is accessed through [`Shared`](crate::Shared) alone.
    unsafe fn map_shared_info(&self, at: Gfn) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { add_to_physmap(self, XENMAPSPACE_SHARED_INFO, 0, at) }
    }

    /// Puts frame `index` of the grant table at a guest frame. The table grows as needed.
    ///
    /// # Safety
    /// As for [`map_shared_info`](Operations::map_shared_info).
    unsafe fn map_grant_frame(&self, index: u32, at: Gfn) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { add_to_physmap(self, XENMAPSPACE_GRANT_TABLE, index.into(), at) }
    }

    /// The number of pages that the domain has. Special pages count, and so do those that Xen keeps
    /// to populate on demand.
    fn current_reservation(&self) -> Result<u64, Errno> {
        make(self, &mut MemoryDomain { domid: DOMID_SELF })
    }

    /// Reads the memory map that the toolstack has set into `entries`, and returns their number.
    fn memory_map(&self, entries: &mut [E820Entry]) -> Result<usize, Errno> {
        let room = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let buffer = entries.as_mut_ptr().expose_provenance() as u64;
        let mut op = MemoryMap { nr_entries: room, buffer };
        // SAFETY: the structure is this operation's. Xen writes at most `room` entries, which are
        // borrowed here.
        unsafe { operate(self, __HYPERVISOR_MEMORY_OP, XENMEM_MEMORY_MAP, &mut op) }?;
        Ok((op.nr_entries as usize).min(entries.len()))
    }

    /// Gives memory back to Xen: extents of 2^`order` pages that begin at these frames. Returns how
    /// many extents Xen took, from the first on.
    ///
    /// # Safety
    /// The frames are the domain's memory, and nothing uses them: their content is lost, and no
    /// memory is there until they are [populated](Operations::populate_physmap).
    unsafe fn decrease_reservation(&self, frames: &[Gfn], order: u32) -> Result<usize, Errno> {
        // SAFETY: passed on to the caller.
        unsafe { change_reservation(self, XENMEM_DECREASE_RESERVATION, frames, order) }
    }

    /// Takes memory from Xen, for extents of 2^`order` pages that begin at these frames. Returns
    /// how many extents were populated, from the first on: fewer when the domain reaches its limit,
    /// or Xen has no memory left.
    ///
    /// # Safety
    /// There is no memory at these frames.
    unsafe fn populate_physmap(&self, frames: &[Gfn], order: u32) -> Result<usize, Errno> {
        // SAFETY: passed on to the caller. Xen writes to the list only for domains that are not
        // translated, and this one is.
        unsafe { change_reservation(self, XENMEM_POPULATE_PHYSMAP, frames, order) }
    }

    /// Reads a parameter (`HVM_PARAM_*`) of this domain.
    fn hvm_param(&self, index: u32) -> Result<u64, Errno> {
        let mut op = HvmParam { domid: DOMID_SELF, pad: 0, index, value: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_HVM_OP, HVMOP_GET_PARAM, &mut op) }?;
        Ok(op.value)
    }

    /// Makes Xen deliver events as an interrupt vector, past the local APIC. The handler clears
    /// `evtchn_upcall_pending`, and sends no end of interrupt.
    fn set_callback_vector(&self, vector: u8) -> Result<(), Errno> {
        let via = HVM_PARAM_CALLBACK_TYPE_VECTOR << HVM_PARAM_CALLBACK_IRQ_TYPE_SHIFT;
        let value = via | u64::from(vector);
        let mut op = HvmParam { domid: DOMID_SELF, pad: 0, index: HVM_PARAM_CALLBACK_IRQ, value };
        // SAFETY: the structure is this operation's.
        unsafe { operate(self, __HYPERVISOR_HVM_OP, HVMOP_SET_PARAM, &mut op) }.map(drop)
    }

    /// Suspends the domain, for the toolstack to save it. Returns when it resumes: true in the same
    /// domain (it was not destroyed after the save, or was not saved), false in a restored one.
    fn suspend(&self) -> Result<bool, Errno> {
        make(self, &mut SchedShutdown { reason: SHUTDOWN_SUSPEND }).map(|result| result != 0)
    }

    /// Shuts the domain down. Returns only if Xen refuses.
    fn shutdown(&self, reason: ShutdownReason) -> Result<(), Errno> {
        let reason = match reason {
            ShutdownReason::Poweroff => SHUTDOWN_POWEROFF,
            ShutdownReason::Reboot => SHUTDOWN_REBOOT,
            ShutdownReason::Crash => SHUTDOWN_CRASH,
        };
        make(self, &mut SchedShutdown { reason }).map(drop)
    }

    /// Sleeps until a new event, whether or not interrupts are on, or until a system time in
    /// nanoseconds. Returns at once if that time has passed.
    fn poll_until(&self, system_time: u64) -> Result<(), Errno> {
        // Zero would mean no timeout.
        let mut op = SchedPoll { ports: 0, nr_ports: 0, timeout: system_time.max(1) };
        // SAFETY: the structure is this operation's, and names no ports.
        unsafe { operate(self, __HYPERVISOR_SCHED_OP, SCHEDOP_POLL, &mut op) }.map(drop)
    }

    /// Sets the virtual CPU's timer to fire once, at a system time in nanoseconds; at once if that
    /// time has passed.
    fn set_singleshot_timer(&self, vcpu: u32, system_time: u64) -> Result<(), Errno> {
        let mut op = SetSingleshotTimer { timeout_abs_ns: system_time, flags: 0 };
        // SAFETY: the structure is this operation's.
        unsafe { vcpu_op(self, VCPUOP_SET_SINGLESHOT_TIMER, vcpu, Some(&mut op)) }
    }

    /// Stops the timer that [`set_singleshot_timer`](Operations::set_singleshot_timer) has set.
    fn stop_singleshot_timer(&self, vcpu: u32) -> Result<(), Errno> {
        // SAFETY: the operation has no argument.
        unsafe { vcpu_op(self, VCPUOP_STOP_SINGLESHOT_TIMER, vcpu, None) }
    }

    /// Stops the virtual CPU's periodic timer.
    fn stop_periodic_timer(&self, vcpu: u32) -> Result<(), Errno> {
        // SAFETY: the operation has no argument.
        unsafe { vcpu_op(self, VCPUOP_STOP_PERIODIC_TIMER, vcpu, None) }
    }

    /// The hypervisor's version.
    fn version(&self) -> Result<Version, Errno> {
        let arguments = [XENVER_VERSION.into(), 0, 0, 0];
        // SAFETY: the operation has no argument.
        let version = Errno::check(unsafe { self.call(__HYPERVISOR_XEN_VERSION, arguments) })?;
        Ok(Version { major: (version >> 16) as u16, minor: version as u16 })
    }
}

impl<H: Hypervisor + ?Sized> Operations for H {}

/// The structure of a hypercall that accesses no memory of the domain but this structure.
///
/// # Safety
/// That is true for the call and command, and the structure is the command's.
unsafe trait Command {
    const CALL: u32;
    const COMMAND: u32;
}

macro_rules! commands {
    ($($call:ident: $($op:ident $command:ident)+;)*) => { $($(
        // SAFETY: Xen's headers: the structure is the command's, and has no address in it.
        unsafe impl Command for $op {
            const CALL: u32 = $call;
            const COMMAND: u32 = $command;
        }
    )+)* };
}

commands! {
    __HYPERVISOR_EVENT_CHANNEL_OP:
        EvtchnAllocUnbound EVTCHNOP_ALLOC_UNBOUND
        EvtchnBindInterdomain EVTCHNOP_BIND_INTERDOMAIN
        EvtchnBindVirq EVTCHNOP_BIND_VIRQ
        EvtchnClose EVTCHNOP_CLOSE
        EvtchnSend EVTCHNOP_SEND
        EvtchnUnmask EVTCHNOP_UNMASK
        EvtchnSetPriority EVTCHNOP_SET_PRIORITY;
    __HYPERVISOR_GRANT_TABLE_OP:
        GnttabQuerySize GNTTABOP_QUERY_SIZE
        GnttabSetVersion GNTTABOP_SET_VERSION;
    __HYPERVISOR_MEMORY_OP: MemoryDomain XENMEM_CURRENT_RESERVATION;
    __HYPERVISOR_SCHED_OP: SchedShutdown SCHEDOP_SHUTDOWN;
}

/// Makes the hypercall whose structure this is.
#[inline]
fn make<H: Hypervisor + ?Sized, T: Command>(hypervisor: &H, op: &mut T) -> Result<u64, Errno> {
    // SAFETY: `Command`'s promise.
    unsafe { operate(hypervisor, T::CALL, T::COMMAND, op) }
}

/// Makes a hypercall of the usual form: a command and a pointer to its structure.
///
/// # Safety
/// The structure is the command's, and what it asks for is allowed (see [`Hypervisor::call`]).
#[inline]
unsafe fn operate<H: Hypervisor + ?Sized, T>(
    hypervisor: &H,
    number: u32,
    command: u32,
    op: &mut T,
) -> Result<u64, Errno> {
    // SAFETY: passed on to the caller.
    unsafe { operate_on_each(hypervisor, number, command, core::slice::from_mut(op)) }
}

/// The same, with many structures. The third argument is their number, which only the grant table's
/// operations read.
///
/// # Safety
/// As for [`operate`]. Only the grant table's operations take more structures than one.
#[inline]
unsafe fn operate_on_each<H: Hypervisor + ?Sized, T>(
    hypervisor: &H,
    number: u32,
    command: u32,
    ops: &mut [T],
) -> Result<u64, Errno> {
    let (pointer, count) = (ops.as_mut_ptr().expose_provenance() as u64, ops.len() as u64);
    // SAFETY: the pointer is to live structures, borrowed for the call; the rest is the caller's.
    Errno::check(unsafe { hypervisor.call(number, [command.into(), pointer, count, 0]) })
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
    unsafe { operate(hypervisor, __HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP, &mut op) }.map(drop)
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
    // SAFETY: the structure is this operation's, and names a list that lives and is borrowed here;
    // what becomes of the memory, the caller allows.
    let done = unsafe { operate(hypervisor, __HYPERVISOR_MEMORY_OP, command, &mut op) }?;
    Ok((done as usize).min(frames.len()))
}
