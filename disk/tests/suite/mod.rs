//! What clients may expect of disks and caches, whatever the transport: the same tests for each.

use disk::cache::Cache;
use disk::client::Disk;
use disk::neighbours::{Neighbours, Role};
use disk::protocol::{MAX_BLOCKS, client_quota};
use disk::server::{Limits, serve};
use disk::{BLOCK, Blocks, Failure};
use embassy_time::Timer;
use futures_executor::{LocalPool, LocalSpawner};
use futures_util::future::{AbortHandle, Either, FutureExt, abortable, join, join_all, select};
use futures_util::task::LocalSpawnExt;
use idc::transport::Transport;
use idc::{Address, Endpoint, Event, LocalBuffer, Node, Place, RemoteBuffer, Rights, Service};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many blocks the disks of these tests have: not a multiple of those of a request.
pub const BLOCKS: u64 = 3 * MAX_BLOCKS as u64 + 5;

/// Domains or processes that can meet.
pub trait Rig: Clone + 'static {
    type Transport: Transport + 'static;

    /// Starts one, at the place of an ended one if that is given.
    async fn start(&self, again: Option<Place>, tasks: &Tasks) -> (Self::Transport, Place);
}

/// What runs in a domain or process, until it is killed.
#[derive(Clone)]
pub struct Tasks {
    spawner: LocalSpawner,
    handles: Rc<RefCell<Vec<AbortHandle>>>,
}

impl Tasks {
    fn new(spawner: &LocalSpawner) -> Self {
        Tasks { spawner: spawner.clone(), handles: Rc::default() }
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let (task, handle) = abortable(task);
        self.handles.borrow_mut().push(handle);
        self.spawner.spawn_local(task.map(drop)).unwrap();
    }

    fn kill(&self) {
        self.handles.take().iter().for_each(AbortHandle::abort);
    }
}

/// A domain or process.
pub struct Machine<R: Rig> {
    rig: R,
    pub node: Node<R::Transport>,
    pub place: Place,
    pub tasks: Tasks,
    pub neighbours: Neighbours,
}

/// Numbers that are as good as random for a test.
fn random(seed: u64) -> impl FnMut() -> [u8; 16] {
    let mut state = seed;
    move || {
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
    }
}

impl<R: Rig> Machine<R> {
    async fn start_at(rig: &R, spawner: &LocalSpawner, again: Option<Place>) -> Self {
        thread_local!(static SEED: Cell<u64> = const { Cell::new(0) });
        let tasks = Tasks::new(spawner);
        let (transport, place) = rig.start(again, &tasks).await;
        let node = Node::new(transport, random(SEED.replace(SEED.get() + 1)));
        Machine { rig: rig.clone(), node, place, tasks, neighbours: Neighbours::default() }
    }

    /// Another one.
    pub async fn another(&self) -> Self {
        let another = Self::start_at(&self.rig, &self.tasks.spawner, None).await;
        let buffers = another.node.clone();
        let serve = async move { panic!("no buffers: {}", buffers.serve_buffers(16).await) };
        another.tasks.spawn(serve);
        another
    }

    /// Another one, of which nobody can reach the buffers.
    pub async fn another_without_buffers(&self) -> Self {
        Self::start_at(&self.rig, &self.tasks.spawner, None).await
    }

    /// Ends it as `kill -9` does, and starts another one in its place.
    pub async fn kill_and_start(self) -> Self {
        let (rig, spawner, place) = self.kill().await;
        Self::start_at(&rig, &spawner, Some(place)).await
    }

    pub async fn kill(self) -> (R, LocalSpawner, Place) {
        let Machine { rig, node, place, tasks, .. } = self;
        tasks.kill();
        drop(node);
        // The executor drops the tasks that were aborted.
        Timer::after_millis(10).await;
        (rig, tasks.spawner, place)
    }

    /// Serves blocks to others.
    pub fn serve<B: Blocks + 'static>(&self, blocks: B, limits: Limits) {
        let (node, neighbours) = (self.node.clone(), self.neighbours.clone());
        let address = "any/disk".parse().unwrap();
        self.tasks.spawn(async move {
            panic!("{}", serve(&node, &address, &blocks, limits, &neighbours).await)
        });
    }

    /// The disk that another one serves.
    pub fn open(&self, server: &Self, transactions: u16) -> Disk<R::Transport> {
        self.open_at(server.address(), transactions)
    }

    pub fn open_at(&self, address: Address, transactions: u16) -> Disk<R::Transport> {
        let (disk, drive) =
            Disk::open(&self.node, &address, transactions, &self.neighbours).unwrap();
        self.tasks.spawn(drive);
        disk
    }

    pub fn address(&self) -> Address {
        Address { place: self.place, service: "disk".parse().unwrap() }
    }
}

