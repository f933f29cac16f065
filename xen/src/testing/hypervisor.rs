//! A hypervisor that has ports, a grant table's size, mapped grants and memory, and records the
//! hypercalls made.

use super::FakeEvents;
use crate::abi::{event_channel::*, grant_table::*, memory::*, sched::*, vcpu::*, xen::*};
use crate::hypercall::{FrameSource, Hypervisor};
use crate::{Errno, Gfn, PAGE_SIZE, Port, Shared};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;

/// A hypercall that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Done {
    Opened(u32),
    Closed(u32),
    Sent(u32),
    Unmasked(u32),
    Prioritised {
        port: u32,
        priority: u32,
    },
    ControlGiven(u64),
    ArrayGiven(u64),
    Mapped {
        space: u32,
        index: u64,
        at: u64,
    },
    /// Grants were mapped at these addresses, with one hypercall.
    GrantsMapped {
        owner: u16,
        flags: u32,
        refs: Vec<u32>,
        at: Vec<u64>,
    },
    /// What was mapped at these addresses was unmapped, with one hypercall.
    GrantsUnmapped {
        at: Vec<u64>,
    },
    Shutdown(u32),
    TimerSet(u64),
    TimerStopped,
    TickStopped,
    /// Memory was given back: this number of extents of this order, from the frame on.
    Decreased {
        start: u64,
        extents: u64,
        order: u32,
    },
    /// Memory was populated, likewise.
    Populated {
        start: u64,
        extents: u64,
        order: u32,
    },
}

/// The hypervisor, and the domain as it sees it.
#[derive(Debug)]
pub struct FakeXen {
    done: RefCell<Vec<Done>>,
    open: RefCell<BTreeSet<u32>>,
    /// The lowest number that a new port can have.
    pub lowest_port: Cell<u32>,
    /// The limit for the grant table's frames.
    pub max_grant_frames: Cell<u32>,
    /// The results of the next mappings and unmappings of grants, one after the other. An error
    /// ends their hypercall. Later ones succeed.
    pub grant_results: RefCell<VecDeque<Result<i16, Errno>>>,
    /// The addresses of mapped grants, by handle.
    mapped: RefCell<BTreeMap<u32, u64>>,
    /// Whether Xen is out of memory.
    pub out_of_memory: Cell<bool>,
    /// The frames that have memory.
    pub populated: RefCell<BTreeSet<u64>>,
    /// How many extents the next operations on memory do, one after the other. Later ones do all.
    pub does: RefCell<VecDeque<Result<u64, Errno>>>,
    /// The memory map.
    pub memory_map: RefCell<Vec<E820Entry>>,
    /// Whether Xen offers the FIFO ABI.
    pub has_fifo: Cell<bool>,
    /// The shared info page.
    pub shared_info: Shared<'static>,
    /// Ports and their events.
    pub events: Arc<FakeEvents>,
    /// Pages that the domain took, by frame.
    pages: RefCell<BTreeMap<u64, Shared<'static>>>,
    /// The next pages to give.
    next_pages: RefCell<Vec<Shared<'static>>>,
}

/// A zeroed page of plain memory, which is never freed.
pub fn page() -> Shared<'static> {
    memory(PAGE_SIZE)
}

/// Zeroed bytes of plain memory, which is never freed, aligned for all words.
pub fn memory(len: usize) -> Shared<'static> {
    let memory = Vec::leak(vec![0u64; len.div_ceil(8)]);
    // SAFETY: the memory is leaked and used by nothing else.
    unsafe { Shared::new(memory.as_mut_ptr().cast(), len) }
}

impl Default for FakeXen {
    fn default() -> Self {
        FakeXen::new()
    }
}

impl FakeXen {
    /// A domain without ports.
    pub fn new() -> Self {
        FakeXen::over(page(), Vec::new())
    }

    /// A domain without ports, with this shared info page, which takes these pages before others.
    pub fn over(shared_info: Shared<'static>, mut pages: Vec<Shared<'static>>) -> Self {
        pages.reverse();
        FakeXen {
            done: RefCell::default(),
            open: RefCell::default(),
            lowest_port: Cell::new(1),
            max_grant_frames: Cell::new(2),
            grant_results: RefCell::default(),
            mapped: RefCell::default(),
            out_of_memory: Cell::new(false),
            populated: RefCell::default(),
            does: RefCell::default(),
            memory_map: RefCell::default(),
            has_fifo: Cell::new(true),
            shared_info,
            events: Arc::new(FakeEvents::new(shared_info)),
            pages: RefCell::default(),
            next_pages: RefCell::new(pages),
        }
    }

