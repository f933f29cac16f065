//! Runs every target with its seeds, the inputs that once crashed it, and a fixed set of inputs
//! that are generated from the seeds.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use xensock::front::Statistics;
use xensock_fuzz::{
    TARGETS, Target, hostile_backend, hostile_frontend, hostile_idc, hostile_netback,
};

/// Serialises the tests: the clock is global.
static CLOCK: Mutex<()> = Mutex::new(());

/// How many inputs are generated for each target, unless `FUZZ_INPUTS` is set.
const INPUTS: usize = 1000;

/// A xorshift generator: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// Generates an input from parts of others, with some bytes changed.
fn generate(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut part = || {
        let one = &inputs[random.below(inputs.len())];
        let (from, to) = (random.below(one.len() + 1), random.below(one.len() + 1));
        one[from.min(to)..from.max(to)].to_vec()
    };
    let mut input = [part(), part(), part()].concat();
    for _ in 0..random.below(12) {
        let (at, byte) = (random.below(input.len() + 1), random.next() as u8);
        match random.below(3) {
            0 => input.insert(at, byte),
            _ if at == input.len() => input.push(byte),
            1 => input[at] = byte,
            _ => input[at] = [0, 1, 127, 128, 254, 255][random.below(6)],
        }
    }
    input
}

/// The inputs that once crashed a target, with their files' names.
fn regressions(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect()
}

/// Prints the input if the target panics.
struct Named<'a>(&'a str, &'a [u8]);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {:?}", self.0, self.1);
        }
    }
}

fn replay(target: &Target) {
    let name = target.name;
    for (file, bytes) in regressions(target) {
        let _named = Named(&file, &bytes);
        (target.run)(&bytes);
    }
    let seeds = (target.seeds)();
    for (number, seed) in seeds.iter().enumerate() {
        let name = format!("{name}, seed {number}");
        let _named = Named(&name, seed);
        (target.run)(seed);
    }
    let count = std::env::var("FUZZ_INPUTS").map_or(INPUTS, |count| count.parse().unwrap());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..count {
        let input = generate(&seeds, &mut random);
        let name = format!("{name}, input {number}");
        let _named = Named(&name, &input);
        (target.run)(&input);
    }
}

#[test]
fn no_target_panics() {
    let _clock = CLOCK.lock();
    for target in &TARGETS {
        replay(target);
    }
}

#[test]
fn the_seeds_reach_far() {
    let _clock = CLOCK.lock();
    let (mut moved, mut exchanged) = (0, 0);
    for seed in hostile_backend::seeds() {
        let reached = hostile_backend::play(&seed);
        let Statistics { streams_opened, datagrams_sent, datagrams_received, .. } = reached;
        assert!(streams_opened + datagrams_sent + datagrams_received > 0, "{seed:?}: {reached:?}");
        moved += usize::from(reached.bytes_in > 0 && reached.bytes_out > 0);
        exchanged += usize::from(datagrams_sent > 1 && datagrams_received > 1);
    }
    assert!(exchanged > 3, "only {exchanged} seeds of hostile_backend exchanged datagrams");
    assert!(moved > 20, "only {moved} seeds of hostile_backend moved bytes both ways");
    for seed in hostile_netback::seeds() {
        let reached = hostile_netback::play(&seed);
        let frames = (reached.received > 1, reached.transmitted > 1);
        assert!(frames == (true, true) && reached.sessions > 2, "{seed:?}: {reached:?}");
    }
    for seed in hostile_frontend::seeds() {
        let reached = hostile_frontend::play(&seed);
        assert!(reached.done > 1 && reached.sent > 0, "{seed:?}: {reached:?}");
    }
    let mut best = hostile_idc::Reached::default();
    for seed in hostile_idc::seeds() {
        let reached = hostile_idc::play(&seed);
        println!("{seed:?}: {reached:?}");
        best.connections = best.connections.max(reached.connections);
        best.received = best.received.max(reached.received);
        best.answered = best.answered.max(reached.answered);
        best.data = best.data.max(reached.data);
        best.transfers = best.transfers.max(reached.transfers);
    }
    let hostile_idc::Reached { connections, received, answered, data, transfers } = best;
    let enough = [connections > 1, received > 5, answered > 3, data > 2, transfers > 1];
    assert_eq!(enough, [true; 5], "{best:?}");
}