/// Runs a test until it ends.
pub fn run<R: Rig, F: Future<Output = ()>>(rig: R, test: impl FnOnce(Machine<R>) -> F) {
    let _ = env_logger::builder().is_test(true).try_init();
    let mut pool = LocalPool::new();
    let spawner = pool.spawner();
    let test = async {
        let test = async { test(Machine::start_at(&rig, &spawner, None).await).await };
        let patience = Timer::after(PATIENCE.try_into().unwrap());
        if let Either::Right(_) = select(pin!(test), pin!(patience)).await {
            panic!("the test takes too long");
        }
    };
    pool.run_until(test);
}

/// How long a write of this byte waits before it changes anything.
type Delay = fn(u8) -> Duration;

/// A disk in memory that survives its server. Clones are the same disk.
#[derive(Clone)]
pub struct Memory {
    bytes: LocalBuffer,
    /// The first byte of each block that was written, and its number.
    pub log: Rc<RefCell<Vec<(u64, u8)>>>,
    reads: Rc<Cell<u64>>,
    flushes: Rc<Cell<u64>>,
    /// How many writes have begun.
    writes: Rc<Cell<u64>>,
    delay: Rc<Cell<Delay>>,
}

impl Memory {
    pub fn new() -> Self {
        let bytes: Vec<u8> =
            (0..BLOCKS as usize * BLOCK).map(|at| (at * 7 + at / 251) as u8).collect();
        Memory {
            bytes: bytes.into(),
            log: Rc::default(),
            reads: Rc::default(),
            flushes: Rc::default(),
            writes: Rc::default(),
            delay: Rc::new(Cell::new(|_| Duration::ZERO)),
        }
    }

    /// Waits until another write begins.
    async fn next_write(&self) {
        let before = self.writes.get();
        while self.writes.get() == before {
            Timer::after_millis(1).await;
        }
    }

    fn place(&self, first: u64, len: usize) -> Result<LocalBuffer, Failure> {
        let start = usize::try_from(first).ok().and_then(|first| first.checked_mul(BLOCK));
        match start.and_then(|start| Some(start..start.checked_add(len)?)) {
            Some(range) if range.end <= self.bytes.len() => Ok(self.bytes.slice(range)),
            _ => Err(Failure::OutOfRange),
        }
    }
}

impl Blocks for Memory {
    async fn size(&self) -> Result<u64, Failure> {
        Ok(BLOCKS)
    }

    async fn read(&self, first: u64, into: &LocalBuffer) -> Result<u32, Failure> {
        into.shared().copy_from(self.place(first, into.len())?.shared());
        self.reads.set(self.reads.get() + (into.len() / BLOCK) as u64);
        Ok(0)
    }