    /// The hypercalls since the last call.
    pub fn take_done(&self) -> Vec<Done> {
        self.done.take()
    }

    /// The open ports.
    pub fn open_ports(&self) -> Vec<u32> {
        self.open.borrow().iter().copied().collect()
    }

    /// Opens a port, as the toolstack does.
    pub fn make_port(&self, port: Port) {
        self.open.borrow_mut().insert(port.0);
    }

    /// The number of mapped grants.
    pub fn mappings(&self) -> usize {
        self.mapped.borrow().len()
    }

    /// Saves and restores the domain, which is then another one to Xen, without ports and mappings.
    pub fn restore(&self) {
        self.open.borrow_mut().clear();
        self.mapped.borrow_mut().clear();
        self.events.forget();
    }

    fn note(&self, done: Done) -> i64 {
        self.done.borrow_mut().push(done);
        0
    }

    /// Opens the lowest free port, as Xen does.
    fn open(&self, port: &mut u32) -> i64 {
        let is_free =
            |port: &u32| !self.open.borrow().contains(port) && !self.events.is_busy(Port(*port));
        *port = (self.lowest_port.get()..).find(is_free).expect("there is always a free number");
        self.open.borrow_mut().insert(*port);
        self.note(Done::Opened(*port))
    }

    fn close(&self, port: u32) -> i64 {
        if !self.open.borrow_mut().remove(&port) {
            return Errno::EINVAL.negated().into();
        }
        self.note(Done::Closed(port))
    }

    /// Changes which frames have memory. Panics on misuse.
    fn change_reservation(&self, op: &MemoryReservation, populate: bool) -> i64 {
        let does = match self.does.borrow_mut().pop_front() {
            Some(Err(error)) => return error.negated().into(),
            Some(Ok(extents)) => extents.min(op.nr_extents),
            None => op.nr_extents,
        };
        assert!(op.nr_extents > 0 && op.extent_order <= DOMU_MAX_ORDER);
        let list = std::ptr::with_exposed_provenance::<u64>(op.extent_start as usize);
        let mut populated = self.populated.borrow_mut();
        for n in 0..op.nr_extents {
            // SAFETY: the caller passes a list of `nr_extents` frames.
            let frame = unsafe { list.add(n as usize).read() };
            assert!(frame.is_multiple_of(1 << op.extent_order));
            for frame in (frame..frame + (1 << op.extent_order)).filter(|_| n < does) {
                let changed =
                    if populate { populated.insert(frame) } else { populated.remove(&frame) };
                assert!(changed, "frame {frame:#x}: populated {populate} already");
            }
        }
        // SAFETY: the list has at least one frame.
        let (start, extents, order) = (unsafe { list.read() }, does, op.extent_order);
        self.note(if populate {
            Done::Populated { start, extents, order }
        } else {
            Done::Decreased { start, extents, order }
        });
        does as i64
    }

    /// The result of one mapping or unmapping.
    fn grant_result(&self) -> Result<i16, Errno> {
        self.grant_results.borrow_mut().pop_front().unwrap_or(Ok(GNTST_OKAY))
    }

    fn map_grants(&self, ops: &mut [GnttabMapGrantRef]) -> i64 {
        for op in ops.iter_mut() {
            op.status = match self.grant_result() {
                Ok(status) => status,
                Err(error) => return error.negated().into(),
            };
            if op.status == GNTST_OKAY {
                let mut mapped = self.mapped.borrow_mut();
                assert!(!mapped.values().any(|at| *at == op.host_addr), "{op:?}: it is in use");
                op.handle = (0..).find(|n| !mapped.contains_key(n)).expect("there is a number");
                mapped.insert(op.handle, op.host_addr);
            }
        }
        let (refs, at) = ops.iter().map(|op| (op.grant, op.host_addr)).unzip();
        let (owner, flags) = ops.first().map_or((0, 0), |op| (op.dom, op.flags));
        self.note(Done::GrantsMapped { owner, flags, refs, at })
    }

    fn unmap_grants(&self, ops: &mut [GnttabUnmapGrantRef]) -> i64 {
        for op in ops.iter_mut() {
            op.status = match self.grant_result() {
                Ok(status) => status,
                Err(error) => return error.negated().into(),
            };
            if op.status == GNTST_OKAY {
                let at = self.mapped.borrow_mut().remove(&op.handle);
                assert_eq!(at, Some(op.host_addr), "{op:?}: it is not mapped there");
            }
        }
        self.note(Done::GrantsUnmapped { at: ops.iter().map(|op| op.host_addr).collect() })
    }

