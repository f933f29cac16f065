//! A hypervisor for tests: knows ports and a grant table's size, and notes what it is asked to do.

use super::Hypervisor;
use crate::Errno;
use crate::abi::{event_channel::*, grant_table::*, memory::*, sched::*, vcpu::*, xen::*};
use std::cell::{Cell, RefCell};
use std::ptr::with_exposed_provenance_mut;

/// What the fake was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Opened(u32),
    Closed(u32),
    Sent(u32),
    Mapped { space: u32, index: u64, at: u64 },
    Shutdown(u32),
    TimerSet(u64),
    TimerStopped,
    TickStopped,
}

pub(crate) struct FakeXen {
    pub(crate) done: RefCell<Vec<Done>>,
    pub(crate) next_port: RefCell<u32>,
    pub(crate) max_grant_frames: u32,
    /// Whether Xen has no memory to map anything with.
    pub(crate) out_of_memory: Cell<bool>,
}

impl FakeXen {
    pub(crate) fn new() -> Self {
        FakeXen {
            done: RefCell::default(),
            next_port: RefCell::new(1),
            max_grant_frames: 2,
            out_of_memory: Cell::new(false),
        }
    }

    pub(crate) fn take_done(&self) -> Vec<Done> {
        self.done.take()
    }

    fn note(&self, done: Done) -> i64 {
        self.done.borrow_mut().push(done);
        0
    }

    fn open(&self, port: &mut u32) -> i64 {
        *port = *self.next_port.borrow();
        *self.next_port.borrow_mut() += 1;
        self.note(Done::Opened(*port))
    }
}

// SAFETY: none of the effects reach memory other than the argument's structure.
unsafe impl Hypervisor for FakeXen {
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        /// The structure that an argument points to.
        macro_rules! op {
            ($which:literal as $kind:ty) => {
                // SAFETY: the caller passes a pointer to this structure.
                unsafe { &mut *with_exposed_provenance_mut::<$kind>(arguments[$which] as usize) }
            };
        }
        match (number, arguments[0] as u32) {
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND) => {
                self.open(&mut op!(1 as EvtchnAllocUnbound).port)
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN) => {
                self.open(&mut op!(1 as EvtchnBindInterdomain).local_port)
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_BIND_VIRQ) => {
                self.open(&mut op!(1 as EvtchnBindVirq).port)
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_CLOSE) => {
                self.note(Done::Closed(op!(1 as EvtchnClose).port))
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND) => {
                self.note(Done::Sent(op!(1 as EvtchnSend).port))
            }
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_QUERY_SIZE) => {
                let op = op!(1 as GnttabQuerySize);
                (op.nr_frames, op.max_nr_frames, op.status) = (1, self.max_grant_frames, 0);
                0
            }
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SET_VERSION) => 0,
            (__HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP) if self.out_of_memory.get() => {
                Errno::ENOMEM.negated().into()
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP) => {
                let op = op!(1 as AddToPhysmap);
                self.note(Done::Mapped { space: op.space, index: op.idx, at: op.gpfn })
            }
            (__HYPERVISOR_SCHED_OP, SCHEDOP_SHUTDOWN) => {
                self.note(Done::Shutdown(op!(1 as SchedShutdown).reason))
            }
            (__HYPERVISOR_VCPU_OP, VCPUOP_SET_SINGLESHOT_TIMER) => {
                self.note(Done::TimerSet(op!(2 as SetSingleshotTimer).timeout_abs_ns))
            }
            (__HYPERVISOR_VCPU_OP, VCPUOP_STOP_SINGLESHOT_TIMER) => self.note(Done::TimerStopped),
            (__HYPERVISOR_VCPU_OP, VCPUOP_STOP_PERIODIC_TIMER) => self.note(Done::TickStopped),
            _ => Errno::ENOSYS.negated().into(),
        }
    }
}
