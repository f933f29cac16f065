//! Numbers that nobody can guess: ChaCha20, seeded by the processor (RDRAND), or by the toolstack
//! if the processor has no such instruction.
//!
//! [`fill`] makes them. Crates get them through `getrandom` from version 0.3 on, for which the
//! kernel is the custom backend. The toolstack's seed is read by
//! [`System::random`](crate::System::random): an image that makes no numbers has none of this. A
//! restored domain has a new seed: it and another copy of the saved one must not make the same
//! numbers.

mod generator;

use self::generator::{Generator, SEED, parse};
use crate::cpu::{self, OneCpu};
use alloc::boxed::Box;
use core::cell::RefCell;
use core::slice;
use futures_util::future::LocalBoxFuture;
use getrandom::Error;
use xen::Errno;
use xen::clock::read_tsc;
use xen::xenstore::Store;

/// The node by which the toolstack gives a seed: 64 hexadecimal digits. The guest removes it.
pub const NODE: &str = "data/seed";

static GENERATOR: OneCpu<RefCell<Generator>> = OneCpu::new(RefCell::new(Generator::new()));

/// Fills a buffer with numbers that nobody can guess. [`Errno::ENODEV`] if the processor has no
/// RDRAND, and the toolstack has given no seed.
pub fn fill(bytes: &mut [u8]) -> Result<(), Errno> {
    GENERATOR.get().borrow_mut().fill(bytes, processor)
}

/// A number that nobody can guess, or that of the processor's clock if there is no source: for what
/// works without, such as the numbers of DNS queries.
pub fn number() -> u64 {
    let mut number = [0; 8];
    match fill(&mut number) {
        Ok(()) => u64::from_ne_bytes(number),
        // A restored domain may have lost its source.
        Err(_) => read_tsc(),
    }
}

/// Forgets the seed of the domain that was saved.
pub(crate) fn restored() {
    GENERATOR.get().borrow_mut().forget();
}

/// Takes the toolstack's seed, if the processor makes none. A seed that is no seed is an error in
/// the log.
pub(crate) fn take_seed(store: &Store) -> LocalBoxFuture<'_, ()> {
    Box::pin(take(store))
}

async fn take(store: &Store) {
    if processor().is_some() {
        return;
    }
    match store.read_string(NODE).await {
        Ok(text) => {
            if let Err(error) = store.rm(NODE).await {
                log::warn!("cannot remove {NODE}, so others may read the seed: {error}");
            }
            match parse(&text) {
                Some(seed) => GENERATOR.get().borrow_mut().give(seed),
                None => log::error!("{NODE} is no seed: it must have 64 hexadecimal digits"),
            }
        }
        Err(_) => log::debug!(
            "no random numbers: the processor has no RDRAND, and the toolstack gave no seed \
             ({NODE})"
        ),
    }
}

fn processor() -> Option<[u8; SEED]> {
    let mut numbers = cpu::random()?;
    let mut seed = [0; SEED];
    for part in seed.as_chunks_mut().0 {
        *part = numbers();
    }
    Some(seed)
}

/// The backend of `getrandom`.
///
/// # Safety
/// `to` must be valid for writing `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(to: *mut u8, len: usize) -> Result<(), Error> {
    // SAFETY: the caller promises that the bytes can be written.
    unsafe { to.write_bytes(0, len) };
    // SAFETY: as above, and all of them were just written.
    let bytes = unsafe { slice::from_raw_parts_mut(to, len) };
    fill(bytes).map_err(|_| Error::UNSUPPORTED)
}