    async fn write(&self, first: u64, from: &LocalBuffer) -> Result<(), Failure> {
        let place = self.place(first, from.len())?;
        self.writes.set(self.writes.get() + 1);
        let delay = self.delay.get()(from.slice(0..1).to_vec()[0]);
        if !delay.is_zero() {
            Timer::after(delay.try_into().unwrap()).await;
        }
        place.shared().copy_from(from.shared());
        for (block, start) in (first..).zip((0..from.len()).step_by(BLOCK)) {
            self.log.borrow_mut().push((block, from.slice(start..start + 1).to_vec()[0]));
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }
}

fn digest(bytes: &LocalBuffer) -> String {
    Sha256::digest(bytes.to_vec()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Blocks that are all filled with this byte.
pub fn filled(blocks: u64, byte: u8) -> LocalBuffer {
    vec![byte; blocks as usize * BLOCK].into()
}

async fn whole(disk: &impl Blocks) -> LocalBuffer {
    let all = LocalBuffer::new(BLOCKS as usize * BLOCK);
    disk.read(0, &all).await.unwrap();
    all
}

pub async fn a_client_reads_and_writes_what_the_server_has(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let client = server.another().await;
    let disk = client.open(&server, 4);
    assert_eq!(disk.size().await, Ok(BLOCKS));
    assert_eq!(digest(&whole(&disk).await), digest(&memory.bytes));
    disk.write(3, &filled(130, 0xee)).await.unwrap();
    disk.write(BLOCKS - 1, &filled(1, 0xdd)).await.unwrap();
    disk.flush().await.unwrap();
    assert_eq!(memory.flushes.get(), 1);
    let (before, after) = (Memory::new().bytes, memory.bytes);
    let piece = |bytes: &LocalBuffer, from: u64, to: u64| {
        bytes.slice(from as usize * BLOCK..to as usize * BLOCK).to_vec()
    };
    assert!(piece(&after, 3, 133) == filled(130, 0xee).to_vec());
    assert!(piece(&after, BLOCKS - 1, BLOCKS) == filled(1, 0xdd).to_vec());
    for (from, to) in [(0, 3), (133, BLOCKS - 1)] {
        assert!(piece(&after, from, to) == piece(&before, from, to), "{from}..{to} was written");
    }
    assert_eq!(digest(&whole(&disk).await), digest(&after));
    let counts = server.neighbours.list()[0].counts();
    assert_eq!((counts.connections, counts.failures), (1, 0));
    assert_eq!(counts.read, 2 * BLOCKS * BLOCK as u64);
    assert_eq!(counts.written, 131 * BLOCK as u64);
    assert_eq!(client.neighbours.list()[0].counts().written, counts.written);
}

pub async fn two_clients_share_one_cache(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let between = server.another().await;
    between.serve(Cache::new(between.open(&server, 4), BLOCKS as usize), Limits::default());
    let (first, second) = (between.another().await, between.another().await);
    let one = first.open(&between, 4);
    assert_eq!(digest(&whole(&one).await), digest(&memory.bytes));
    // Only now, so that the cache has them in this order in its list.
    let other = second.open(&between, 4);
    assert_eq!(digest(&whole(&other).await), digest(&memory.bytes));
    assert_eq!(memory.reads.get(), BLOCKS, "each block is read once");
    // What one writes, the other reads, out of the cache.
    one.write(7, &filled(3, 0xaa)).await.unwrap();
    assert_eq!(memory.log.borrow().len(), 3, "the write went through");
    assert_eq!(digest(&whole(&other).await), digest(&memory.bytes));
    assert_eq!(memory.reads.get(), BLOCKS);
    let list = between.neighbours.list();
    assert_eq!(list[0].role, Role::Server);
    assert_eq!(list[0].counts().read, BLOCKS * BLOCK as u64);
    let counted: Vec<_> = list[1..].iter().map(|one| one.counts()).collect();
    let (hits, misses) = (|at: usize| counted[at].hits, |at: usize| counted[at].misses);
    assert_eq!([hits(0), misses(0), hits(1), misses(1)], [0, BLOCKS, 2 * BLOCKS, 0]);
}

pub async fn a_small_cache_keeps_what_was_used_last(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let between = server.another().await;
    between.serve(Cache::new(between.open(&server, 4), 3), Limits::default());
    let client = between.another().await;
    let disk = client.open(&between, 4);
    let one = LocalBuffer::new(BLOCK);
    // Blocks 0, 1 and 2 are there; 0 is used again, so 3 takes the place of 1.
    for (block, reads) in [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (2, 4), (1, 5)] {
        disk.read(block, &one).await.unwrap();
        let start = block as usize * BLOCK;
        assert!(one.to_vec() == memory.bytes.slice(start..start + BLOCK).to_vec());
        assert_eq!(memory.reads.get(), reads, "block {block}");
    }
}

pub async fn a_server_that_is_killed_and_started_again_loses_nothing(server: Machine<impl Rig>) {
    let memory = Memory::new();
    memory.delay.set(|_| Duration::from_micros(500));
    server.serve(memory.clone(), Limits::default());
    let between = server.another().await;
    between.serve(Cache::new(between.open(&server, 4), 50), Limits::default());
    let client = between.another().await;
    let (near, far) = (client.open(&server, 4), client.open(&between, 4));
    let done = Cell::new(false);
    // One writes its blocks over and over, past the cache, the other others, through it.
    let work = async |first: u64, blocks: &Disk<_>| {
        for round in 1..=60 {
            blocks.write(first, &filled(10, round)).await.unwrap();
            let read = LocalBuffer::new(10 * BLOCK);
            blocks.read(first, &read).await.unwrap();
            assert!(read.to_vec() == filled(10, round).to_vec(), "{first}: round {round}");
        }
    };
    let both = async {
        join(work(0, &near), work(100, &far)).await;
        done.set(true);
    };
    let kill = async {
        let (mut server, mut kills) = (server, 0);
        loop {
            // Whatever is in flight then.
            let writes = memory.log.borrow().len();
            while memory.log.borrow().len() < writes + 73 {
                if done.get() {
                    return (server, kills);
                }
                Timer::after_micros(300).await;
            }
            server = server.kill_and_start().await;
            server.serve(memory.clone(), Limits::default());
            kills += 1;
        }
    };
    let ((), (_server, kills)) = join(both, kill).await;
    assert!(kills > 10, "the server was killed {kills} times");
    for block in (0..10).chain(100..110) {
        let start = block as usize * BLOCK;
        assert!(memory.bytes.slice(start..start + BLOCK).to_vec() == filled(1, 60).to_vec());
        let log = memory.log.borrow();
        let rounds: Vec<u8> =
            log.iter().filter(|(at, _)| *at == block).map(|(_, round)| *round).collect();
        assert!(rounds.is_sorted(), "block {block} was written in the order {rounds:?}");
        assert!((1..=60).all(|round| rounds.contains(&round)), "block {block}: {rounds:?}");
    }
    let connections = client.neighbours.list()[0].counts().connections;
    assert!(connections > 10, "{connections} connections with the server");
    assert_eq!(client.neighbours.list()[1].counts().connections, 1);
}

pub async fn a_cache_serves_what_it_has_while_its_server_is_away(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let between = server.another().await;
    between.serve(Cache::new(between.open(&server, 4), BLOCKS as usize), Limits::default());
    let client = between.another().await;
    let disk = client.open(&between, 4);
    let some = LocalBuffer::new(10 * BLOCK);
    disk.read(0, &some).await.unwrap();
    let (rig, spawner, place) = server.kill().await;
    disk.read(0, &some).await.unwrap();
    assert!(some.to_vec() == memory.bytes.slice(0..10 * BLOCK).to_vec());
    let later = async {
        let more = LocalBuffer::new(20 * BLOCK);
        join(disk.read(0, &more), disk.write(30, &filled(5, 9))).await.0.unwrap();
        more
    };
    let start = async {
        Timer::after_millis(100).await;
        assert!(memory.log.borrow().is_empty(), "nobody can have written this");
        let server = Machine::start_at(&rig, &spawner, Some(place)).await;
        server.serve(memory.clone(), Limits::default());
        server
    };
    let (more, _server) = join(later, start).await;
    assert!(more.to_vec() == memory.bytes.slice(0..20 * BLOCK).to_vec());
    assert_eq!(memory.log.borrow().len(), 5);
    assert_eq!(between.neighbours.list()[0].counts().connections, 2);
}

pub async fn a_chain_of_three_caches_works_with_one_transaction_at_a_time(
    server: Machine<impl Rig>,
) {
    let single = Limits { clients: 2, transactions: 1, ..Limits::default() };
    let memory = Memory::new();
    server.serve(memory.clone(), single);
    let mut machines = vec![server];
    for _ in 0..3 {
        let below = machines.last().unwrap();
        let next = below.another().await;
        next.serve(Cache::new(next.open(below, 1), 20), single);
        machines.push(next);
    }
    // Each cache has two clients: the next cache, and one that reads and writes blocks of its own.
    let work = machines.iter().zip(1..).map(async |(machine, first): (&Machine<_>, u64)| {
        let client = machine.another().await;
        let disk = client.open(machine, 1);
        let (first, blocks) = (first * 30, LocalBuffer::new(25 * BLOCK));
        for round in 1..=10 {
            join(disk.write(first, &filled(25, round)), disk.flush()).await.0.unwrap();
            disk.read(first, &blocks).await.unwrap();
            assert!(blocks.to_vec() == filled(25, round).to_vec());
        }
    });
    join_all(work).await;
    let last = machines.last().unwrap();
    let client = last.another().await;
    assert_eq!(digest(&whole(&client.open(last, 1)).await), digest(&memory.bytes));
}

pub async fn more_clients_than_a_server_has_room_for_wait(server: Machine<impl Rig>) {
    server.serve(Memory::new(), Limits { clients: 2, transactions: 1, ..Limits::default() });
    let (mut machines, mut disks) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let client = server.another().await;
        let disk = client.open(&server, 1);
        assert_eq!(disk.size().await, Ok(BLOCKS));
        disks.push(disk);
        machines.push(client);
    }
    let third = server.another().await;
    let disk = third.open(&server, 1);
    let early = async {
        assert_eq!(disk.size().await, Ok(BLOCKS));
        true
    };
    let wait = async {
        Timer::after_millis(300).await;
        false
    };
    let was_served = select(pin!(early), pin!(wait)).await.factor_first().0;
    assert!(!was_served, "two clients are all there is room for");
    drop(disks.pop());
    assert_eq!(disk.size().await, Ok(BLOCKS));
    assert_eq!(disks[0].size().await, Ok(BLOCKS));
}

pub async fn what_a_client_may_not_ask_is_refused(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let client = server.another().await;
    let disk = client.open(&server, 4);
    let (one, many) = (LocalBuffer::new(BLOCK), LocalBuffer::new(10 * BLOCK));
    let beyond = Err(Failure::OutOfRange);
    for first in [BLOCKS, BLOCKS + 1, u64::MAX - 20, 1 << 52, (1 << 52) - 1] {
        assert_eq!(disk.read(first, &one).await.map(drop), beyond, "{first}");
        assert_eq!(disk.write(first, &one).await, beyond, "{first}");
    }
    assert_eq!(disk.write(BLOCKS - 9, &many).await, beyond, "the last block is beyond the end");
    assert!(memory.log.borrow().is_empty());

    // Requests that no client of ours makes.
    // The first instance is the disk's.
    let address = Address { service: Service::new("disk", 1).unwrap(), ..server.address() };
    let (endpoint, mut events, drive) =
        Endpoint::create(client.node.resource(client_quota(4)).unwrap(), address);
    client.tasks.spawn(async { drop(drive.await) });
    while !matches!(events.next().await, Some(Event::Connect)) {}
    let readable = client.node.register(&one, Rights::READ).unwrap();
    let request = |operation: u8, count: u32, first: u64, buffer: &RemoteBuffer| {
        let mut bytes = vec![operation, 0, 0, 0];
        bytes.extend(count.to_le_bytes());
        bytes.extend(first.to_le_bytes());
        bytes.extend(buffer.to_bytes());
        bytes
    };
    let valid = request(3, 1, 0, &readable.reference());
    let mut long = readable.reference().to_bytes();
    // Its length, in bytes 8 to 16, is two blocks.
    long[9] = 0x20;
    let mut writable = readable.reference().to_bytes();
    writable[1] = Rights::WRITE.bits();
    let [long, writable] = [long, writable].map(|bytes| RemoteBuffer::from_bytes(&bytes).unwrap());
    for (bytes, failure) in [
        (vec![], Failure::Malformed),
        (valid[..87].to_vec(), Failure::Malformed),
        (valid[..16].to_vec(), Failure::Malformed),
        (request(9, 1, 0, &readable.reference()), Failure::Malformed),
        (request(1, 0, 0, &readable.reference()), Failure::Malformed),
        (request(3, 0, 0, &readable.reference()), Failure::Malformed),
        (request(3, 2, 0, &readable.reference()), Failure::Malformed),
        (request(3, u32::MAX, 0, &readable.reference()), Failure::Malformed),
        (request(2, 1, 0, &readable.reference()), Failure::Malformed),
        (request(3, 1, u64::MAX, &readable.reference()), Failure::OutOfRange),
        // References that promise more than their owner gives.
        (request(3, 2, 0, &long), Failure::Malformed),
        (request(2, 1, 0, &writable), Failure::Malformed),
    ] {
        let response = endpoint.transaction(&bytes[..]).await.unwrap();
        assert_eq!(response.error(), failure as u32, "{bytes:02x?}");
        assert!(response.status().is_empty());
    }
    let mut forged = valid.clone();
    // A byte of the key, which is in bytes 32 to 48 of the reference.
    forged[16 + 40] ^= 1;
    let answer = endpoint.transaction(&forged[..]).await.unwrap();
    assert_eq!(answer.error(), Failure::Unreachable as u32, "the key is wrong");
    let mut nowhere = valid.clone();
    // The owner's domain and network address.
    nowhere[16 + 2..16 + 4].fill(0xff);
    nowhere[16 + 48..16 + 66].fill(0);
    let answer = endpoint.transaction(&nowhere[..]).await.unwrap();
    assert_eq!(answer.error(), Failure::Unreachable as u32, "the buffer is nowhere");
    drop(readable);
    let answer = endpoint.transaction(&valid[..]).await.unwrap();
    assert_eq!(answer.error(), Failure::Unreachable as u32, "the buffer is not registered");
    assert!(memory.log.borrow().is_empty());
    assert_eq!(disk.size().await, Ok(BLOCKS), "the server serves others");
}

/// What writes that are given up write.
const GIVEN_UP: u8 = 0xff;

pub async fn a_write_that_was_given_up_has_no_late_effect(server: Machine<impl Rig>) {
    let memory = Memory::new();
    server.serve(memory.clone(), Limits::default());
    let client = server.another().await;
    let disk = client.open(&server, 4);
    disk.connected().await;
    memory.delay.set(|byte| Duration::from_millis(if byte == GIVEN_UP { 20 } else { 0 }));
    for round in 1..=20u8 {
        let (block, given_up) = (filled(1, round), filled(1, GIVEN_UP));
        // At once, then later and later, and at last when it is carried out: so it is given up in
        // each of its steps.
        let patience = async {
            match round {
                1 => {}
                20 => memory.next_write().await,
                _ => Timer::after_micros(u64::from(round) * 200).await,
            }
        };
        {
            let write = pin!(disk.write(5, &given_up));
            let _ = select(write, pin!(patience)).await;
        }
        disk.write(5, &block).await.unwrap();
        let read = LocalBuffer::new(BLOCK);
        disk.read(5, &read).await.unwrap();
        assert!(read.to_vec() == block.to_vec(), "round {round}");
        Timer::after_millis(20).await;
        disk.read(5, &read).await.unwrap();
        assert!(read.to_vec() == block.to_vec(), "round {round}, later");
    }
    let log = memory.log.borrow();
    let late = log.iter().filter(|(_, byte)| *byte == GIVEN_UP).count();
    assert!((1..20).contains(&late), "{late} of 20 that were given up were carried out");
}

pub async fn a_client_that_leaves_makes_room_while_its_request_is_carried_out(
    server: Machine<impl Rig>,
) {
    let memory = Memory::new();
    memory.delay.set(|_| Duration::from_secs(3600));
    server.serve(memory.clone(), Limits { clients: 1, transactions: 1, ..Limits::default() });
    let client = server.another().await;
    {
        let disk = client.open(&server, 1);
        let block = filled(1, 1);
        let write = pin!(disk.write(0, &block));
        assert!(matches!(select(write, pin!(memory.next_write())).await, Either::Right(_)));
    }
    assert_eq!(client.open(&server, 1).size().await, Ok(BLOCKS));
    assert!(memory.log.borrow().is_empty());
}

pub async fn a_client_whose_buffers_are_silent_keeps_nobody_waiting_for_long(
    server: Machine<impl Rig>,
) {
    // Enough for a client that answers, even on a busy machine.
    let (memory, patience) = (Memory::new(), embassy_time::Duration::from_millis(500));
    server.serve(memory.clone(), Limits { patience, ..Limits::default() });
    let silent = server.another_without_buffers().await;
    let client = server.another().await;
    let (disk, other) = (silent.open(&server, 4), client.open(&server, 4));
    let block = filled(1, 1);
    let (refused, read) = join(disk.write(3, &block), whole(&other)).await;
    assert_eq!(refused, Err(Failure::Unreachable));
    assert_eq!(digest(&read), digest(&memory.bytes));
    assert_eq!(disk.read(3, &block).await, Err(Failure::Unreachable));
    assert_eq!(disk.size().await, Ok(BLOCKS));
    assert!(memory.log.borrow().is_empty());
}

/// Makes a test of each of the above with what `$rig` makes.
#[macro_export]
macro_rules! suite {
    ($rig:expr; $($name:ident)*) => { $(
        #[test]
        fn $name() {
            suite::run($rig, |machine| suite::$name(machine));
        }
    )* };
    ($rig:expr) => {
        suite!($rig;
            a_client_reads_and_writes_what_the_server_has
            two_clients_share_one_cache
            a_small_cache_keeps_what_was_used_last
            a_server_that_is_killed_and_started_again_loses_nothing
            a_cache_serves_what_it_has_while_its_server_is_away
            a_chain_of_three_caches_works_with_one_transaction_at_a_time
            more_clients_than_a_server_has_room_for_wait
            what_a_client_may_not_ask_is_refused
            a_write_that_was_given_up_has_no_late_effect
            a_client_that_leaves_makes_room_while_its_request_is_carried_out
            a_client_whose_buffers_are_silent_keeps_nobody_waiting_for_long
        );
    };
}