    fn page(&self, gfn: u64) -> Shared<'static> {
        *self.pages.borrow().get(&gfn).expect("Xen was given a frame that is not a page")
    }
}

// SAFETY: the pages are leaked, and used by nothing else.
unsafe impl FrameSource for &FakeXen {
    fn take(&self) -> Result<(Gfn, Shared<'static>), Errno> {
        let next = self.next_pages.borrow_mut().pop();
        let page = next.unwrap_or_else(page);
        let mut pages = self.pages.borrow_mut();
        let gfn = 100 + pages.len() as u64;
        pages.insert(gfn, page);
        Ok((Gfn(gfn), page))
    }
}

// SAFETY: the effects reach the argument's structure, and pages that the caller gave up.
unsafe impl Hypervisor for FakeXen {
    unsafe fn call(&self, number: u32, arguments: [u64; 4]) -> i64 {
        /// The structure that an argument points to.
        macro_rules! op {
            ($which:literal as $kind:ty) => {
                // SAFETY: the caller passes a pointer to this structure.
                unsafe { &mut *with_exposed_provenance_mut::<$kind>(arguments[$which] as usize) }
            };
        }
        /// All structures of an operation of the grant table.
        macro_rules! ops {
            ($kind:ty) => {{
                let start = with_exposed_provenance_mut::<$kind>(arguments[1] as usize);
                // SAFETY: the caller passes a pointer to this number of structures.
                unsafe { std::slice::from_raw_parts_mut(start, arguments[2] as usize) }
            }};
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
                self.close(op!(1 as EvtchnClose).port)
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SEND) => {
                self.note(Done::Sent(op!(1 as EvtchnSend).port))
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_UNMASK) => {
                let port = op!(1 as EvtchnUnmask).port;
                self.events.unmask(Port(port));
                self.note(Done::Unmasked(port))
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_INIT_CONTROL) if self.has_fifo.get() => {
                let op = op!(1 as EvtchnInitControl);
                op.link_bits = EVTCHN_FIFO_LINK_BITS as u8;
                self.events.init_control(self.page(op.control_gfn));
                self.note(Done::ControlGiven(op.control_gfn))
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY) if self.out_of_memory.get() => {
                Errno::ENOMEM.negated().into()
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_EXPAND_ARRAY) if self.events.is_fifo() => {
                let gfn = op!(1 as EvtchnExpandArray).array_gfn;
                self.events.expand_array(self.page(gfn));
                self.note(Done::ArrayGiven(gfn))
            }
            (__HYPERVISOR_EVENT_CHANNEL_OP, EVTCHNOP_SET_PRIORITY) if self.events.is_fifo() => {
                let EvtchnSetPriority { port, priority } = *op!(1 as EvtchnSetPriority);
                self.events.set_priority(Port(port), priority);
                self.note(Done::Prioritised { port, priority })
            }
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_QUERY_SIZE) => {
                let op = op!(1 as GnttabQuerySize);
                (op.nr_frames, op.max_nr_frames, op.status) = (1, self.max_grant_frames.get(), 0);
                0
            }
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SET_VERSION) => 0,
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_MAP_GRANT_REF) => {
                self.map_grants(ops!(GnttabMapGrantRef))
            }
            (__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_UNMAP_GRANT_REF) => {
                self.unmap_grants(ops!(GnttabUnmapGrantRef))
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP) if self.out_of_memory.get() => {
                Errno::ENOMEM.negated().into()
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_ADD_TO_PHYSMAP) => {
                let op = op!(1 as AddToPhysmap);
                self.note(Done::Mapped { space: op.space, index: op.idx, at: op.gpfn })
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION) => {
                self.change_reservation(op!(1 as MemoryReservation), false)
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_POPULATE_PHYSMAP) => {
                self.change_reservation(op!(1 as MemoryReservation), true)
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_CURRENT_RESERVATION) => {
                self.populated.borrow().len() as i64
            }
            (__HYPERVISOR_MEMORY_OP, XENMEM_MEMORY_MAP) => {
                let op = op!(1 as MemoryMap);
                let map = self.memory_map.borrow();
                assert!(map.len() <= op.nr_entries as usize);
                let places = with_exposed_provenance_mut::<E820Entry>(op.buffer as usize);
                for (n, entry) in map.iter().enumerate() {
                    // SAFETY: the caller passes a buffer for `nr_entries` entries.
                    unsafe { places.add(n).write(*entry) };
                }
                op.nr_entries = map.len() as u32;
                0
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
